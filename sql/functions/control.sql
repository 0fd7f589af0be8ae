-- The run that a workflow has come to by continuing as new ones; itself, when it has not.
create function durable._last_run(workflow_id uuid)
returns uuid language plpgsql stable as $$
declare
  v_last uuid := workflow_id;
  v_next uuid := workflow_id;
begin
  while v_next is not null loop
    v_last := v_next;
    v_next := (select f.continued_as from durable.finished_workflows f where f.workflow_id = v_last);
  end loop;
  return v_last;
end
$$;

create function durable.cancel(workflow_id uuid, reason text default null)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set enable_nestloop = off as $$
#variable_conflict use_variable
declare
  v_ids uuid[] := durable._lock_family(workflow_id);
  v_last uuid;
  v_workers integer[];
begin
  if cardinality(v_ids) = 0 then
    v_last := durable._last_run(workflow_id);
    if v_last <> workflow_id then
      return durable.cancel(v_last, reason);
    end if;
    if not exists (select from durable.finished_workflows f where f.workflow_id = cancel.workflow_id) then
      perform durable._raise_not_found(workflow_id);
    end if;
    return false;
  end if;
  v_workers := array(
    select distinct l.worker_id from durable.live_workflows l where l.workflow_id = any(v_ids) and l.worker_id is not null);
  perform durable._finish(v_ids, null, 'cancelled', null, array(
    select jsonb_build_object('code', 'WF004', 'type', 'WorkflowCancelled', 'message', case
      when i.id = workflow_id then coalesce(reason, 'cancelled')
      else format('cancelled with workflow %s', workflow_id) || coalesce(': ' || reason, '') end)
    from unnest(v_ids) with ordinality as i(id, n) order by i.n));
  perform pg_notify('durable_worker_' || w, 'cancel') from unnest(v_workers) as w;
  return true;
end
$$;
comment on function durable.cancel(uuid, text) is
  'Ends a workflow as cancelled, in the caller''s transaction, whatever it is doing, and with it its children and theirs; false '
  'when it had already ended. Of one that was continued as a new run, the last run is cancelled. Workers that run them are told at once, and none of their reports is accepted any more. '
  'Errors: WF001 workflow not found.';

-- Takes a workflow out of the line or from its worker, with a lease only if that still owns it; null when there is none such.
create function durable._pause(workflow_id uuid, lease bigint, reason text)
returns boolean language plpgsql as $$
#variable_conflict use_variable
declare
  v_row durable.live_workflows;
begin
  select * into v_row from durable.live_workflows l
  where l.workflow_id = _pause.workflow_id and (_pause.lease is null or l.lease = _pause.lease) for update;
  if not found then
    return null;
  elsif v_row.paused_at is not null then
    return false;
  end if;
  update durable.live_workflows l
  set status = case when l.status = 'running' then 'pending' else l.status end, ready_seq = null, lease = null,
    worker_id = null, replay = l.replay or l.lease is not null, paused_at = clock_timestamp(), paused_lease = l.lease,
    pause_reason = reason
  where l.workflow_id = _pause.workflow_id;
  if v_row.worker_id is not null and lease is null then
    perform pg_notify('durable_worker_' || v_row.worker_id, 'cancel');
  end if;
  return true;
end
$$;

create function durable.pause(workflow_id uuid, reason text default null)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off as $$
declare
  v_paused boolean := durable._pause(workflow_id, null, reason);
  v_last uuid;
begin
  if v_paused is null then
    v_last := durable._last_run(workflow_id);
    if v_last <> workflow_id then
      return durable.pause(v_last, reason);
    end if;
    perform durable.status(workflow_id);
  end if;
  return coalesce(v_paused, false);
end
$$;
comment on function durable.pause(uuid, text) is
  'Pauses a workflow, in the caller''s transaction, until durable.resume(): nobody claims it. It keeps its status, and '
  'paused_at and pause_reason show in durable.workflows. One that runs is taken from its worker, which is told at once and none '
  'of whose reports is accepted any more; it becomes pending, and the step that was under way runs again after the pause (one '
  'that runs at most once is reported as interrupted). What it waits for, a time for example, is noticed during the pause and '
  'takes effect after it. Its timeout goes on. Of one that was continued as a new run, the last run is paused. False when it has ended, or is paused already. Errors: WF001 workflow not found.';

create function durable.resume(workflow_id uuid)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off as $$
#variable_conflict use_variable
declare
  v_last uuid;
  v_queue text;
  v_seq bigint;
begin
  perform from durable.live_workflows l
  where l.workflow_id = resume.workflow_id and l.paused_at is not null for update;
  if not found then
    v_last := durable._last_run(workflow_id);
    if v_last <> workflow_id then
      return durable.resume(v_last);
    end if;
    perform durable.status(workflow_id);
    return false;
  end if;
  perform pg_current_xact_id();
  update durable.live_workflows l
  set paused_at = null, paused_lease = null, pause_reason = null,
    ready_seq = case when l.status = 'pending' and l.wake_at is null then nextval('durable.ready_seq') end
  where l.workflow_id = resume.workflow_id
  returning l.queue, l.ready_seq into v_queue, v_seq;
  if v_seq is not null then
    perform durable._ring(v_queue, 1);
  end if;
  return true;
end
$$;
comment on function durable.resume(uuid) is
  'Ends the pause of a workflow: it goes on from its last checkpoint, or waits on for what it was waiting for. False when it is '
  'not paused. Errors: WF001 workflow not found.';

create function durable.suspend(workflow_id uuid, lease bigint, reason text)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off as $$
#variable_conflict use_variable
begin
  perform durable._require(lease is not null, format('workflow %s: the lease is NULL', workflow_id),
    'Pass the lease that durable.claim() handed out.');
  if durable._pause(workflow_id, lease, reason) is null and not exists (
      select from durable.live_workflows l
      where l.workflow_id = suspend.workflow_id and l.paused_lease = suspend.lease) then
    perform durable._raise_outcome(durable._why_lost(workflow_id, lease), workflow_id, lease);
  end if;
end
$$;
comment on function durable.suspend(uuid, bigint, text) is
  'Pauses a workflow on behalf of the worker that runs it, when somebody has to look at it before it can go on; reason says why. '
  'The lease is given up, and durable.resume() lets it go on. Sending it again is harmless. '
  'Errors: WF001, WF002 lease lost, WF004 cancelled, WF005 lease is null.';

-- The most workflows that one call in bulk takes.
create function durable._check_bulk(workflow_ids uuid[])
returns void language plpgsql as $$
begin
  perform durable._require(cardinality(workflow_ids) <= 10000,
    format('%s workflows are too many for one call', coalesce(cardinality(workflow_ids)::text, 'NULL')),
    'Pass at most 10000 ids: put a limit on the selection, and call it again for the others.');
end
$$;

-- Brings failed and cancelled workflows back to life, and returns how many.
create function durable._retry(workflow_ids uuid[])
returns integer language plpgsql as $$
declare
  v_ids uuid[];
  v_errors jsonb[];
  v_queues text[];
begin
  perform pg_current_xact_id();
  with item as materialized (
    select distinct i.workflow_id from unnest(workflow_ids) as i(workflow_id)
  ), ended as materialized (
    select f.workflow_id from item i join durable.finished_workflows f on f.workflow_id = i.workflow_id
    where f.status in ('failed', 'cancelled')
    order by f.workflow_id for update of f
  ), back as (
    delete from durable.finished_workflows f using ended e where f.workflow_id = e.workflow_id
    returning f.*
  ), live as (
    insert into durable.live_workflows (workflow_id, parent_id, ready_seq, created_at, started_at, attempt, max_attempts,
      priority, replay, status, timeout, name, queue, key, tags, input, warning, forked_from, forked_at_step, continued_from)
    select b.workflow_id, b.parent_id, nextval('durable.ready_seq'), b.created_at, b.started_at, b.attempt + 1,
      b.max_attempts, b.priority, true, 'pending', b.timeout, b.name, b.queue, b.key, b.tags, b.input, b.warning,
      b.forked_from, b.forked_at_step, b.continued_from
    from back b order by b.workflow_id
  )
  select array_agg(b.workflow_id), array_agg(b.error), array_agg(b.queue) into v_ids, v_errors, v_queues from back b;
  -- Also a step that was interrupted: whoever retries the workflow that it failed decides that it may run again.
  perform durable._forget_failed_steps(i.id, i.error), durable._retry_children(i.id, i.error)
  from unnest(v_ids, v_errors) as i(id, error);
  perform durable._ring_each(v_queues);
  return coalesce(cardinality(v_ids), 0);
end
$$;

create function durable.retry(workflow_id uuid)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off
set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
begin
  if durable._retry(array[workflow_id]) = 0 then
    perform durable.status(workflow_id);
    return false;
  end if;
  return true;
end
$$;
comment on function durable.retry(uuid) is
  'Lets a failed or cancelled workflow go on from its last checkpoint; the step that failed it runs again, also one that runs at '
  'most once, and so do the children whose failure it was. Failures, crashes and the timeout count anew. Returns false when it '
  'is neither failed nor cancelled. Errors: WF001 workflow not found.';

create function durable.retry_many(workflow_ids uuid[])
returns integer language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off
set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
begin
  perform durable._check_bulk(workflow_ids);
  return durable._retry(workflow_ids);
end
$$;
comment on function durable.retry_many(uuid[]) is
  'durable.retry() for a selection of at most 10000 workflows, in one statement: select durable.retry_many(array(select '
  'workflow_id from durable.workflows where …)). Returns how many go on; those that are neither failed nor cancelled, or not '
  'stored, are passed over. Errors: WF005 for more ids, or NULL.';
