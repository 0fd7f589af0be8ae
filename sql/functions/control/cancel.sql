create function durable.cancel(workflow_id uuid, reason text default null)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set enable_nestloop = off
set jit = off as $$
#variable_conflict use_variable
declare
  v_reason text := left(reason, 10000);
  v_ids uuid[] := durable._lock_family(workflow_id);
  v_last uuid;
  v_workers integer[];
begin
  if cardinality(v_ids) = 0 then
    v_last := durable._last_run(workflow_id);
    if v_last <> workflow_id then
      return durable.cancel(v_last, reason);
    end if;
    perform durable.status(workflow_id);
    return false;
  end if;
  v_workers := array(
    select l.worker_id from durable.live_workflows l where l.workflow_id = any(v_ids) and l.worker_id is not null);
  perform durable._finish(v_ids, null, 'cancelled', null, array(
    select jsonb_build_object('code', 'WF004', 'type', 'WorkflowCancelled', 'message', case
      when i.id = workflow_id then coalesce(v_reason, 'cancelled')
      else format('cancelled with workflow %s', workflow_id) || coalesce(': ' || v_reason, '') end)
    from unnest(v_ids) with ordinality as i(id, n) order by i.n));
  perform durable._tell(v_workers, 'cancel');
  return true;
end
$$;
comment on function durable.cancel(uuid, text) is
  'Ends a workflow as cancelled, in the caller''s transaction, whatever it is doing, and with it its children and theirs; false '
  'when it had already ended. Of one that was continued as a new run, the last run is cancelled. Workers that run them are told at once, and none of their reports is accepted any more. '
  'Errors: WF001 workflow not found.';
