-- The roles matrix: each public function, and who may call it. c client, w worker, p approver, o observer, a admin.
\set ECHO none
\set QUIET 1
\pset format unaligned
\pset tuples_only true
-- What went well is not worth a line.
\o | grep -E '^(not ok|#|1[.][.])'
begin;
select no_plan();

create role durable_t_client;
create role durable_t_worker;
create role durable_t_approver;
create role durable_t_observer;
create role durable_t_admin;
create role durable_t_nobody;
select durable.grant_client('durable_t_client');
select durable.grant_worker('durable_t_worker');
select durable.grant_approver('durable_t_approver');
select durable.grant_observer('durable_t_observer');
select durable.grant_admin('durable_t_admin');

create temp table matrix (name text primary key, audience text not null);
insert into matrix values
  ('attach', 'w'), ('backfill_schedule', 'a'), ('begin_step', 'w'), ('build', 'cwpoa'), ('cancel', 'ca'), ('checkpoint', 'w'),
  ('checkpoint_many', 'w'), ('claim', 'w'), ('complete', 'w'), ('complete_many', 'w'), ('configure', 'a'), ('continue_as_new', 'w'),
  ('cron_next', 'coa'), ('disable_pg_cron', 'a'), ('enable_pg_cron', 'a'), ('enqueue', 'c'), ('enqueue_many', 'c'),
  ('fail', 'w'), ('fail_many', 'w'), ('fail_step', 'w'), ('flush', 'w'), ('fork', 'ca'), ('fork_many', 'ca'), ('grant_admin', ''), ('grant_client', ''),
  ('grant_observer', ''), ('grant_worker', ''), ('health', 'woa'), ('heartbeat', 'w'), ('history', 'co'), ('idle', 'w'), ('leave', 'wa'),
  ('next_firings', 'oa'), ('pause', 'ca'), ('pause_schedule', 'a'), ('publish', 'w'), ('reclaim', 'w'), ('recover', 'wa'), ('release_many', 'w'),
  ('repair_sequences', 'a'),
  ('result', 'co'), ('resume', 'ca'), ('resume_schedule', 'a'), ('retain', 'a'), ('retry', 'ca'), ('retry_many', 'ca'),
  ('schedule', 'a'), ('start_step', 'w'), ('state', 'co'), ('status', 'co'), ('suspend', 'w'), ('warn', 'w'),
  ('step_result', 'wo'), ('tick', 'wa'), ('trigger_schedule', 'a'), ('unschedule', 'a'), ('version', 'cwpoa'), ('send', 'c'), ('emit', 'c'),
  ('wait', 'w'), ('wait_many', 'w'), ('recheck_waits', 'w'), ('start_children', 'w'), ('child_results', 'wo'),
  ('request_approval', 'w'), ('decide', 'p'), ('grant_approver', '');

create temp table audience (letter text, role name);
insert into audience values
  ('c', 'durable_t_client'), ('w', 'durable_t_worker'), ('p', 'durable_t_approver'), ('o', 'durable_t_observer'), ('a', 'durable_t_admin'),
  ('n', 'durable_t_nobody');

select set_eq(
  $$ select distinct proname::text from pg_proc where pronamespace = 'durable'::regnamespace and proname !~ '^_' $$,
  $$ select name from matrix $$,
  'the matrix names every public function');

select is(
  has_function_privilege(a.role, p.oid, 'execute') and has_schema_privilege(a.role, 'durable', 'usage'),
  position(a.letter in m.audience) > 0,
  format('%s %s call %s', a.role, case when position(a.letter in m.audience) > 0 then 'may' else 'may not' end, p.proname))
from pg_proc p join matrix m on m.name = p.proname cross join audience a
where p.pronamespace = 'durable'::regnamespace
order by p.proname, a.role;

select set_eq(
  $$ select a.role::text, p.proname::text from audience a, pg_proc p
     where p.pronamespace = 'durable'::regnamespace and p.proname ~ '^_' and has_function_privilege(a.role, p.oid, 'execute') $$,
  $$ select a.role::text, p.name from audience a, unnest(array['_now', '_now_in_view']) as p(name) where a.letter <> 'n' $$,
  'no group may call a private function, but each may read the clock');

select set_eq(
  $$ select a.role::text, c.relname::text from audience a, pg_class c
     where c.relnamespace = 'durable'::regnamespace and c.relkind in ('r', 'p', 'v') and has_table_privilege(a.role, c.oid, 'select') $$,
  $$ values ('durable_t_observer', 'workflows'), ('durable_t_observer', 'workflow_steps'),
       ('durable_t_observer', 'workflow_state'), ('durable_t_observer', 'approvals'),
       ('durable_t_approver', 'approvals'), ('durable_t_observer', 'queues'),
       ('durable_t_observer', 'workers'), ('durable_t_observer', 'settings'), ('durable_t_admin', 'settings'),
       ('durable_t_worker', 'settings'), ('durable_t_observer', 'retention_rules'), ('durable_t_admin', 'retention_rules'),
       ('durable_t_observer', 'schedules'), ('durable_t_observer', 'schedule_firings'),
       ('durable_t_observer', 'schedule_backfills'), ('durable_t_admin', 'schedules'), ('durable_t_admin', 'schedule_firings'),
       ('durable_t_admin', 'schedule_backfills') $$,
  'observers read the views, approvers the approvals, admins the settings, the retention and schedules, workers the settings, and nobody else anything');
select is_empty(
  $$ select a.role, c.oid::regclass, p from audience a, pg_class c, unnest(array['insert', 'update', 'delete', 'truncate']) p
     where c.relnamespace = 'durable'::regnamespace and c.relkind in ('r', 'p', 'v') and has_table_privilege(a.role, c.oid, p) $$,
  'nobody writes a table');
select is_empty(
  $$ select a.role, c.oid::regclass from audience a, pg_class c
     where c.relnamespace = 'durable'::regnamespace and c.relkind = 'S' and has_sequence_privilege(a.role, c.oid, 'usage, select, update') $$,
  'nobody reads or moves a sequence');

-- And the rights are enough for a whole life, each call in the name of its role.
create temp table life (workflow_id uuid, lease bigint);
grant all on life to public;
set local role durable_t_client;
select lives_ok($$ insert into life (workflow_id) select durable.enqueue('w', key => 'k') $$, 'a client enqueues');
select lives_ok($$ select durable.send(workflow_id, 'topic', '1') from life $$, 'a client sends');
select lives_ok($$ select durable.emit('event') $$, 'a client emits');
select lives_ok($$ set constraints all immediate $$, 'and wakes, at its commit, what it may not see');
select throws_ok($$ select durable.claim('w') $$, '42501', null, 'a client does not claim');
select throws_ok($$ select * from durable.workflows $$, '42501', null, 'a client does not read what others enqueued');
select throws_ok($$ select durable.schedule('s', '@hourly', 'w') $$, '42501', null, 'a client does not make schedules');
set local role durable_t_worker;
select lives_ok($$ update life l set lease = c.lease from durable.claim('w') c $$, 'a worker claims');
select lives_ok($$ select durable.attach('w') $$, 'a worker attaches');
select lives_ok($$ select w.* from life, durable.wait(workflow_id, lease, 'r', '[{"message": "topic"}]') w $$, 'a worker receives');
select lives_ok($$ select durable.request_approval(workflow_id, lease, 'ask', 'may I?') from life $$, 'a worker asks');
select throws_ok($$ select durable.decide(workflow_id, 'approved') from life $$, '42501', null, 'a worker does not decide');
set local role durable_t_approver;
select results_eq($$ select durable.decide(approval_id, 'approved') from durable.approvals where state = 'pending' $$, array[true],
  'an approver lists and decides');
select lives_ok($$ set constraints all immediate $$, 'and wakes, at its commit, what it may not see');
select throws_ok($$ select * from durable.workflows $$, '42501', null, 'an approver does not read workflows');
set local role durable_t_worker;
select throws_ok($$ select durable.emit('another') $$, '42501', null, 'a worker does not emit');
select lives_ok($$ select durable.checkpoint(workflow_id, lease, 's', '1') from life $$, 'a worker checkpoints');
select lives_ok($$ select durable.publish(workflow_id, lease, 'k', '1') from life $$, 'a worker publishes');
select lives_ok($$ select durable.start_children(workflow_id, lease, 'c', 'child', '{"1"}') from life $$, 'a worker starts children');
select lives_ok($$ select durable.complete(c.workflow_id, c.lease) from durable.claim('w') c $$, 'a worker completes one');
select lives_ok($$ set constraints all immediate $$, 'and wakes, at its commit, the parent, which it may not see');
select lives_ok($$ select durable.complete(workflow_id, lease, '1') from life $$, 'a worker completes');
select lives_ok($$ select durable.tick() $$, 'a worker ticks');
select throws_ok($$ select durable.enqueue('w') $$, '42501', null, 'a worker does not enqueue');
select throws_ok($$ select durable.grant_admin('durable_t_worker') $$, '42501', null, 'a worker does not make itself an admin');
set local role durable_t_observer;
select results_eq($$ select status::text, output from durable.workflows where name = 'w' $$, $$ values ('completed', '1'::jsonb) $$, 'an observer reads');
select throws_ok($$ update durable.workers set name = 'x' $$, '42501', null, 'an observer writes nothing');
set local role durable_t_admin;
select lives_ok($$ select durable.configure('lease', '1 minute') $$, 'an admin changes a setting');
select lives_ok($$ select durable.schedule('s', '@hourly', 'w') $$, 'an admin makes a schedule');
select lives_ok($$ select durable.trigger_schedule('s') $$, 'an admin triggers a schedule');
select results_eq($$ select outcome::text from durable.schedule_firings $$, $$ values ('triggered') $$, 'an admin reads what became of it');
select throws_ok($$ select durable.enqueue('w') $$, '42501', null, 'an admin does not enqueue');
select lives_ok($$ select durable.pause(durable.fork(workflow_id)) from life $$, 'an admin forks and pauses');
select throws_ok($$ select durable.state(workflow_id) from life $$, '42501', null, 'an admin does not read what was published');
reset role;

select finish();
rollback;
