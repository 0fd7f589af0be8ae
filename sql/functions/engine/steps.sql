-- The core of every checkpoint call. Returns a row only for the items that were not simply stored.
create function durable._checkpoint(
  workflow_ids uuid[], leases bigint[], step_names text[], outputs jsonb[], errors jsonb[], attempts integer[],
  elapsed_ms bigint[], may_wait boolean default true
)
returns table (item integer, outcome text, output jsonb, error jsonb) language plpgsql as $$
#variable_conflict use_column
declare
  v_late uuid[] := durable._ensure_partitions(workflow_ids, may_wait);
  v_limit bigint := durable._max_payload();
  v_small bigint := durable._small_enough(v_limit);
  v_now timestamptz := durable._now();
  v_stored_ids uuid[];
  v_stored_names text[];
  v_suspected boolean;
begin
  -- No row lock on the workflow: if its lease is taken away at this moment, the next owner and this call are still
  -- ordered by the constraint on (workflow_id, step_name), where the later one waits and adopts.
  with held as materialized (
    select i.*, l.suspicions
    from unnest(workflow_ids, leases, step_names, outputs, errors, attempts, elapsed_ms)
      as i(workflow_id, lease, step_name, output, error, attempt, elapsed_ms)
    join durable.live_workflows l on l.workflow_id = i.workflow_id and l.lease = i.lease
    where l.workflow_id = any(_checkpoint.workflow_ids)
  ), stored as (
    insert into durable.checkpoints (workflow_id, started_at, completed_at, attempt, status, step_name, output, error)
    select i.workflow_id, v_now - i.elapsed_ms * interval '1 millisecond', v_now, coalesce(i.attempt, 1),
      case when i.error is null then 'completed' else 'error' end, i.step_name,
      case when i.error is null then i.output end, i.error
    from held i
    where char_length(i.step_name) between 1 and 500
      and (i.elapsed_ms between 0 and 3000000000000) is not false and (i.attempt >= 1) is not false
      and (pg_column_size(i.output) > v_small and durable._is_too_large(i.output, v_limit)) is not true
      and (pg_column_size(i.error) > v_small and durable._is_too_large(i.error, v_limit)) is not true
      and (i.workflow_id = any(v_late)) is not true
    order by i.workflow_id, i.step_name
    on conflict do nothing
    returning workflow_id, step_name
  ), closed as (
    delete from durable.open_steps o using stored s
    where o.workflow_id = any(_checkpoint.workflow_ids) and o.workflow_id = s.workflow_id and o.step_name = s.step_name
  )
  select array_agg(s.workflow_id), array_agg(s.step_name), (select bool_or(h.suspicions > 0) from held h)
    into v_stored_ids, v_stored_names, v_suspected
  from stored s;
  if v_suspected then
    perform durable._clear(v_stored_ids);
  end if;
  if cardinality(v_stored_ids) = cardinality(workflow_ids) then
    return;
  end if;

  return query
  with item as materialized (
    select i.*
    from unnest(workflow_ids, leases, step_names, outputs, errors, attempts, elapsed_ms) with ordinality
      as i(workflow_id, lease, step_name, output, error, attempt, elapsed_ms, n)
    where not exists (
      select from unnest(v_stored_ids, v_stored_names) as s(workflow_id, step_name)
      where s.workflow_id = i.workflow_id and s.step_name = i.step_name)
  ), winner as materialized (
    select o.* from durable._outcomes(
      array(select i.workflow_id from item i order by i.n), array(select i.step_name from item i order by i.n)) o
  )
  select i.n::integer,
    case when (char_length(i.step_name) between 1 and 500) is not true or i.attempt < 1
        or i.elapsed_ms not between 0 and 3000000000000 then 'WF005'
      when durable._is_too_large(i.output, v_limit) or durable._is_too_large(i.error, v_limit) then 'WF006'
      when not exists (select from durable.live_workflows l where l.workflow_id = i.workflow_id and l.lease = i.lease)
        then durable._why_lost(i.workflow_id, i.lease)
      when i.workflow_id = any(v_late) then 'busy'
      else 'exists' end,
    w.output, w.error
  from (select i.*, row_number() over (order by i.n) as place from item i) i
  left join winner w on w.item = i.place
  order by i.n;
end
$$;

-- How many elements an array has; -1 for one that is not numbered from 1 in one dimension, so that an index means another element
-- than its place.
create function durable._length(elements anyarray)
returns integer language sql immutable parallel safe as $$
  select case when array_ndims(elements) > 1 or array_lower(elements, 1) <> 1 then -1 else cardinality(elements) end
$$;

-- Parallel arrays of one call have one length. Names are for the message.
create function durable._check_lengths(names text, variadic lengths integer[])
returns void language plpgsql as $$
begin
  if -1 = any (lengths) then
    perform durable._raise('WF005', format('the arrays %s must have one dimension, and indexes from 1', names),
      'Nothing was changed.', 'Pass flat arrays, for example array[...].');
  end if;
  if (lengths[1] = all (lengths)) is not true then
    perform durable._raise('WF005', format('the arrays %s must have one length, not %s', names,
        (select string_agg(coalesce(l::text, 'NULL'), ', ') from unnest(lengths) as l)),
      'Nothing was changed.', 'Pass one element of each for every item; elements may be NULL where the function allows it.');
  end if;
end
$$;

create function durable.checkpoint_many(
  workflow_ids uuid[], leases bigint[], step_names text[], outputs jsonb[],
  errors jsonb[] default null, attempts integer[] default null, elapsed_ms bigint[] default null
)
returns table (item integer, outcome text, output jsonb, error jsonb) language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set enable_nestloop = off
set plan_cache_mode = force_generic_plan set jit = off as $$
#variable_conflict use_column
begin
  perform durable._check_lengths('workflow_ids, leases, step_names, outputs',
    durable._length(workflow_ids), durable._length(leases), durable._length(step_names), durable._length(outputs));
  perform durable._check_lengths('workflow_ids, errors, attempts, elapsed_ms', durable._length(workflow_ids),
    coalesce(durable._length(errors), durable._length(workflow_ids)), coalesce(durable._length(attempts), durable._length(workflow_ids)),
    coalesce(durable._length(checkpoint_many.elapsed_ms), durable._length(workflow_ids)));
  return query
  select i.n, coalesce(r.outcome, 'ok'), r.output, r.error
  from generate_series(1, cardinality(workflow_ids)) as i(n)
  left join durable._checkpoint(
      workflow_ids, leases, step_names, outputs, errors, attempts, checkpoint_many.elapsed_ms, false) r
    on r.item = i.n
  order by i.n;
end
$$;
comment on function durable.checkpoint_many(uuid[], bigint[], text[], jsonb[], jsonb[], integer[], bigint[]) is
  'Stores the outcomes of many steps in one statement. The arrays are parallel; an element of errors that is not null makes '
  'that step an error. attempts and elapsed_ms (milliseconds) are for the record. Returns for each item, in order: ok (stored), '
  'exists (another checkpoint of that step was first: output and error are the stored ones), busy (another transaction keeps it '
  'from being stored, and nothing was changed: send the item again), or the code of its error '
  '(WF001, WF002, WF004, WF005, WF006); one bad item does not stop the others. Errors of the whole call: WF005 for arrays of '
  'different lengths.';

create function durable.checkpoint(workflow_id uuid, lease bigint, step_name text, output jsonb default null)
returns jsonb language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set enable_nestloop = off
set plan_cache_mode = force_generic_plan set jit = off as $$
#variable_conflict use_variable
declare
  v_result record;
begin
  select r.outcome, r.output, r.error into v_result
  from durable._checkpoint(array[workflow_id], array[lease], array[step_name], array[output], null, null, null) r;
  if v_result.outcome is null then
    return output;
  elsif v_result.outcome <> 'exists' then
    perform durable._raise_outcome(v_result.outcome, workflow_id, lease, step_name);
  elsif v_result.error is not null then
    perform durable._raise('WF007', format('workflow %s, step %L: it is already stored as failed', workflow_id, step_name),
      v_result.error ->> 'message', 'The first outcome of a step stands; durable.retry() lets a failed one run again.');
  end if;
  return v_result.output;
end
$$;
comment on function durable.checkpoint(uuid, bigint, text, jsonb) is
  'Stores the output of a step and returns the stored one, which is another writer''s if that one was first. Sending it again '
  'is harmless. Errors: WF001 workflow not found, WF002 lease lost, WF004 cancelled, WF005 step name not of 1 to 500 '
  'characters, WF006 output too large, WF007 the step is already stored as failed.';

-- Holds the lease until the end of the transaction: whoever wants to take it away waits or passes by. Returns the worker.
create function durable._hold_lease(workflow_id uuid, lease bigint, step_name text)
returns integer language plpgsql as $$
declare
  v_worker_id integer;
begin
  select l.worker_id into v_worker_id from durable.live_workflows l
  where l.workflow_id = _hold_lease.workflow_id and l.lease = _hold_lease.lease for share;
  if not found then
    perform durable._raise_outcome(durable._why_lost(workflow_id, lease), workflow_id, lease, step_name);
  end if;
  perform durable._require(char_length(step_name) between 1 and 500,
    format('workflow %s: a step name must have 1 to 500 characters', workflow_id), 'Shorten the name.');
  return v_worker_id;
end
$$;

create function durable._raise_done(workflow_id uuid, step_name text)
returns void language plpgsql as $$
begin
  if exists (select from durable._outcomes(array[workflow_id], array[step_name])) then
    perform durable._raise('WF008', format('workflow %s, step %L: it is already done', workflow_id, step_name),
      'This step is not run again.', 'Go on with its outcome: select * from durable.step_result(...).');
  end if;
end
$$;

create function durable.begin_step(workflow_id uuid, lease bigint, step_name text)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_variable
declare
  v_worker_id integer;
begin
  -- If the client's host vanishes, the server must notice within about a lease, because the row stays locked until then.
  -- The setting is 0 over a Unix socket. A stricter one is kept.
  if current_setting('tcp_keepalives_idle')::integer > 10 then
    perform set_config('tcp_keepalives_idle', '10', true), set_config('tcp_keepalives_interval', '5', true),
      set_config('tcp_keepalives_count', '3', true), set_config('tcp_user_timeout', '25000', true);
  end if;
  v_worker_id := durable._hold_lease(workflow_id, lease, step_name);
  -- With the first lock, on which nobody ever waits, recovery finds this session when the worker is dead. The second allows one
  -- call at a time: when a call is sent twice, the second one waits here, and finds the checkpoint of the first.
  perform pg_advisory_xact_lock_shared(durable._step_lock_class(), v_worker_id),
    pg_advisory_xact_lock(hashtextextended(workflow_id || step_name, 0));
  perform durable._raise_done(workflow_id, step_name);
end
$$;
comment on function durable.begin_step(uuid, bigint, text) is
  'Opens a transactional step: call it first in a transaction, then run the SQL of the step, then call durable.checkpoint() and '
  'commit. The lease is held until the transaction ends, so that the work and its checkpoint are committed exactly once, by '
  'the owner. Errors: WF008 when the step is already done (durable.step_result() has the outcome), WF001, WF002, WF004, WF005.';

create function durable.start_step(
  workflow_id uuid, lease bigint, step_name text, attempt integer default 1
)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_variable
declare
  v_lease bigint;
begin
  perform durable._require(attempt >= 1, format('workflow %s, step %L: the attempt must be 1 or more', workflow_id, step_name),
    'Count from 1.');
  perform durable._hold_lease(workflow_id, lease, step_name);
  insert into durable.open_steps (workflow_id, lease, started_at, attempt, at_most_once, step_name)
  values (workflow_id, lease, durable._now(), attempt, true, step_name)
  on conflict on constraint open_steps_pkey do nothing;
  -- Only now: the insert may have waited for an earlier owner to store the outcome.
  perform durable._raise_done(workflow_id, step_name);
  select o.lease into v_lease from durable.open_steps o
  where o.workflow_id = start_step.workflow_id and o.step_name = start_step.step_name and o.at_most_once;
  if v_lease is distinct from lease then
    perform durable._raise('WF008', format('workflow %s, step %L: it was interrupted', workflow_id, step_name),
      'An earlier owner recorded its start and did not report its end; whether it took effect is not known. An at-most-once '
      'step is not run again.',
      'Find out what it did outside, then handle this error in the workflow, or store the right result with durable.checkpoint().');
  end if;
end
$$;
comment on function durable.start_step(uuid, bigint, text, integer) is
  'Records the start of an at-most-once step; run its body only after this is committed. Sending it again under the same '
  'lease is harmless. Errors: WF008 when an earlier owner has started it, or it is done (durable.step_result() has the '
  'outcome), WF001, WF002, WF004, WF005.';

-- The wait before attempt + 1, with half of it left to chance so that those who failed together do not return together.
create function durable._retry_delay(attempt integer, initial interval, backoff double precision, max_delay interval)
returns interval language sql volatile as $$
  select make_interval(secs => (0.5 + random() / 2) * least(
    extract(epoch from max_delay)::double precision,
    extract(epoch from initial)::double precision * exp(least(ln(backoff) * (attempt - 1), 50))))
$$;

create function durable.fail_step(
  workflow_id uuid, lease bigint, step_name text, error jsonb, attempt integer default 1, max_attempts integer default 1,
  initial interval default '1 second', backoff double precision default 2, max_delay interval default '5 minutes'
)
returns interval language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set enable_nestloop = off
set plan_cache_mode = force_generic_plan set jit = off as $$
#variable_conflict use_variable
declare
  v_now timestamptz;
  v_stored text;
  v_outcome text;
  v_retry_at timestamptz;
begin
  perform durable._require(error is not null and attempt >= 1 and max_attempts >= 1 and backoff between 1 and 1000
      and initial between interval '0' and durable._longest() and max_delay between interval '0' and durable._longest(),
    format('workflow %s, step %L: the error or the retry policy is not valid', workflow_id, step_name),
    'attempt and max_attempts start at 1, backoff is 1 to 1000, initial and max_delay are 0 to 100 years, error is not null.');
  if durable._is_too_large(error, durable._max_payload()) then
    perform durable._raise_outcome('WF006', workflow_id, lease, step_name);
  end if;
  perform durable._hold_lease(workflow_id, lease, step_name);
  v_now := durable._now();
  v_stored := (select o.status from durable._outcomes(array[workflow_id], array[step_name]) o);
  perform durable._require((v_stored = 'completed') is not true,
    format('workflow %s, step %L: it is already completed', workflow_id, step_name), 'The first outcome of a step stands.');
  -- What runs at most once has one attempt, whatever the policy says.
  if attempt >= max_attempts or v_stored is not null or exists (
      select from durable.open_steps o
      where o.workflow_id = fail_step.workflow_id and o.step_name = fail_step.step_name and o.at_most_once) then
    select r.outcome into v_outcome from durable._checkpoint(
      array[workflow_id], array[lease], array[step_name], array[null::jsonb], array[error], array[attempt], null) r;
    if v_outcome <> 'exists' then
      perform durable._raise_outcome(v_outcome, workflow_id, lease, step_name);
    end if;
    return null;
  end if;

  insert into durable.open_steps as o (workflow_id, lease, started_at, retry_at, attempt, step_name, error)
  values (workflow_id, lease, v_now, v_now + durable._retry_delay(attempt, initial, backoff, max_delay), attempt + 1,
    step_name, error)
  on conflict on constraint open_steps_pkey do update
    set lease = excluded.lease, retry_at = excluded.retry_at, attempt = excluded.attempt, error = excluded.error
    -- The same report again finds the attempt already counted.
    where o.attempt < excluded.attempt and not o.at_most_once
  returning o.retry_at into v_retry_at;
  if not found then
    select o.retry_at into v_retry_at
    from durable.open_steps o where o.workflow_id = fail_step.workflow_id and o.step_name = fail_step.step_name;
  end if;
  return greatest(interval '0', v_retry_at - v_now);
end
$$;
comment on function durable.fail_step(uuid, bigint, text, jsonb, integer, integer, interval, double precision, interval) is
  'Reports that an attempt of a step failed, and returns how long to wait before the next one: initial * backoff^(attempt - 1), '
  'at most max_delay, the second half of it at random. Returns null after the last attempt; the error is then the outcome of '
  'the step. The count and the time of the next attempt survive a crash. Sending the same attempt again counts once. '
  'Errors: WF001, WF002, WF004, WF005, WF006.';

create function durable._open_running_steps(running_steps jsonb)
returns void language plpgsql set lock_timeout = '50ms' as $$
declare
  v_now timestamptz := durable._now();
begin
  insert into durable.open_steps as o (workflow_id, lease, started_at, attempt, step_name)
  with running as materialized (
    select s.*, row_number() over () as n
    from jsonb_to_recordset(running_steps) as s(workflow_id uuid, lease bigint, step_name text, attempt integer, elapsed_ms bigint)
    where s.elapsed_ms >= 0 and char_length(s.step_name) between 1 and 500
      and exists (select from durable.live_workflows l where l.workflow_id = s.workflow_id and l.lease = s.lease)
  ), ended as materialized (
    select e.item from durable._outcomes(
      array(select r.workflow_id from running r order by r.n), array(select r.step_name from running r order by r.n)) e
  )
  select s.workflow_id, s.lease, v_now - s.elapsed_ms * interval '1 millisecond', coalesce(s.attempt, 1), s.step_name
  from running s
  where s.n not in (select e.item from ended e)
  order by s.workflow_id, s.step_name
  on conflict on constraint open_steps_pkey do update
    set lease = excluded.lease, started_at = excluded.started_at, attempt = excluded.attempt, retry_at = null, error = null
    where (o.lease, o.attempt, o.retry_at is null) is distinct from (excluded.lease, excluded.attempt, true)
      and not o.at_most_once and o.attempt <= excluded.attempt;
end
$$;

create function durable.step_result(workflow_id uuid, step_name text)
returns table (status text, output jsonb, error jsonb) language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
begin
  return query select o.status, o.output, o.error from durable._outcomes(array[workflow_id], array[step_name]) o;
end
$$;
comment on function durable.step_result(uuid, text) is
  'The stored outcome of one step; no row when there is none yet.';
