-- A wait is a step: its outcome is a checkpoint. Until then it is an open step, which keeps the time it ends at.

-- The conditions of a wait as they are stored: timers with their times. Those of the first call stand. Null when they are
-- not valid.
create function durable._timed(conditions jsonb, stored jsonb, at timestamptz)
returns jsonb language plpgsql stable as $$
declare
  v_timed jsonb := '[]'::jsonb;
  v_condition jsonb;
  v_known jsonb;
  v_index integer := -1;
begin
  if jsonb_typeof(conditions) <> 'array' then
    return null;
  elsif jsonb_array_length(conditions) > 10000 then
    -- Each is put behind those before it, which takes quadratic time.
    return null;
  end if;
  for v_condition in select c from jsonb_array_elements(conditions) as c loop
    v_index := v_index + 1;
    v_known := stored -> v_index;
    if jsonb_typeof(v_condition) <> 'object' or (select count(*) from jsonb_object_keys(v_condition)) <> 1 then
      return null;
    elsif v_condition ? 'message' then
      if (jsonb_typeof(v_condition -> 'message') = 'string' and char_length(v_condition ->> 'message') between 1 and 200) is not true then
        return null;
      end if;
    elsif v_condition ? 'event' then
      if (jsonb_typeof(v_condition -> 'event') = 'string' and char_length(v_condition ->> 'event') between 1 and 400) is not true then
        return null;
      end if;
    elsif v_condition ? 'approval' then
      if (jsonb_typeof(v_condition -> 'approval') = 'string' and char_length(v_condition ->> 'approval') between 1 and 500) is not true then
        return null;
      end if;
    elsif v_condition ? 'children' then
      if durable._as_first_id(v_condition ->> 'children') is null then
        return null;
      end if;
    elsif v_condition ? 'timer' and jsonb_typeof(v_condition -> 'timer') = 'number'
      and (v_condition ->> 'timer')::numeric between 0 and 3155760000 then
      v_condition := jsonb_build_object('timer_at', coalesce((v_known ->> 'timer_at')::numeric,
        extract(epoch from at) + (v_condition ->> 'timer')::numeric));
    elsif v_condition ? 'timer_at' and jsonb_typeof(v_condition -> 'timer_at') = 'number'
      and (v_condition ->> 'timer_at')::numeric between 0 and 100000000000 then
      v_condition := jsonb_build_object('timer_at', coalesce((v_known ->> 'timer_at')::numeric, (v_condition ->> 'timer_at')::numeric));
    else
      return null;
    end if;
    v_timed := v_timed || v_condition;
  end loop;
  -- To wait for one thing twice would be to wait for two of them; no wait does that.
  if v_index > 0 and (select count(distinct c) <> count(*) from jsonb_array_elements(conditions) as c) then
    return null;
  end if;
  return v_timed;
end
$$;

-- What has come of the conditions of a wait: {"output", "seqs"} when it is over (seqs are the messages that it takes), else
-- {"waits": [the conditions to be woken by], "timer": seconds since 1970}.
create function durable._look(p_workflow_id uuid, p_conditions jsonb, p_mode text, p_at timestamptz)
returns jsonb language plpgsql as $$
declare
  v_all constant boolean := p_mode = 'all';
  v_condition jsonb;
  v_index integer := -1;
  v_values jsonb := '[]'::jsonb;
  v_seqs jsonb := '[]'::jsonb;
  v_waits jsonb := '[]'::jsonb;
  v_timer numeric;
  v_expiry numeric;
  v_request durable.approval_requests;
  v_time numeric;
  v_value jsonb;
  v_seq bigint;
  v_come boolean;
begin
  for v_condition in select c from jsonb_array_elements(p_conditions) as c loop
    v_index := v_index + 1;
    v_seq := null;
    if v_condition ? 'message' then
      select m.payload, m.seq into v_value, v_seq from durable.messages m
      where m.workflow_id = p_workflow_id and m.topic = v_condition ->> 'message' and m.received_by is null
      order by m.seq limit 1;
      v_come := found;
    elsif v_condition ? 'event' then
      select e.payload into v_value from durable.events e where e.event = v_condition ->> 'event';
      v_come := found;
    elsif v_condition ? 'approval' then
      v_request := durable._look_at_request(p_workflow_id, v_condition ->> 'approval', p_at);
      if v_request.approval_id is null then
        return jsonb_build_object('unknown', true);
      end if;
      v_come := v_request.decision is not null or v_request.expired;
      v_value := case when v_come then durable._decision(v_request) end;
      if not v_come then
        -- When its time has passed, a decision is under way: its commit wakes, and should it be rolled back, this does.
        v_expiry := least(v_expiry, extract(epoch from
          case when v_request.expires_at <= p_at then p_at + interval '1 second' else v_request.expires_at end));
      end if;
    elsif v_condition ? 'children' then
      if not durable._is_child((v_condition ->> 'children')::uuid, p_workflow_id) then
        return jsonb_build_object('unknown', true);
      end if;
      v_come := durable._has_come('children', v_condition ->> 'children', p_workflow_id);
      v_value := case when v_come then durable._children_value((v_condition ->> 'children')::uuid, p_workflow_id) end;
    else
      v_time := (v_condition ->> 'timer_at')::numeric;
      v_come := v_time <= extract(epoch from p_at);
      v_value := null;
      if not v_come then
        v_timer := case when v_all then greatest(v_timer, v_time) else least(v_timer, v_time) end;
      end if;
    end if;

    if v_come and not v_all then
      return jsonb_build_object('output', jsonb_build_object('index', v_index, 'value', v_value),
        'seqs', case when v_seq is null then '[]' else jsonb_build_array(v_seq) end);
    elsif v_come then
      v_values := v_values || jsonb_build_array(v_value);
      v_seqs := v_seqs || case when v_seq is null then '[]' else jsonb_build_array(v_seq) end;
    elsif not v_condition ? 'timer_at' and (not v_all or v_waits = '[]') then
      -- Of all that must come, to be woken by one is enough: then it looks again.
      v_waits := v_waits || v_condition;
    end if;
  end loop;
  if v_all and v_waits = '[]' and v_timer is null then
    return jsonb_build_object('output', jsonb_build_object('values', v_values), 'seqs', v_seqs);
  end if;
  return jsonb_build_object('waits', v_waits, 'timer', least(v_timer, v_expiry));
end
$$;

-- The core of both calls. Arrays are parallel; several items of one workflow are waits that are under way together.
create function durable._wait(
  workflow_ids uuid[], leases bigint[], step_names text[], conditions jsonb[], timeouts interval[], untils timestamptz[],
  modes text[], parks boolean[]
)
returns table (item integer, outcome text, output jsonb, error jsonb) language plpgsql as $$
#variable_conflict use_column
declare
  v_now timestamptz;
  v_locked uuid[];
  v_held uuid[];
  v_item record;
  v_timed jsonb;
  v_until timestamptz;
  v_look jsonb;
  v_taker uuid;
  v_outcomes text[] := array_fill(null::text, array[cardinality(workflow_ids)]);
  v_outputs jsonb[] := array_fill(null::jsonb, array[cardinality(workflow_ids)]);
  v_errors jsonb[] := array_fill(null::jsonb, array[cardinality(workflow_ids)]);
  v_over integer[] := '{}'::integer[];
  v_elapsed bigint[] := '{}'::bigint[];
  v_seqs jsonb[] := '{}'::jsonb[];
  v_open integer[] := '{}'::integer[];
  v_untils timestamptz[] := '{}'::timestamptz[];
  v_timeds jsonb[] := '{}'::jsonb[];
  v_wakes timestamptz[] := '{}'::timestamptz[];
  v_waits jsonb[] := '{}'::jsonb[];
  v_parked uuid[];
  v_taken integer;
begin
  -- The xid before the clock, as for every wake_at: see durable.line_marks.
  perform pg_current_xact_id();
  v_now := durable._now();
  -- Nobody else parks, receives or takes a workflow over meanwhile. One of which another transaction holds something, a step with SQL
  -- of its own or a cancellation, is not waited for.
  v_locked := array(
    select l.workflow_id from durable.live_workflows l where l.workflow_id = any(_wait.workflow_ids)
    order by l.workflow_id for update skip locked);
  v_held := durable._with_held_rows(v_locked);
  if cardinality(v_held) > 0 then
    v_locked := array(select l.id from unnest(v_locked) as l(id) where l.id <> all(v_held));
  end if;

  for v_item in
    select u.*, coalesce(u.mode, 'any') as known_mode,
      (select l.lease from durable.live_workflows l where l.workflow_id = u.workflow_id) as held,
      (select l.parked_lease from durable.live_workflows l where l.workflow_id = u.workflow_id) as parked,
      (select o from durable.open_steps o where o.workflow_id = u.workflow_id and o.step_name = u.step_name) as open,
      w.item is not null as over, w.output, w.error
    from unnest(workflow_ids, leases, step_names, _wait.conditions, timeouts, untils, modes) with ordinality
      as u(workflow_id, lease, step_name, conditions, timeout, until, mode, n)
    left join durable._outcomes(workflow_ids, step_names) w on w.item = u.n
    order by u.workflow_id, u.n
  loop
    v_timed := durable._timed(v_item.conditions, (v_item.open).waits_for, v_now);
    v_until := case when (v_item.open).waits_for is not null then (v_item.open).wait_until
      else least(v_item.until, v_now + v_item.timeout) end;
    if (char_length(v_item.step_name) between 1 and 500 and v_item.known_mode in ('any', 'all') and v_timed is not null
        and (v_timed <> '[]' or v_until is not null)) is not true
      or v_item.timeout not between interval '0' and durable._longest() or not isfinite(v_item.until) then
      v_outcomes[v_item.n] := 'WF005';
    elsif v_item.held is distinct from v_item.lease then
      v_outcomes[v_item.n] := case when v_item.parked = v_item.lease then 'parked'
        else durable._why_lost(v_item.workflow_id, v_item.lease) end;
    elsif v_item.over then
      v_outcomes[v_item.n] := 'exists';
      v_outputs[v_item.n] := v_item.output;
      v_errors[v_item.n] := v_item.error;
    elsif cardinality(v_locked) < cardinality(workflow_ids) and v_item.workflow_id <> all(v_locked) then
      v_outcomes[v_item.n] := 'waiting';
    else
      begin
        v_look := case when v_timed <> '[]' then durable._look(v_item.workflow_id, v_timed, v_item.known_mode, v_now) end;
      exception when program_limit_exceeded then
        -- What has come is too much for one jsonb, or nested too deep to be part of another.
        v_look := '{"too_large": true}'::jsonb;
      end;
      if v_look ? 'unknown' then
        v_outcomes[v_item.n] := 'WF005';
      elsif v_look ? 'too_large' then
        v_outcomes[v_item.n] := 'WF006';
      elsif v_look ? 'output' and v_look -> 'seqs' <> '[]' and v_taker = v_item.workflow_id then
        -- Another wait of the same workflow takes a message in this call; this one may be after the same.
        v_outcomes[v_item.n] := 'waiting';
      elsif v_look ? 'output' or v_until <= v_now then
        v_outcomes[v_item.n] := case when v_look ? 'output' or v_timed = '[]' then 'ok' else 'timeout' end;
        v_outputs[v_item.n] := case when v_look ? 'output' then v_look -> 'output'
          when v_timed <> '[]' then '{"timed_out": true}' end;
        v_over := v_over || v_item.n::integer;
        -- Within what a step may take: the clock may have been set back or forward since it began.
        v_elapsed := v_elapsed || least(3000000000000, greatest(0,
          extract(epoch from v_now - coalesce((v_item.open).started_at, v_now)) * 1000))::bigint;
        v_seqs := v_seqs || coalesce(v_look -> 'seqs', '[]');
        v_taker := case when v_look -> 'seqs' <> '[]' then v_item.workflow_id else v_taker end;
      else
        v_outcomes[v_item.n] := 'parked';
        v_open := v_open || v_item.n::integer;
        v_untils := v_untils || v_until;
        v_timeds := v_timeds || v_timed;
        v_wakes := v_wakes || least(v_until, to_timestamp((v_look ->> 'timer')::double precision));
        v_waits := v_waits || coalesce(v_look -> 'waits', '[]');
      end if;
    end if;
  end loop;

  if cardinality(v_over) > 0 then
    for v_item in
      select r.* from durable._checkpoint(
        array(select workflow_ids[n] from unnest(v_over) as n), array(select leases[n] from unnest(v_over) as n),
        array(select step_names[n] from unnest(v_over) as n), array(select v_outputs[n] from unnest(v_over) as n),
        null, null, v_elapsed, false) r
    loop
      v_outcomes[v_over[v_item.item]] := case v_item.outcome when 'busy' then 'waiting' else v_item.outcome end;
      v_outputs[v_over[v_item.item]] := v_item.output;
      v_errors[v_over[v_item.item]] := v_item.error;
      v_seqs[v_item.item] := '[]';
    end loop;
    update durable.messages m set received_by = t.step_name
    from (select workflow_ids[o.n] as workflow_id, step_names[o.n] as step_name, s.seq::bigint
          from unnest(v_over, v_seqs) as o(n, seqs), jsonb_array_elements_text(o.seqs) as s(seq)) t
    where m.workflow_id = any(_wait.workflow_ids) and m.workflow_id = t.workflow_id and m.seq = t.seq;
  end if;

  if cardinality(v_open) > 0 then
    insert into durable.open_steps (workflow_id, lease, started_at, step_name, wait_until, waits_for)
    select workflow_ids[o.n], leases[o.n], v_now, step_names[o.n], o.until, o.timed
    from unnest(v_open, v_untils, v_timeds) as o(n, until, timed)
    order by workflow_ids[o.n], step_names[o.n]
    on conflict on constraint open_steps_pkey do update
      -- A heartbeat may have taken it for a long step.
      set wait_until = excluded.wait_until, waits_for = excluded.waits_for
      where open_steps.waits_for is null;

    -- A workflow parks when there is nothing else that it could go on with.
    with item as materialized (
      select workflow_ids[i.n] as workflow_id, i.outcome, parks[i.n] is not false as park
      from unnest(v_outcomes) with ordinality as i(outcome, n)
    ), open as materialized (
      select workflow_ids[o.n] as workflow_id, o.wake_at, o.waits
      from unnest(v_open, v_wakes, v_waits) as o(n, wake_at, waits)
    ), resting as materialized (
      select o.workflow_id, min(o.wake_at) as wake_at, bool_or(o.waits <> '[]') as waits
      from open o
      where o.workflow_id in (select i.workflow_id from item i group by i.workflow_id having bool_and(i.outcome = 'parked' and i.park))
      group by o.workflow_id
    ), waiting as (
      insert into durable.waits (workflow_id, kind, subject)
      select o.workflow_id, c.kind, c.subject
      from open o, jsonb_array_elements(o.waits) as w, jsonb_each_text(w) as c(kind, subject)
      where o.workflow_id in (select r.workflow_id from resting r)
      on conflict on constraint waits_pkey do nothing
    ), parked as (
      update durable.live_workflows l
      set status = case when r.waits then 'waiting' else 'sleeping' end, wake_at = r.wake_at,
        parked_lease = l.lease, lease = null, worker_id = null, replay = true
      from resting r
      where l.workflow_id = any(_wait.workflow_ids) and l.workflow_id = r.workflow_id
      returning l.workflow_id
    )
    select array_agg(p.workflow_id) into v_parked from parked p;
    if coalesce(cardinality(v_parked), 0) < cardinality(v_open) then
      foreach v_taken in array v_open loop
        if (workflow_ids[v_taken] = any(v_parked)) is not true then
          v_outcomes[v_taken] := 'waiting';
        end if;
      end loop;
    end if;
  end if;
  return query
  select i.n::integer, i.outcome, i.output, i.error
  from unnest(v_outcomes, v_outputs, v_errors) with ordinality as i(outcome, output, error, n);
end
$$;

create function durable.wait_many(
  workflow_ids uuid[], leases bigint[], step_names text[], conditions jsonb[], timeouts interval[] default null,
  untils timestamptz[] default null, modes text[] default null, parks boolean[] default null
)
returns table (item integer, outcome text, output jsonb, error jsonb) language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set enable_nestloop = off
set plan_cache_mode = force_generic_plan set jit = off as $$
#variable_conflict use_column
begin
  perform durable._check_lengths('workflow_ids, leases, step_names, conditions',
    durable._length(workflow_ids), durable._length(leases), durable._length(step_names), durable._length(wait_many.conditions));
  perform durable._check_lengths('workflow_ids, timeouts, untils, modes, parks', durable._length(workflow_ids),
    coalesce(durable._length(timeouts), durable._length(workflow_ids)), coalesce(durable._length(untils), durable._length(workflow_ids)),
    coalesce(durable._length(modes), durable._length(workflow_ids)), coalesce(durable._length(parks), durable._length(workflow_ids)));
  return query
  select w.* from durable._wait(workflow_ids, leases, step_names, wait_many.conditions, timeouts, untils, modes, parks) w;
end
$$;
comment on function durable.wait_many(uuid[], bigint[], text[], jsonb[], interval[], timestamptz[], text[], boolean[]) is
  'The waits of many workflows in one statement; see durable.wait(). The arrays are parallel. Several items of one workflow are '
  'waits that are under way together: it parks when none of them is over, to be woken by any of them. Where an element of parks '
  'is false, it does not park, and keeps its lease. Returns for each item, in order: ok, timeout or exists with the output, '
  'parked, waiting (not over and not parked: ask again), or the code of its error (WF001, WF002, WF004, WF005, WF006); one bad '
  'item does not stop the others. Errors of the whole call: WF005 for arrays of different lengths.';

create function durable.wait(
  workflow_id uuid, lease bigint, step_name text, conditions jsonb default '[]', timeout interval default null,
  until timestamptz default null, mode text default 'any', park boolean default true
)
returns table (outcome text, output jsonb) language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set enable_nestloop = off
set plan_cache_mode = force_generic_plan set jit = off as $$
#variable_conflict use_variable
declare
  v_result record;
begin
  select w.* into v_result from durable._wait(array[workflow_id], array[lease], array[step_name], array[conditions],
    array[timeout], array[until], array[mode], array[park]) w;
  if v_result.outcome = 'WF005' then
    perform durable._raise('WF005', format('workflow %s, step %L: the wait is not valid', workflow_id, step_name),
      'Nothing was changed.',
      'conditions is a JSON array of at most 10000 different ones: {"message": topic}, {"event": name}, {"children": id of the first of its own}, '
      '{"approval": step that requested it}, {"timer": seconds} or {"timer_at": seconds since 1970}; without any there must be a timeout, of 0 to 100 years, or a finite until; mode is any or all; a '
      'step name has 1 to 500 characters.');
  elsif v_result.outcome like 'WF%' then
    perform durable._raise_outcome(v_result.outcome, workflow_id, lease, step_name);
  elsif v_result.error is not null then
    perform durable._raise('WF007', format('workflow %s, step %L: it is already stored as failed', workflow_id, step_name),
      v_result.error ->> 'message', 'The first outcome of a step stands; durable.retry() lets a failed one run again.');
  end if;
  return query select v_result.outcome, v_result.output;
end
$$;
comment on function durable.wait(uuid, bigint, text, jsonb, interval, timestamptz, text, boolean) is
  'Waits, as a step of a workflow, for any or all (mode) of the conditions: [{"message": topic}, {"event": name}, {"children": what '
  'durable.start_children() returned}, {"approval": the step that requested it}, {"timer": seconds}, {"timer_at": seconds since '
  '1970}]. Without conditions it sleeps. timeout, or until, ends it by the database''s clock; '
  'the times of the first call stand, whatever later ones say. outcome is ok when the conditions are met: output is {"index": '
  'which (from 0), "value": payload} for any, {"values": [payloads]} for all, null for a sleep; messages are received in the same '
  'statement. The value of children is {"first": id, "children": how many, "failed": {place from 0: {"status", "error"}}, "outputs": [those '
  'of all, in order]}, where outputs is left out when they are large: durable.child_results() has them. That of an approval is '
  '{"approval_id", "decision", "data", "by", "comment", "decided_at", "expired"}; when it has expired, decision is null. timeout: output is {"timed_out": true}. exists: it was over before, and output is what was stored. parked: the '
  'lease is given up, and the workflow is in line again when it is time to make the same call again; until then it holds '
  'nothing. With park => false it keeps the lease, and the outcome is waiting: ask again later, as also when another '
  'transaction holds the workflow. Sending it again is harmless. Errors: WF001 workflow not found, WF002 lease lost, WF004 '
  'cancelled, WF005 invalid argument, WF006 output too large, WF007 the step is stored as failed.';

create function durable.recheck_waits(workflow_ids uuid[])
returns integer language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
begin
  if pg_is_in_recovery() then
    perform durable._refuse_standby();
  end if;
  perform durable._let_ring();
  return cardinality(durable._wake(array(
    select distinct w.workflow_id from durable.waits w
    where w.workflow_id = any(recheck_waits.workflow_ids) and durable._has_come(w.kind, w.subject, w.workflow_id))));
end
$$;
comment on function durable.recheck_waits(uuid[]) is
  'Looks once more at workflows that were just parked, and puts those in line whose message, event, child''s end or decision came at that very moment; '
  'returns how many. Call it after the parking is committed, so that nothing has to wait for the next durable.tick().';
