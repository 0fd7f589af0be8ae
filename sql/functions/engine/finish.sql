-- The one way out of live_workflows. Moves rows to the history and returns the ids of those it moved. Without leases it
-- takes whatever state a row is in; with them, only rows that the lease still owns. Parallel arrays; the row locks are
-- taken in the order of the ids. A row that another transaction has locked is waited for, or else stays. To lock each row first would
-- take a tenth longer, so only those are that have an xmax of somebody else: of another transaction than the one that made this
-- version of the row, which locked it to do so.
create function durable._finish(
  workflow_ids uuid[], leases bigint[], status text, outputs jsonb[], errors jsonb[], may_wait boolean default true
)
returns uuid[] language plpgsql as $$
#variable_conflict use_column
declare
  v_now timestamptz := durable._now();
  v_finished uuid[];
  v_children uuid[];
  v_parents uuid[];
  v_slots integer[];
  v_relieved integer[];
  v_late uuid[] := durable._ensure_partitions(workflow_ids, may_wait);
begin
  with item as materialized (
    select i.* from unnest(workflow_ids, leases, outputs, errors) as i(workflow_id, lease, output, error)
    where (i.workflow_id = any(v_late)) is not true
    order by i.workflow_id
  ), gone as (
    delete from durable.live_workflows l using item i
    where l.workflow_id = any(_finish.workflow_ids) and l.workflow_id = i.workflow_id
      and (_finish.leases is null or l.lease = i.lease)
      and (may_wait or l.xmax = '0'::xid or l.xmax = l.xmin or l.workflow_id = any(array(
        select o.workflow_id from durable.live_workflows o
        where o.workflow_id = any(_finish.workflow_ids) and o.xmax <> '0'::xid and o.xmax <> o.xmin
        order by o.workflow_id for update skip locked)))
    returning l.*, i.output, i.error as final_error
  ), finished as (
    insert into durable.finished_workflows (workflow_id, parent_id, lease, created_at, started_at, completed_at, deadline, worker_id,
      attempt, failures, crashes, max_attempts, priority, status, timeout, name, queue, key, tags, input, output, error, warning,
      forked_from, forked_at_step, continued_from)
    select g.workflow_id, g.parent_id, case when _finish.leases is not null then g.lease end, g.created_at, g.started_at, v_now, g.deadline,
      g.worker_id, g.attempt, g.failures + (_finish.status = 'failed' and _finish.leases is not null)::integer, g.crashes,
      g.max_attempts, g.priority, _finish.status, g.timeout, g.name, g.queue, g.key, g.tags, g.input, g.output, g.final_error, g.warning,
      g.forked_from, g.forked_at_step, g.continued_from
    from gone g
    returning workflow_id
  ), closed as (
    delete from durable.open_steps o using finished f
    where o.workflow_id = any(_finish.workflow_ids) and o.workflow_id = f.workflow_id
    returning o.*
  ), interrupted as (
    -- What may have happened once stays on record, and does not run again after a retry.
    insert into durable.checkpoints (workflow_id, started_at, completed_at, attempt, status, step_name, error)
    select c.workflow_id, c.started_at, v_now, c.attempt, 'error', c.step_name, jsonb_build_object(
      'code', 'WF008', 'type', 'StepInterrupted', 'message', 'it was begun, and its end was never reported')
    from closed c where c.at_most_once
    on conflict do nothing
  )
  select array_agg(g.workflow_id), array_agg(g.workflow_id) filter (where g.parent_id is not null),
      array_agg(g.parent_id) filter (where g.parent_id is not null),
      array_agg((g.lets_in is true and isfinite(g.wake_at) is not false)::integer) filter (where g.parent_id is not null),
      array_agg(g.worker_id) filter (where g.suspicions >= 2 and g.worker_id is not null)
    into v_finished, v_children, v_parents, v_slots, v_relieved
  from gone g;
  if v_children is not null then
    -- At the commit they wake their parents.
    if _finish.leases is not null then
      perform durable._let_ring();
    end if;
    insert into durable.ended_children (parent_id, first_id, slots)
    select c.parent_id, durable._child_id(c.child_id, 0), sum(c.slots)
    from unnest(v_parents, v_children, v_slots) as c(parent_id, child_id, slots) group by 1, 2;
  end if;
  if v_relieved is not null then
    perform durable._relieve(v_relieved);
  end if;
  -- Whoever holds a lease does not wait.
  if _finish.leases is null then
    delete from durable.waits w where w.workflow_id = any(v_finished);
  end if;
  return v_finished;
end
$$;

-- Ends workflows whose rows this transaction has locked as failed, for one reason. One that cannot be stored stays, with a
-- warning, and so does one of whose steps another transaction holds something: a tick comes back to it. After ten of these it has
-- waited long enough.
create function durable._fail_many_now(workflow_ids uuid[], error jsonb)
returns void language plpgsql as $$
declare
  v_id uuid;
  v_held integer := 0;
begin
  perform durable._finish(workflow_ids, null, 'failed', null, array_fill(error, array[cardinality(workflow_ids)]), false);
exception when others then
  if durable._is_passing(sqlstate) and sqlstate <> '55P03' then
    raise;
  end if;
  foreach v_id in array workflow_ids loop
    exit when v_held = 10;
    begin
      perform durable._finish(array[v_id], null, 'failed', null, array[error], false);
    exception
      when lock_not_available then
        v_held := v_held + 1;
      when others then
        if durable._is_passing(sqlstate) then
          raise;
        end if;
        raise warning 'workflow % cannot be ended as failed: %', v_id, sqlerrm;
    end;
  end loop;
end
$$;

-- The core of every completion call. Returns a row only for the items that were not simply completed.
create function durable._complete(workflow_ids uuid[], leases bigint[], outputs jsonb[], may_wait boolean)
returns table (item integer, outcome text) language plpgsql as $$
declare
  v_limit bigint := durable._max_payload();
  v_too_large boolean[];
begin
  if pg_column_size(outputs) > durable._small_enough(v_limit) then
    v_too_large := array(
      select coalesce(pg_column_size(o) > durable._small_enough(v_limit) and durable._is_too_large(o, v_limit), false)
      from unnest(outputs) as o);
  end if;
  if (true = any (v_too_large)) is not true then
    if cardinality(durable._finish(workflow_ids, leases, 'completed', outputs, null, may_wait)) = cardinality(workflow_ids) then
      return;
    end if;
  else
    perform durable._finish(array_agg(i.workflow_id), array_agg(i.lease), 'completed', array_agg(i.output), null, may_wait)
    from unnest(workflow_ids, leases, outputs, v_too_large) as i(workflow_id, lease, output, too_large)
    where not i.too_large;
  end if;
  return query
  select o.item, o.outcome from (
    select w.item, case when v_too_large[w.item] then 'WF006' else w.code end as outcome
    from durable._why_lost_many(workflow_ids, leases, 'completed') w) o
  where o.outcome <> 'ok'
  order by o.item;
end
$$;

create function durable.complete_many(workflow_ids uuid[], leases bigint[], outputs jsonb[])
returns table (item integer, outcome text) language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set enable_nestloop = off
set plan_cache_mode = force_generic_plan set jit = off as $$
#variable_conflict use_column
begin
  perform durable._check_lengths('workflow_ids, leases, outputs',
    durable._length(workflow_ids), durable._length(leases), durable._length(outputs));
  return query
  select i.n, coalesce(r.outcome, 'ok')
  from generate_series(1, cardinality(workflow_ids)) as i(n)
  left join durable._complete(workflow_ids, leases, outputs, false) r on r.item = i.n
  order by i.n;
end
$$;
comment on function durable.complete_many(uuid[], bigint[], jsonb[]) is
  'Completes many workflows in one statement. The arrays are parallel. Returns for each item, in order: ok (also when the same '
  'lease had completed it before), busy (another transaction holds the workflow, and nothing was changed: send the item again), or '
  'the code of its error (WF001, WF002, WF004, WF006); one bad item does not stop the '
  'others. Errors of the whole call: WF005 for arrays of different lengths.';

create function durable.complete(workflow_id uuid, lease bigint, output jsonb default null)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set enable_nestloop = off
set plan_cache_mode = force_generic_plan set jit = off as $$
declare
  v_outcome text;
begin
  select r.outcome into v_outcome from durable._complete(array[workflow_id], array[lease], array[output], true) r;
  if found then
    perform durable._raise_outcome(v_outcome, workflow_id, lease);
  end if;
end
$$;
comment on function durable.complete(uuid, bigint, jsonb) is
  'Ends a workflow as completed. Sending it again under the same lease is harmless. '
  'Errors: WF001 workflow not found, WF002 lease lost, WF004 cancelled, WF006 output too large.';

create function durable.flush(
  checkpoint_ids uuid[], checkpoint_leases bigint[], step_names text[], step_outputs jsonb[], step_attempts integer[],
  step_elapsed_ms bigint[], complete_ids uuid[], complete_leases bigint[], outputs jsonb[]
)
returns table (kind text, item integer, outcome text, output jsonb, error jsonb) language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set enable_nestloop = off
set plan_cache_mode = force_generic_plan set jit = off as $$
#variable_conflict use_column
begin
  perform durable._check_lengths('checkpoint_ids, checkpoint_leases, step_names, step_outputs, step_attempts, step_elapsed_ms',
    durable._length(checkpoint_ids), durable._length(checkpoint_leases), durable._length(step_names), durable._length(step_outputs),
    durable._length(step_attempts), durable._length(step_elapsed_ms));
  perform durable._check_lengths('complete_ids, complete_leases, outputs',
    durable._length(complete_ids), durable._length(complete_leases), durable._length(outputs));
  if cardinality(checkpoint_ids) > 0 then
    return query
    select 'checkpoint', r.item, r.outcome, r.output, r.error
    from durable._checkpoint(checkpoint_ids, checkpoint_leases, step_names, step_outputs, null, step_attempts, step_elapsed_ms, false) r;
  end if;
  if cardinality(complete_ids) > 0 then
    return query
    select 'complete', r.item, r.outcome, null::jsonb, null::jsonb
    from durable._complete(complete_ids, complete_leases, outputs, false) r;
  end if;
end
$$;
comment on function durable.flush(uuid[], bigint[], text[], jsonb[], integer[], bigint[], uuid[], bigint[], jsonb[]) is
  'Checkpoints and completions of a worker in one round trip and one commit. The arrays are those of durable.checkpoint_many() '
  'and durable.complete_many(). Returns a row only for items whose outcome is not ok: kind is checkpoint or complete, item '
  'counts from 1 within the kind. Errors of the whole call: WF005 for arrays of different lengths.';
