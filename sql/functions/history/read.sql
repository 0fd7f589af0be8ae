create view durable.workflows as
  select l.workflow_id, l.name, l.status, l.queue, l.key, l.priority, l.tags, l.attempt, l.failures, l.crashes, l.suspicions,
    l.max_attempts, l.input, null::jsonb as output, l.error, l.error ->> 'message' as error_message,
    l.created_at, l.started_at, null::timestamptz as completed_at, l.wake_at, l.deadline, l.timeout,
    (select w.name from durable.workers w where w.worker_id = l.worker_id) as worker, l.parent_id,
    l.paused_at, l.pause_reason, l.warning, l.forked_from, l.forked_at_step, l.continued_from, null::uuid as continued_as
  from durable.live_workflows l
  union all
  select f.workflow_id, f.name, f.status, f.queue, f.key, f.priority, f.tags, f.attempt, f.failures, f.crashes, null,
    f.max_attempts, f.input, f.output, f.error, f.error ->> 'message',
    f.created_at, f.started_at, f.completed_at, null, f.deadline, f.timeout,
    (select w.name from durable.workers w where w.worker_id = f.worker_id), f.parent_id,
    null, null, f.warning, f.forked_from, f.forked_at_step, f.continued_from, f.continued_as
  from durable.finished_workflows f;
comment on view durable.workflows is
  'Every workflow, unfinished and finished. status is pending (ready, or due later), running (leased by a worker), sleeping (until '
  'a time), waiting (for a message, event, child or approval), or, at the end, completed, failed or cancelled. error is what '
  'ended the last attempt; wake_at is when a delayed, retried or sleeping one becomes ready (infinity for a child that '
  'max_parallel holds back); crashes are the deaths of workers, since its last checkpoint, that it was to blame for, and suspicions, while it is '
  'unfinished, those that it may be to blame for; worker is the worker that runs it, or ended it while that one is still listed; parent_id is the '
  'workflow that started a child. paused_at is when it was paused, null while it is not. forked_from and forked_at_step tell '
  'what it is a fork of; continued_from and continued_as are the runs before and '
  'after it.';

create view durable.workflow_steps as
  select c.workflow_id, c.step_name, c.status, c.attempt, c.output, c.error, c.error ->> 'message' as error_message,
    c.started_at, c.completed_at, null::timestamptz as retry_at, false as at_most_once,
    null::timestamptz as wait_until, null::jsonb as waits_for
  from durable.checkpoints c
  union all
  select o.workflow_id, o.step_name, 'running', o.attempt, null, o.error, o.error ->> 'message',
    o.started_at, null, o.retry_at, o.at_most_once, o.wait_until, o.waits_for
  from durable.open_steps o
  where not exists (select from durable.checkpoints c where c.workflow_id = o.workflow_id and c.step_name = o.step_name)
    -- A tick deletes what is left of workflows that have ended.
    and exists (select from durable.live_workflows l where l.workflow_id = o.workflow_id);
comment on view durable.workflow_steps is
  'Every step with a stored outcome, and of the steps under way those that are between two attempts, run at most once, wait, or '
  'have been running for longer than a heartbeat. status is running (begun, or between two attempts), completed, or error (it '
  'failed for good). error is why the step, or its last attempt, failed. waits_for are the '
  'conditions of a wait, and wait_until is when it times out.';

create function durable.status(workflow_id uuid)
returns text language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
  v_status text := coalesce(
    (select l.status from durable.live_workflows l where l.workflow_id = status.workflow_id),
    (select e.status from durable._ended(array[status.workflow_id]) e));
begin
  if v_status is null then
    perform durable._raise_not_found(workflow_id);
  end if;
  return v_status;
end
$$;
comment on function durable.status(uuid) is 'The status of a workflow. Errors: WF001 workflow not found.';

create function durable.result(workflow_id uuid)
returns table (status text, output jsonb, error jsonb) language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_column
declare
  v_id uuid := workflow_id;
  v_next uuid;
begin
  loop
    select l.status, l.error into status, error from durable.live_workflows l where l.workflow_id = v_id;
    if not found then
      select e.status, e.output, e.error, e.continued_as into status, output, error, v_next from durable._ended(array[v_id]) e;
      if not found then
        perform durable._raise_not_found(v_id);
      end if;
    end if;
    exit when v_next is null;
    v_id := v_next;
    v_next := null;
  end loop;
  return next;
end
$$;
comment on function durable.result(uuid) is
  'One row: the status of a workflow, its output if it is completed, its error if it is failed or cancelled (or the last '
  'attempt''s, if it will be tried again). Of one that was continued as a new run it is the result of the last run. '
  'Errors: WF001 workflow not found.';

create function durable.history(workflow_id uuid)
returns setof durable.workflow_steps language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off
set plan_cache_mode = force_custom_plan set jit = off as $$
#variable_conflict use_column
begin
  return query
  select s.* from durable.workflow_steps s where s.workflow_id = history.workflow_id
  order by coalesce(s.completed_at, 'infinity'), s.started_at, s.step_name;
  if not found then
    perform durable.status(workflow_id);
  end if;
end
$$;
comment on function durable.history(uuid) is
  'The steps of a workflow in the order in which they ended, then those under way; the columns are those of '
  'durable.workflow_steps. Errors: WF001 workflow not found.';

create function durable.version()
returns text language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$ select '0.1.0'::text $$;
comment on function durable.version() is
  'The version of the installed schema. A client fits when the first two numbers are its own.';

create function durable.build()
returns text language sql immutable parallel safe set search_path = pg_catalog, pg_temp as $$ select '@BUILD@'::text $$;
comment on function durable.build() is
  'A digest of the sources that the installed schema was made from. It tells two builds of one version apart.';
