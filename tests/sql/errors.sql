-- Every error that a SQL call raises: its SQLSTATE, and a message, a detail and a hint that tell the reader what to do.
\set ECHO none
\set QUIET 1
\pset format unaligned
\pset tuples_only true
-- What went well is not worth a line.
\o | grep -E '^(not ok|#|1[.][.])'
begin;
select no_plan();

create function pg_temp.raises(call text, code text, message text, detail text, hint text, description text)
returns setof text language plpgsql as $$
declare
  v_code text := 'none';
  v_message text := '';
  v_detail text := '';
  v_hint text := '';
begin
  begin
    execute call;
  exception when others then
    get stacked diagnostics v_code = returned_sqlstate, v_message = message_text, v_detail = pg_exception_detail,
      v_hint = pg_exception_hint;
  end;
  return next is(v_code, code, description);
  return next alike(v_message, message, description || ': its message');
  -- What formatting an absent part would leave.
  return next doesnt_match(v_message, ' NULL|  | [:,]', description || ': nothing absent in its message');
  return next alike(v_detail, detail, description || ': its detail');
  return next alike(v_hint, hint, description || ': its hint');
end
$$;

create temp table run (name text primary key, workflow_id uuid, lease bigint);
create function pg_temp.id(name text) returns uuid language sql as $$ select r.workflow_id from run r where r.name = $1 $$;
create function pg_temp.lease(name text) returns bigint language sql as $$ select r.lease from run r where r.name = $1 $$;
create function pg_temp.start(name text) returns void language plpgsql as $$
begin
  perform durable.enqueue('w', queue => name, key => name, max_attempts => 3);
  insert into run select start.name, c.workflow_id, c.lease from durable.claim('worker of ' || name, array[name]) c;
end
$$;
select pg_temp.start(name) from unnest(array['running', 'lost', 'cancelled', 'step', 'once']) as name;
select durable.release_many(array[pg_temp.id('lost')], array[pg_temp.lease('lost')]);
select durable.cancel(pg_temp.id('cancelled'));
select durable.fail_step(pg_temp.id('step'), pg_temp.lease('step'), 's', '{"message": "no luck"}');
select durable.start_step(pg_temp.id('once'), pg_temp.lease('once'), 's');
select durable.release_many(array[pg_temp.id('once')], array[pg_temp.lease('once')]);
update run set lease = c.lease from durable.claim('another', '{once}') c where run.name = 'once';

select pg_temp.raises(
  $$ select durable.status('01900000-0000-7000-8000-000000000000') $$,
  'WF001', 'workflow 01900000-0000-7000-8000-000000000000 not found', '%stored%', 'Check the id%', 'WF001, workflow not found');
select pg_temp.raises(
  $$ select durable.complete(pg_temp.id('lost'), pg_temp.lease('lost')) $$,
  'WF002', '%lease % is lost', '%Nothing was changed.', 'Stop working on it.%', 'WF002, lease lost');
select pg_temp.raises(
  $$ select durable.cron_next('daily', now()) $$,
  'WF005', 'cron ''daily'': it has %', '%', '%', 'WF005, a cron line without fields');
select pg_temp.raises(
  $$ select durable.cron_next('61 * * * *', now()) $$,
  'WF005', 'cron ''61 * * * *'': field minute: %', '%', '%', 'WF005, a field of a cron line');
select pg_temp.raises(
  $$ select durable.enqueue('other', key => 'running') $$,
  'WF003', '%key ''running'' belongs to workflow ''w'', not to ''other''', '%Nothing was enqueued.', 'A key names one run%',
  'WF003, key conflict');
select pg_temp.raises(
  $$ select durable.send(pg_temp.id('cancelled'), 'topic') $$,
  'WF013', '%has ended (cancelled)%', 'Nothing was sent.', '%durable.retry()%', 'WF013, a message to a workflow that has ended');
select pg_temp.raises(
  $$ select durable.decide(durable.request_approval(pg_temp.id('running'), pg_temp.lease('running'), 'ask', 'may I?', expires => '0'), 'approved') $$,
  'WF015', 'approval % has expired', 'Nothing was changed.', 'What comes after an expiry%', 'WF015, a decision that comes too late');
select pg_temp.raises(
  $$ select durable.decide('01900000-0000-7000-8000-000000000000', 'approved') $$,
  'WF001', 'approval 01900000-0000-7000-8000-000000000000 not found', '%stored%', 'Check the id%', 'WF001, approval not found');
select pg_temp.raises(
  $$ select durable.wait(pg_temp.id('running'), pg_temp.lease('running'), 's', '[{"what": 1}]') $$,
  'WF005', '%step ''s'': the wait is not valid', 'Nothing was changed.', 'conditions is a JSON array%', 'WF005, a wait');
select pg_temp.raises(
  $$ select durable.checkpoint(pg_temp.id('cancelled'), pg_temp.lease('cancelled'), 's') $$,
  'WF004', '%cancelled', 'Nothing was changed.', 'Stop working on it.', 'WF004, cancelled');
select pg_temp.raises(
  $$ select durable.enqueue('w', priority => 40000) $$,
  'WF005', '%priority 40000 is out of range', 'Nothing was changed.', 'Use -32768 to 32767%', 'WF005, invalid argument');
select pg_temp.raises(
  $$ select durable.complete_many(array[pg_temp.id('running')], '{1,2}', '{1}') $$,
  'WF005', '%must have one length, not 1, 2, 1', 'Nothing was changed.', 'Pass one element%', 'WF005, arrays of different lengths');
select durable.configure('max_payload_bytes', '100');
select pg_temp.raises(
  $$ select durable.enqueue('w', to_jsonb(repeat('x', 200))) $$,
  'WF006', '%input 1 has % bytes', 'The limit is 100 bytes of jsonb%', 'Store the data elsewhere%', 'WF006, input too large');
select pg_temp.raises(
  $$ select durable.checkpoint(pg_temp.id('running'), pg_temp.lease('running'), 's', to_jsonb(repeat('x', 200))) $$,
  'WF006', '%step ''s'': the payload is too large', 'The limit is 100 bytes%', 'Store the data elsewhere%', 'WF006, output too large');
select durable.configure('max_payload_bytes', null);
select pg_temp.raises(
  $$ select durable.checkpoint(pg_temp.id('step'), pg_temp.lease('step'), 's') $$,
  'WF007', '%step ''s'': it is already stored as failed', 'no luck', 'The first outcome of a step stands%', 'WF007, failed');
select pg_temp.raises(
  $$ select durable.start_step(pg_temp.id('once'), pg_temp.lease('once'), 's') $$,
  'WF008', '%step ''s'': it was interrupted', 'An earlier owner recorded its start%', 'Find out what it did outside%',
  'WF008, interrupted');

-- What ends a workflow without a call of its worker is stored with its code.
select durable.configure('max_crashes', '1');
select pg_temp.start('crashing');
update durable.live_workflows set crashes = 1, suspicions = 2 where workflow_id = pg_temp.id('crashing');
update durable.workers set expires_at = now() - interval '1 second', suspect_id = pg_temp.id('crashing') where name = 'worker of crashing';
select durable.recover();
select results_eq(
  $$ select status::text, error ->> 'code', error_message ~ 'max_crashes' from durable.workflows where key = 'crashing' $$,
  $$ values ('failed', 'WF009', true) $$, 'WF009, recovery limit exceeded');
select pg_temp.start('late');
update durable.live_workflows set deadline = now() - interval '1 second' where workflow_id = pg_temp.id('late');
select durable.tick();
select results_eq(
  $$ select status::text, error ->> 'code', error_message <> '' from durable.workflows where key = 'late' $$,
  $$ values ('failed', 'WF010', true) $$, 'WF010, timed out');
select results_eq(
  $$ select error ->> 'code', error_message from durable.workflows where key = 'cancelled' $$,
  $$ values ('WF004', 'cancelled') $$, 'WF004 is the error of a cancelled workflow');

select finish();
rollback;
