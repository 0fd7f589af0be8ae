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
    worker_id = null, replay = l.replay or l.lease is not null, paused_at = durable._now(), paused_lease = l.lease,
    pause_reason = left(reason, 10000)
  where l.workflow_id = _pause.workflow_id;
  if v_row.worker_id is not null and lease is null then
    perform durable._tell(array[v_row.worker_id], 'cancel');
  end if;
  return true;
end
$$;

create function durable.pause(workflow_id uuid, reason text default null)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
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
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_variable
declare
  v_last uuid;
  v_resumed record;
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
  returning l.ready_seq, l.line_id, l.priority, l.queue, l.name into v_resumed;
  if v_resumed.ready_seq is not null then
    perform durable._line_up(array[row(v_resumed.line_id, v_resumed.priority, v_resumed.queue, v_resumed.name)::durable.place]);
  end if;
  return true;
end
$$;
comment on function durable.resume(uuid) is
  'Ends the pause of a workflow: it goes on from its last checkpoint, or waits on for what it was waiting for. False when it is '
  'not paused. Errors: WF001 workflow not found.';

create function durable.suspend(workflow_id uuid, lease bigint, reason text)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
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
