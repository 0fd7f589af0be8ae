-- Illegal states cannot be stored, not even by the owner of the tables.
\set ECHO none
\set QUIET 1
\pset format unaligned
\pset tuples_only true
-- What went well is not worth a line.
\o | grep -E '^(not ok|#|1[.][.])'
begin;
select no_plan();

select durable.enqueue('w', key => 'k', max_attempts => 2);
select durable.tick();
create temp table live as select * from durable.live_workflows;

create function pg_temp.refused(change text, rule text, description text)
returns text language plpgsql as $$
declare
  v_rule text := 'nothing';
begin
  begin
    execute change;
  exception when others then
    get stacked diagnostics v_rule = constraint_name;
    if v_rule = '' then
      v_rule := sqlerrm;
    end if;
  end;
  return is(v_rule, rule, description);
end
$$;

-- A pending row
select pg_temp.refused($$ update durable.live_workflows set lease = 1, worker_id = 1, started_at = now() $$,
  'live_workflows_running_is_leased', 'a pending workflow has no lease');
select pg_temp.refused($$ update durable.live_workflows set ready_seq = null $$,
  'live_workflows_pending_is_ready_or_due', 'a pending workflow is in line or due');
select pg_temp.refused($$ update durable.live_workflows set wake_at = now() $$,
  'live_workflows_pending_is_ready_or_due', 'a pending workflow is not both in line and due');
select pg_temp.refused($$ update durable.live_workflows set status = 'completed' $$,
  'live_workflows_is_unfinished', 'a finished workflow is not live');
select pg_temp.refused($$ update durable.live_workflows set status = 'sleeping', ready_seq = null $$,
  'live_workflows_sleeping_has_end', 'a sleeping workflow has an end to its sleep');
select pg_temp.refused($$ update durable.live_workflows set status = 'waiting' $$,
  'live_workflows_ready_is_pending', 'only a pending workflow is in line');
select pg_temp.refused($$ update durable.live_workflows set status = 'running', ready_seq = null $$,
  'live_workflows_running_is_leased', 'a running workflow has a lease');
select pg_temp.refused($$ update durable.live_workflows set status = 'running', ready_seq = null, lease = 1, started_at = now() $$,
  'live_workflows_lease_has_worker', 'a lease has a worker');
select pg_temp.refused($$ update durable.live_workflows set status = 'running', ready_seq = null, lease = 1, worker_id = 1 $$,
  'live_workflows_running_started', 'a running workflow has started');
select pg_temp.refused($$ update durable.live_workflows set attempt = 0 $$, 'live_workflows_counts', 'attempts count from one');
select pg_temp.refused($$ update durable.live_workflows set failures = -1 $$, 'live_workflows_counts', 'failures count from zero');
select pg_temp.refused($$ update durable.live_workflows set crashes = -1 $$, 'live_workflows_counts', 'crashes count from zero');
select pg_temp.refused($$ update durable.live_workflows set suspicions = -1 $$, 'live_workflows_counts', 'suspicions count from zero');
select pg_temp.refused($$ update durable.live_workflows set max_attempts = 0 $$, 'live_workflows_counts', 'there is an attempt');
select pg_temp.refused($$ update durable.live_workflows set name = '' $$, 'live_workflows_name_length', 'a workflow has a name');
select pg_temp.refused($$ update durable.live_workflows set name = repeat('x', 201) $$, 'live_workflows_name_length', 'a name is short');
select pg_temp.refused($$ update durable.live_workflows set queue = '' $$, 'live_workflows_queue_length', 'a queue has a name');
select pg_temp.refused($$ update durable.live_workflows set tags = '[]' $$, 'live_workflows_tags_is_object', 'tags are an object');
select pg_temp.refused($$ update durable.live_workflows set paused_at = now() $$,
  'live_workflows_paused_is_idle', 'a paused workflow is not in line');
select pg_temp.refused($$ update durable.live_workflows set paused_at = now(), ready_seq = null, status = 'running', lease = 1, worker_id = 1,
  started_at = now() $$, 'live_workflows_paused_is_idle', 'a paused workflow is owned by nobody');
select pg_temp.refused($$ update durable.live_workflows set pause_reason = 'why' $$,
  'live_workflows_reason_is_of_pause', 'only a paused workflow has a reason for that');
select pg_temp.refused($$ insert into durable.live_workflows select * from live $$, 'live_workflows_pkey', 'a workflow is live once');
select pg_temp.refused($$ insert into durable.workflow_keys values ('k', 'x', gen_random_uuid()) $$,
  'workflow_keys_pkey', 'a key belongs to one workflow');
select pg_temp.refused($$ insert into durable.workflow_keys values ('', 'x', gen_random_uuid()) $$,
  'workflow_keys_length', 'a key is not empty');
select pg_temp.refused($$ insert into durable.known_queues values ('') $$, 'known_queues_name_length', 'the name of a queue is not empty');

-- Steps
create temp table held as select * from durable.claim('w');
create function pg_temp.step(p_status text, p_output jsonb, p_error jsonb, p_name text, p_attempt integer default 1)
returns void language sql as $$
  insert into durable.checkpoints (workflow_id, completed_at, attempt, status, step_name, output, error)
  select h.workflow_id, now(), p_attempt, p_status, p_name, p_output, p_error from held h
$$;
create function pg_temp.open_step(p_attempt integer, p_once boolean, p_retry_at timestamptz, p_error jsonb, p_name text default 's')
returns void language sql as $$
  insert into durable.open_steps (workflow_id, lease, started_at, attempt, at_most_once, retry_at, error, step_name)
  select h.workflow_id, h.lease, now(), p_attempt, p_once, p_retry_at, p_error, p_name from held h
$$;
select pg_temp.refused($$ select pg_temp.step('running', null, null, 's') $$, 'checkpoints_is_outcome', 'a checkpoint is an outcome');
select pg_temp.refused($$ select pg_temp.step('error', null, null, 's') $$, 'checkpoints_error_iff_error', 'a failed step has an error');
select pg_temp.refused($$ select pg_temp.step('completed', null, '{}', 's') $$,
  'checkpoints_error_iff_error', 'a completed step has no error');
select pg_temp.refused($$ select pg_temp.step('error', '1', '{}', 's') $$,
  'checkpoints_output_if_completed', 'a failed step has no output');
select pg_temp.refused($$ select pg_temp.step('completed', '1', null, '') $$,
  'checkpoints_step_name_length', 'a step has a name');
select pg_temp.refused($$ select pg_temp.step('completed', '1', null, 's', 0) $$,
  'checkpoints_attempt', 'the attempts of a step count from one');
select lives_ok($$ select pg_temp.step('completed', '1', null, 's') $$, 'a completed step can be stored');
select throws_ok($$ select pg_temp.step('completed', '2', null, 's') $$, '23505', null, 'a step has one outcome');
select pg_temp.refused($$ select pg_temp.open_step(0, false, null, null) $$, 'open_steps_attempt', 'open attempts count from one');
select pg_temp.refused($$ select pg_temp.open_step(1, false, now(), null) $$,
  'open_steps_retry_has_error', 'what is tried again has failed');
select pg_temp.refused($$ select pg_temp.open_step(1, true, now(), '{}') $$,
  'open_steps_once_is_not_retried', 'what runs at most once is not tried again');
select pg_temp.refused($$ select pg_temp.open_step(1, false, null, null, '') $$,
  'open_steps_step_name_length', 'an open step has a name');

select pg_temp.refused($$ insert into durable.workflow_state select h.workflow_id, h.lease, now(), '', '1' from held h $$,
  'workflow_state_key_length', 'what is published has a name');

-- Workers and the history
select pg_temp.refused($$ insert into durable.workers (name, queues, expires_at) values ('w', '{}', now()) $$,
  'workers_live_name_idx', 'the living have different names');
select pg_temp.refused($$ update durable.workers set lock_lost_at = now(), session_lock = false $$,
  'workers_lost_lock_was_held', 'only a worker with a session lock can lose it');
select pg_temp.refused($$ update durable.workers set name = '' $$, 'workers_name_length', 'a worker has a name');
select durable.complete(workflow_id, lease, '1') from held;
select pg_temp.refused($$ update durable.finished_workflows set status = 'running', output = null, error = '{}' $$,
  'finished_workflows_is_final', 'what is in the history has ended');
select pg_temp.refused($$ update durable.finished_workflows set error = '{}' $$,
  'finished_workflows_error_iff_not_completed', 'a completed workflow has no error');
select pg_temp.refused($$ update durable.finished_workflows set status = 'failed', output = null $$,
  'finished_workflows_error_iff_not_completed', 'a failed workflow has an error');
select pg_temp.refused($$ update durable.finished_workflows set status = 'failed', error = '{}' $$,
  'finished_workflows_output_if_completed', 'a failed workflow has no output');
select throws_ok($$ insert into durable.finished_workflows select * from durable.finished_workflows $$,
  '23505', null, 'a workflow ends once');

select pg_temp.refused($$ insert into durable.retention_rules values (null, null, '1 day') $$,
  'retention_rules_is_for_one', 'a retention rule is for something');
select pg_temp.refused($$ insert into durable.retention_rules values ('q', 'w', '1 day') $$,
  'retention_rules_is_for_one', 'a retention rule is for one thing');
select pg_temp.refused($$ insert into durable.retention_rules values ('q', null, '-1 day') $$,
  'retention_rules_keep', 'history is not removed before it is there');
select pg_temp.refused($$ insert into durable.retention_rules values ('q', null, '1 day'), ('q', null, '2 days') $$,
  'retention_rules_key', 'a queue has one retention rule');

select finish();
rollback;
