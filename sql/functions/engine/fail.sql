-- What a retry must run again: the step whose error ended the attempt, and the errors of those that ran beside it.
create function durable._forget_failed_steps(workflow_id uuid, error jsonb)
returns void language plpgsql set plan_cache_mode = force_custom_plan as $$
declare
  v_now timestamptz := durable._now();
  v_since timestamptz := (
    select coalesce(o.started_at, o.completed_at) from durable._outcomes(array[workflow_id], array[error ->> 'step']) o
    where o.status = 'error');
begin
  if v_since is not null then
    delete from durable.checkpoints c
    where c.workflow_id = _forget_failed_steps.workflow_id and c.status = 'error' and (
      c.completed_at >= v_since and c.completed_at <= v_now or c.step_name = _forget_failed_steps.error ->> 'step'
      -- Once the clock was set back, their times do not tell. All can run again but those that may have happened once.
      or greatest(c.completed_at, v_since) > v_now and c.error ->> 'code' is distinct from 'WF008');
  end if;
end
$$;

create function durable._forget_step(workflow_id uuid, step_name text)
returns void language plpgsql set plan_cache_mode = force_custom_plan as $$
begin
  delete from durable.checkpoints c
  where c.workflow_id = _forget_step.workflow_id and c.step_name = _forget_step.step_name;
end
$$;

-- One failed attempt of one workflow: another attempt later, or the end. Returns ok, or a code; busy when it would have to wait
-- for another transaction and may not.
create function durable._fail(
  workflow_id uuid, lease bigint, error jsonb, retry_in interval, retryable boolean, may_wait boolean
)
returns text language plpgsql as $$
#variable_conflict use_variable
declare
  v_row durable.live_workflows;
begin
  if error is null or retry_in > durable._longest() then
    return 'WF005';
  elsif durable._is_too_large(error, durable._max_payload()) then
    return 'WF006';
  end if;
  if may_wait then
    select * into v_row from durable.live_workflows l
    where l.workflow_id = _fail.workflow_id and l.lease = _fail.lease for update;
  else
    select * into v_row from durable.live_workflows l
    where l.workflow_id = _fail.workflow_id and l.lease = _fail.lease for update skip locked;
  end if;
  if not found then
    return durable._why_lost(workflow_id, lease, 'failed');
  end if;
  if v_row.failures + 1 >= v_row.max_attempts or retryable is false then
    if durable._finish(array[workflow_id], array[lease], 'failed', null, array[error], may_wait) is null then
      return 'busy';
    end if;
    return 'ok';
  end if;
  update durable.live_workflows l
  set status = 'pending', lease = null, worker_id = null, failed_lease = l.lease, failures = l.failures + 1, attempt = l.attempt + 1, replay = true,
    error = _fail.error, wake_at = durable._now() + coalesce(
      case when retry_in < interval '0' then interval '0' else retry_in end,
      durable._retry_delay(l.failures + 1, durable._setting('retry_initial')::interval,
        durable._setting('retry_backoff')::double precision, durable._setting('retry_max')::interval))
  where l.workflow_id = _fail.workflow_id;
  perform durable._let_ring();
  perform durable._forget_failed_steps(workflow_id, error);
  perform durable._retry_children(workflow_id, error);
  return 'ok';
end
$$;

create function durable.fail_many(
  workflow_ids uuid[], leases bigint[], errors jsonb[], retry_in interval[] default null, retryable boolean[] default null
)
returns table (item integer, outcome text) language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set enable_nestloop = off
set plan_cache_mode = force_generic_plan set jit = off as $$
declare
  v_outcomes text[];
  v_item record;
begin
  perform durable._check_lengths('workflow_ids, leases, errors, retry_in, retryable',
    durable._length(workflow_ids), durable._length(leases), durable._length(errors),
    coalesce(durable._length(retry_in), durable._length(workflow_ids)), coalesce(durable._length(retryable), durable._length(workflow_ids)));
  v_outcomes := array_fill('ok'::text, array[cardinality(workflow_ids)]);
  for v_item in
    select * from unnest(workflow_ids, leases, errors, retry_in, retryable) with ordinality
      as i(workflow_id, lease, error, retry_in, retryable, n) order by i.workflow_id
  loop
    v_outcomes[v_item.n] := durable._fail(
      v_item.workflow_id, v_item.lease, v_item.error, v_item.retry_in, v_item.retryable, false);
  end loop;
  return query select o.n::integer, o.outcome from unnest(v_outcomes) with ordinality as o(outcome, n);
end
$$;
comment on function durable.fail_many(uuid[], bigint[], jsonb[], interval[], boolean[]) is
  'Reports that attempts of many workflows ended in an error; see durable.fail(). The arrays are parallel. Returns for each '
  'item, in order: ok, busy (another transaction holds the workflow, and nothing was changed: send the item again), or the code of '
  'its error (WF001, WF002, WF004, WF005, WF006); one bad item does not stop the others. '
  'Errors of the whole call: WF005 for arrays of different lengths.';

create function durable.fail(
  workflow_id uuid, lease bigint, error jsonb, retry_in interval default null, retryable boolean default true
)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set enable_nestloop = off
set plan_cache_mode = force_generic_plan set jit = off as $$
declare
  v_outcome text := durable._fail(workflow_id, lease, error, retry_in, retryable, true);
begin
  if v_outcome <> 'ok' then
    perform durable._raise_outcome(v_outcome, workflow_id, lease);
  end if;
end
$$;
comment on function durable.fail(uuid, bigint, jsonb, interval, boolean) is
  'Reports that an attempt of a workflow ended in an error, a JSON value with "type", "message" and what else helps ("step" '
  'names the step that caused it; when that was a wait for children, those that failed run again). While max_attempts is not reached and retryable is true it is tried again after '
  'retry_in, or else after an exponential back-off with jitter (settings retry_initial, retry_backoff, retry_max), going on from '
  'its last checkpoint; otherwise it is failed. Sending it again is harmless. '
  'Errors: WF001, WF002 lease lost, WF004 cancelled, WF005 error is null, WF006.';
