create function durable.cancel(workflow_id uuid, reason text default null)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set enable_nestloop = off as $$
#variable_conflict use_variable
declare
  v_ids uuid[] := durable._lock_family(workflow_id);
  v_workers integer[];
begin
  if cardinality(v_ids) = 0 then
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
  'when it had already ended. Workers that run them are told at once, and none of their reports is accepted any more. '
  'Errors: WF001 workflow not found.';

create function durable.retry(workflow_id uuid)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off as $$
#variable_conflict use_variable
declare
  v_row durable.finished_workflows;
begin
  delete from durable.finished_workflows f
  where f.workflow_id = retry.workflow_id and f.status in ('failed', 'cancelled')
  returning * into v_row;
  if not found then
    if not exists (select from durable.finished_workflows f where f.workflow_id = retry.workflow_id)
      and not exists (select from durable.live_workflows l where l.workflow_id = retry.workflow_id) then
      perform durable._raise_not_found(workflow_id);
    end if;
    return false;
  end if;
  -- Also a step that was interrupted: whoever retries the workflow that it failed decides that it may run again.
  perform durable._forget_failed_steps(workflow_id, v_row.error);
  perform durable._retry_children(workflow_id, v_row.error);
  perform pg_current_xact_id();
  insert into durable.live_workflows (workflow_id, parent_id, ready_seq, created_at, started_at, attempt, max_attempts, priority,
    replay, status, timeout, name, queue, key, tags, input)
  values (v_row.workflow_id, v_row.parent_id, nextval('durable.ready_seq'), v_row.created_at, v_row.started_at,
    v_row.attempt + 1, v_row.max_attempts, v_row.priority, true, 'pending', v_row.timeout, v_row.name, v_row.queue, v_row.key, v_row.tags,
    v_row.input);
  perform durable._ring(v_row.queue, 1);
  return true;
end
$$;
comment on function durable.retry(uuid) is
  'Lets a failed or cancelled workflow go on from its last checkpoint; the step that failed it runs again, also one that runs at most once, and so do the children whose failure it was. Failures, crashes and '
  'the timeout count anew. Returns false when it is neither failed nor cancelled. Errors: WF001 workflow not found.';
