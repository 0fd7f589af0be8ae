-- Puts workflows whose time has come in line, the longest due first. Those that are paused take their place when resumed.
create function durable._wake_due(max_workflows integer)
returns integer language plpgsql as $$
declare
  v_after timestamptz := durable._timers_after(0);
  v_now timestamptz := durable._now();
  v_ids uuid[];
  v_held uuid[];
  v_places durable.place[];
begin
  if not exists (select from durable.live_workflows l where l.wake_at > v_after and l.wake_at <= v_now) then
    return 0;
  end if;
  perform pg_current_xact_id();
  v_ids := array(
    select d.workflow_id from durable.live_workflows d
    where d.wake_at > v_after and d.wake_at <= v_now
    order by d.wake_at limit max_workflows for update skip locked);
  v_held := durable._with_held_waits(v_ids);
  if cardinality(v_held) > 0 then
    -- What is held must not take the place of others.
    v_ids := array(
      select d.workflow_id from durable.live_workflows d
      where d.wake_at > v_after and d.wake_at <= v_now and d.workflow_id <> all(v_held) and (d.workflow_id = any(v_ids)
        or not exists (select from durable.waits w where w.workflow_id = d.workflow_id and w.xmax <> '0'::xid))
      order by d.wake_at limit max_workflows for update skip locked);
  end if;
  with woken as (
    update durable.live_workflows l
    set status = 'pending', wake_at = null, ready_seq = case when l.paused_at is null then nextval('durable.ready_seq') end
    where l.workflow_id = any(v_ids)
    returning l.workflow_id, l.ready_seq, row(l.line_id, l.priority, l.queue, l.name)::durable.place as place
  )
  select array_agg(w.workflow_id), array_agg(w.place) filter (where w.ready_seq is not null) into v_ids, v_places from woken w;
  delete from durable.waits w where w.workflow_id = any(v_ids);
  perform durable._line_up(v_places);
  return coalesce(cardinality(v_ids), 0);
end
$$;

-- Ends workflows whose timeout has passed.
create function durable._time_out(max_workflows integer)
returns integer language plpgsql as $$
declare
  v_after timestamptz := durable._timers_after(1);
  v_now timestamptz := durable._now();
  v_ids uuid[];
  v_held uuid[];
  v_worker_ids integer[];
  v_error jsonb := jsonb_build_object(
    'code', 'WF010', 'type', 'WorkflowTimedOut', 'message', 'the timeout of the workflow has passed');
begin
  v_ids := array(
    select l.workflow_id from durable.live_workflows l
    where l.deadline > v_after and l.deadline <= v_now
    order by l.deadline limit max_workflows for update skip locked);
  v_held := durable._with_held_rows(v_ids);
  if cardinality(v_held) > 0 then
    -- As above.
    v_ids := array(
      select l.workflow_id from durable.live_workflows l
      where l.deadline > v_after and l.deadline <= v_now and l.workflow_id <> all(v_held) and (l.workflow_id = any(v_ids)
        or not exists (select from durable.waits w where w.workflow_id = l.workflow_id and w.xmax <> '0'::xid)
        and not exists (select from durable.open_steps s where s.workflow_id = l.workflow_id and s.xmax <> '0'::xid))
      order by l.deadline limit max_workflows for update skip locked);
  end if;
  if cardinality(v_ids) = 0 then
    return 0;
  end if;
  v_worker_ids := array(select l.worker_id from durable.live_workflows l where l.workflow_id = any(v_ids));
  perform durable._fail_many_now(v_ids, v_error);
  perform durable._tell(v_worker_ids, 'cancel');
  return cardinality(v_ids);
end
$$;

-- Workers share the ticks: each has its turn on the database's clock, so that they are evenly spaced however many workers
-- there are, and a dead one leaves one gap. Returns the milliseconds until the next turn of a worker, or until it should ask
-- again: were its turn minutes away, and most of the others gone by then, nobody would tick.
create function durable._next_turn(worker text)
returns integer language plpgsql as $$
declare
  v_slot constant numeric := 0.5;
  v_longest constant numeric := 30.0;
  v_count bigint;
  v_rank bigint;
  v_period numeric;
  v_wait numeric;
begin
  select count(*), count(*) filter (where w.worker_id < (
      select o.worker_id from durable.workers o where o.name = worker and o.died_at is null))
    into v_count, v_rank from durable.workers w where w.died_at is null;
  v_period := greatest(v_count * v_slot, 0.85);
  v_wait := v_period - mod(extract(epoch from durable._now()) - v_rank * v_slot, v_period);
  if v_wait < v_slot / 2 then
    v_wait := v_wait + v_period;
  end if;
  return ceil(1000 * case when v_wait > v_longest then v_longest * (0.75 + random() / 4) else v_wait end)::integer;
exception when lock_not_available then
  return (1000 * v_slot)::integer;
end
$$;

-- When a tick looked last, as far as that is known; null when it is not.
create function durable._last_tick()
returns timestamptz language plpgsql stable as $$
begin
  return (select m.looked_at from durable.tick_marks m order by m.looked_at desc limit 1);
exception when lock_not_available then
  return null;
end
$$;

-- Notes that a tick has looked, unless it is known well enough.
create function durable._mark_tick(p_at timestamptz)
returns void language plpgsql as $$
begin
  if durable._last_tick() between p_at - interval '1 second' and p_at then
    return;
  end if;
  update durable.tick_marks m set looked_at = p_at
  where m.ctid = any(array(select o.ctid from durable.tick_marks o order by o.looked_at desc limit 1 for update skip locked));
  if not found then
    -- The first one, or another tick stays open that has noted it.
    insert into durable.tick_marks (looked_at) values (p_at);
  end if;
  delete from durable.tick_marks m
  where m.ctid = any(array(
    select o.ctid from durable.tick_marks o where o.looked_at not between p_at - interval '1 minute' and p_at for update skip locked));
exception when lock_not_available then
  null;
end
$$;

-- Keeps a list of the parts of the tick that fail, or that somebody's lock keeps from their work, for durable.health(). p_troubles
-- is {part: {"code", "error"}}, p_parts are those that were tried.
create function durable._note_troubles(p_troubles jsonb, p_parts text[], p_at timestamptz)
returns void language plpgsql as $$
begin
  if p_troubles = '{}' and not exists (select from durable.tick_troubles) then
    return;
  end if;
  delete from durable.tick_troubles t
  where t.ctid = any(array(
    select o.ctid from durable.tick_troubles o where o.part = any(p_parts) and not p_troubles ? o.part for update skip locked));
  update durable.tick_troubles t
  set last_at = p_at, code = p_troubles #>> array[t.part, 'code'], error = p_troubles #>> array[t.part, 'error']
  where t.ctid = any(array(
    select o.ctid from durable.tick_troubles o where p_troubles ? o.part for update skip locked));
  insert into durable.tick_troubles (part, since, last_at, code, error)
  select e.key, p_at, p_at, e.value ->> 'code', e.value ->> 'error'
  from jsonb_each(p_troubles) as e
  where not exists (select from durable.tick_troubles t where t.part = e.key);
exception when lock_not_available then
  null;
end
$$;

-- What a tick does last: lets claims know how far it has come, and tells when the next one is due. p_at is null when the marks must
-- not move.
create function durable._end_tick(
  p_worker text, p_begin timestamptz, p_at timestamptz, p_timers integer, p_fired boolean, p_at_once boolean, p_again boolean
)
returns jsonb language plpgsql as $$
declare
  v_soon constant timestamptz := p_begin + interval '10 seconds';
  v_grace interval;
  v_end timestamptz;
  v_next timestamptz;
begin
  v_grace := durable._setting('session_grace')::interval;
  if p_at is not null and pg_try_advisory_xact_lock(hashtext('durable.lines'), hashtext('')) then
    perform durable._move_timers(p_at, p_timers);
  end if;
  v_end := durable._now();
  -- What was due and is still there, others hold: that is for the next turn. Of a schedule that has fired there may be more.
  v_next := case
    when p_at_once or p_fired and exists (select from durable.schedules s where s.next_at <= p_begin) then v_end else least(
    -- Soon, but nine tenths of the time are for others.
    case when p_again then v_end + 9 * (v_end - p_begin) end,
    durable._timer_time(durable._first_timer(0, greatest(durable._timers_after(0), p_begin), v_soon)),
    durable._timer_time(durable._first_timer(1, greatest(durable._timers_after(1), p_begin), v_soon)),
    (select min(s.next_at) from durable.schedules s where s.next_at > p_begin and s.next_at <= v_soon),
    (select min(w.lock_lost_at) + v_grace from durable.workers w
     where w.died_at is null and w.lock_lost_at > p_begin - v_grace)) end;
  return jsonb_build_object(
    'next_in_ms', case when v_next is not null then greatest(0, ceil(extract(epoch from v_next - v_end) * 1000)::bigint) end,
    'turn_in_ms', durable._next_turn(p_worker));
exception when lock_not_available then
  return jsonb_build_object('next_in_ms', null, 'turn_in_ms', 500);
end
$$;

create function durable.tick(max_workflows integer default 1000, worker text default null)
returns jsonb language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off
-- What others hold it leaves for the next one.
set lock_timeout = '50ms' as $$
declare
  v_is_alone boolean;
  v_report jsonb := jsonb_build_object();
  v_troubles jsonb := jsonb_build_object();
  v_passed_over text[] := array[]::text[];
  v_tried text[] := array[]::text[];
  v_part text;
  v_done integer;
  v_timers integer := 0;
  v_again boolean := false;
  v_at_once boolean := false;
  v_begin constant timestamptz := durable._now();
  v_today constant date := (v_begin at time zone 'UTC')::date;
  v_at timestamptz;
begin
  if pg_is_in_recovery() then
    perform durable._refuse_standby();
  end if;
  perform durable._require(max_workflows > 0,
    format('max_workflows must be positive, not %s', coalesce(max_workflows::text, 'NULL')), 'Leave it out for 1000.');
  -- The lock saves double work, and nothing depends on it: one whose transaction stays open must not stop all others.
  v_is_alone := pg_try_advisory_xact_lock(hashtext('durable.tick'));
  if not v_is_alone and durable._last_tick() between v_begin - interval '1 second' and v_begin then
    return jsonb_build_object('busy', true, 'turn_in_ms', durable._next_turn(worker));
  end if;
  v_at := case when v_is_alone and pg_current_xact_id_if_assigned() is null then v_begin end;
  perform durable._let_ring();
  foreach v_part in array array['set_back', 'dropped', 'recovered', 'woken', 'signalled', 'timed_out', 'paused', 'released', 'fired',
    'backfilled', 'rung', 'firings_forgotten', 'partitions', 'lines', 'registered', 'expired', 'forgotten', 'aged']
  loop
    v_tried := v_tried || v_part;
    -- One part that fails does not stop the others.
    begin
      v_done := case v_part
        when 'set_back' then durable._set_back(v_begin)
        when 'dropped' then durable._drop_history()
        when 'recovered' then durable.recover(max_workflows)
        when 'woken' then durable._wake_due(max_workflows)
        when 'signalled' then durable._wake_missed(max_workflows)
        when 'timed_out' then durable._time_out(max_workflows)
        when 'paused' then durable._pause_failed(max_workflows)
        when 'released' then durable._release_queued(max_workflows)
        when 'fired' then durable._fire_due(max_workflows)
        when 'backfilled' then durable._run_backfills(max_workflows)
        when 'rung' then durable._ring_again()
        when 'firings_forgotten' then durable._forget_firings(max_workflows)
        when 'partitions' then durable._provision_partitions(v_today, v_today + 2)
        when 'lines' then durable._tidy_lines(max_workflows, v_at)
        when 'registered' then durable._register_lines(max_workflows)
        -- Not what the next tick may drop as a whole.
        when 'expired' then case when v_again then 0 else durable._expire_rows(max_workflows) end
        -- Nobody waits for these: they are free already.
        when 'forgotten' then durable._forget_dropped(2 * max_workflows)
        when 'aged' then durable._age_signals(max_workflows)
      end;
      v_again := v_again or case v_part
        when 'dropped' then v_done is distinct from 0
        when 'expired' then v_done >= max_workflows / 10.0
        when 'signalled' then v_done >= max_workflows
        else false end;
      v_at_once := v_at_once
        or v_part in ('woken', 'timed_out', 'released', 'fired', 'backfilled') and v_done >= max_workflows;
      v_report := v_report || jsonb_build_object(v_part, coalesce(v_done, 0));
      if v_part in ('woken', 'timed_out') then
        v_timers := v_timers + v_done;
      end if;
      if v_part = 'dropped' and v_done > 0 then
        -- Whoever uses the history now waits for this transaction to end.
        v_at := null;
        exit;
      end if;
    exception when others then
      v_troubles := v_troubles || jsonb_build_object(v_part, jsonb_build_object('error', sqlerrm, 'code', sqlstate));
      if sqlstate in ('55P03', '40001', '40P01') then
        -- Somebody holds what it needs, or changed it at the same time.
        v_passed_over := v_passed_over || v_part;
        v_report := v_report || jsonb_build_object(v_part, 0);
      else
        v_report := v_report || jsonb_build_object(v_part, v_troubles -> v_part);
      end if;
    end;
  end loop;
  if v_troubles #>> '{recovered,code}' = '55P03' then
    perform durable._keep_expired(v_begin);
  end if;
  perform durable._mark_tick(v_begin);
  perform durable._note_troubles(v_troubles, v_tried, v_begin);
  if cardinality(v_passed_over) > 0 then
    v_report := v_report || jsonb_build_object('passed_over', to_jsonb(v_passed_over));
  end if;
  return v_report || durable._end_tick(worker, v_begin, v_at, v_timers, v_report ->> 'fired' <> '0', v_at_once, v_again)
    || case when durable._sees_commits() then '{}' else jsonb_build_object('isolation', current_setting('transaction_isolation')) end;
end
$$;
comment on function durable.tick(integer, text) is
  'Does what time demands: notices that the clock was set back (set_back is then 1), recovers what dead workers held, starts what is due, wakes what a message or an event missed, '
  'enforces timeouts, fires schedules, rings for what is ready while workers are idle, makes partitions ahead, removes lines of queues that nothing stands in and registers those that are missing, removes history, events and mail '
  'that are past their time. Each part does at most max_workflows per call, or deletes what belonged to twice as many workflows that are gone; of history it drops at most one partition, and then does nothing else. Returns a JSON object with '
  'the count of each part, or its error; passed_over, the parts that another transaction kept from their work, if any; next_in_ms, '
  'the milliseconds until something is due (null for nothing within 10 seconds); and turn_in_ms, when the worker of that name should call again: '
  'all workers together call it about twice a second. It waits for nobody: what another transaction holds is for the next call. '
  'Anyone may call it; when it is under way elsewhere it returns '
  '{"busy": true} at once, unless none has ended for a second. In a transaction that is repeatable read or serializable '
  'it drops no history, and the report says so: isolation. '
  'Errors: WF005 when max_workflows is not positive.';
