-- Enqueue: keys, priority, limits; what a claim then hands out.
\set ECHO none
\set QUIET 1
\pset format unaligned
\pset tuples_only true
-- What went well is not worth a line.
\o | grep -E '^(not ok|#|1[.][.])'
begin;
select no_plan();

create temp table id as select durable.enqueue('fulfil', '{"order": 7}', queue => 'orders', key => 'order-7') as first;
select is(durable.enqueue('fulfil', '{"order": 8}', queue => 'orders', key => 'order-7'), first,
  'the same key returns the same id') from id;
select is(count(*), 1::bigint, 'and starts nothing') from durable.workflows;
select results_eq(
  $$ select name, status::text, queue, key, priority::int, tags, attempt, max_attempts, input from durable.workflows $$,
  $$ values ('fulfil', 'pending', 'orders', 'order-7', 0, '{}'::jsonb, 1, 1, '{"order": 7}'::jsonb) $$,
  'a workflow is stored with its defaults');
select isnt(durable.enqueue('fulfil', key => 'order-8'), first, 'another key is another workflow') from id;
select is(substr(first::text, 15, 1), '7', 'ids are UUIDv7') from id;
select ok(durable._id_time(first) between now() - interval '1 millisecond' and clock_timestamp(), 'and carry their time') from id;

select durable.enqueue('p', to_jsonb(priority), queue => 'line', priority => priority)
from unnest('{0,32767,-32768,0,5}'::int[]) as priority;
select results_eq(
  $$ select input::int from durable.claim('w', '{line}', 9) $$, $$ values (-32768), (0), (0), (5), (32767) $$,
  'lower priority numbers come first');

select durable.enqueue_many('many', array(select to_jsonb(n) from generate_series(1, 100) n), queue => 'many');
select results_eq(
  $$ select input::int from durable.claim('w', '{many}', 100) $$, $$ select * from generate_series(1, 100) $$,
  'equal priorities come first in, first out');
select is(count(*), 100::bigint, 'a claim takes what it was asked for')
from durable.workflows where name = 'many' and status = 'running' and worker = 'w';

select results_eq(
  $$ select count(distinct id)::int from durable.enqueue_many('keys', '{1,2,3}', keys => array['a', 'a', null]) as id $$,
  $$ values (2) $$, 'equal keys in a batch are one workflow');

select durable.enqueue('later', run_at => now() + interval '1 hour');
select results_eq($$ select status::text, wake_at - now() from durable.workflows where name = 'later' $$,
  $$ values ('pending', interval '1 hour') $$, 'a delayed workflow waits for its time');
select is_empty($$ select from durable.claim('w', max_workflows => 99) c where c.name = 'later' $$, 'and is not claimed before it');
update durable.live_workflows set wake_at = now() where name = 'later';
select is((durable.tick() ->> 'woken')::int, 1, 'the tick wakes it when its time has come');
select results_eq($$ select name from durable.claim('w', max_workflows => 99) $$, $$ values ('later') $$, 'and then it is claimed');

select durable.enqueue('timed', queue => 'timed', timeout => '5 minutes');
select results_eq($$ select deadline - claimed_at from durable.claim('w', '{timed}') $$, $$ values (interval '5 minutes') $$,
  'a timeout runs from the first start');

select finish();
rollback;
