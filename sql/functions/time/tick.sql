-- Puts workflows whose time has come in line, the longest due first. Those that are paused take their place when resumed.
create function durable._wake_due(max_workflows integer)
returns integer language plpgsql as $$
declare
  v_after timestamptz := durable._timers_after(0);
  v_now timestamptz := durable._now();
  v_ids uuid[];
  v_places durable.place[];
begin
  if not exists (select from durable.live_workflows l where l.wake_at > v_after and l.wake_at <= v_now) then
    return 0;
  end if;
  perform pg_current_xact_id();
  with woken as (
    update durable.live_workflows l
    set status = 'pending', wake_at = null, ready_seq = case when l.paused_at is null then nextval('durable.ready_seq') end
    where l.workflow_id = any(array(
      select d.workflow_id from durable.live_workflows d
      where d.wake_at > v_after and d.wake_at <= v_now
      order by d.wake_at limit max_workflows for update skip locked))
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
  v_late record;
  v_error jsonb := jsonb_build_object(
    'code', 'WF010', 'type', 'WorkflowTimedOut', 'message', 'the timeout of the workflow has passed');
begin
  select array_agg(d.workflow_id) as ids, array_agg(d.worker_id) as worker_ids into v_late from (
    select l.workflow_id, l.worker_id from durable.live_workflows l
    where l.deadline > v_after and l.deadline <= v_now
    order by l.deadline limit max_workflows for update skip locked) d;
  if v_late.ids is null then
    return 0;
  end if;
  perform durable._finish(v_late.ids, null, 'failed', null, array_fill(v_error, array[cardinality(v_late.ids)]));
  perform pg_notify('durable_worker_' || w, 'cancel') from (select distinct unnest(v_late.worker_ids) as w) d where w is not null;
  return cardinality(v_late.ids);
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
end
$$;

create function durable.tick(max_workflows integer default 1000, worker text default null)
returns jsonb language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
  v_report jsonb := jsonb_build_object();
  v_part text;
  v_done integer;
  v_timers integer := 0;
  v_again boolean := false;
  v_next timestamptz;
  v_begin constant timestamptz := durable._now();
  v_today constant date := (v_begin at time zone 'UTC')::date;
  v_soon constant timestamptz := v_begin + interval '10 seconds';
  v_end timestamptz;
  v_at timestamptz := case when pg_current_xact_id_if_assigned() is null then v_begin end;
begin
  if pg_is_in_recovery() then
    perform durable._refuse_standby();
  end if;
  perform durable._require(max_workflows > 0,
    format('max_workflows must be positive, not %s', coalesce(max_workflows::text, 'NULL')), 'Leave it out for 1000.');
  if not pg_try_advisory_xact_lock(hashtext('durable.tick')) then
    return jsonb_build_object('busy', true, 'turn_in_ms', durable._next_turn(worker));
  end if;
  foreach v_part in array array['dropped', 'recovered', 'woken', 'signalled', 'timed_out', 'paused', 'released', 'fired',
    'backfilled', 'firings_forgotten', 'partitions', 'lines', 'registered', 'expired', 'forgotten', 'aged']
  loop
    -- One part that fails does not stop the others.
    begin
      v_done := case v_part
        when 'dropped' then durable._drop_history()
        when 'recovered' then durable.recover(max_workflows)
        when 'woken' then durable._wake_due(max_workflows)
        when 'signalled' then durable._wake_missed(max_workflows)
        when 'timed_out' then durable._time_out(max_workflows)
        when 'paused' then durable._pause_failed(max_workflows)
        when 'released' then durable._release_queued(max_workflows)
        when 'fired' then durable._fire_due(max_workflows)
        when 'backfilled' then durable._run_backfills(max_workflows)
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
      v_report := v_report || jsonb_build_object(v_part, coalesce(v_done, 0));
      if v_part in ('woken', 'timed_out') then
        v_timers := v_timers + v_done;
      end if;
      if v_part = 'dropped' and v_done > 0 then
        -- Whoever uses the history now waits for this transaction to end.
        v_at := null;
        exit;
      end if;
    exception
    -- Happens under repeatable read and serializable only. It is not a failure: the next tick retries.
    when serialization_failure then
      v_report := v_report || jsonb_build_object(v_part, 0);
    when others then
      v_report := v_report || jsonb_build_object(v_part, jsonb_build_object('error', sqlerrm, 'code', sqlstate));
    end;
  end loop;

  if v_at is not null then
    perform durable._move_timers(v_at, v_timers);
  end if;

  v_end := durable._now();
  v_next := least(
    -- Soon, but nine tenths of the time are for others.
    case when v_again then v_end + 9 * (v_end - v_begin) end,
    durable._timer_time(durable._first_timer(0, durable._timers_after(0), v_soon)),
    durable._timer_time(durable._first_timer(1, durable._timers_after(1), v_soon)),
    (select min(s.next_at) from durable.schedules s where s.next_at <= v_soon),
    (select min(w.lock_lost_at) + durable._setting('session_grace')::interval from durable.workers w
     where w.died_at is null));
  return v_report || jsonb_build_object(
    'next_in_ms', case when v_next is not null then
      greatest(0, ceil(extract(epoch from v_next - v_end) * 1000)::bigint) end,
    'turn_in_ms', durable._next_turn(worker));
end
$$;
comment on function durable.tick(integer, text) is
  'Does what time demands: recovers what dead workers held, starts what is due, wakes what a message or an event missed, '
  'enforces timeouts, fires schedules, makes partitions ahead, removes lines of queues that nothing stands in and registers those that are missing, removes history, events and mail '
  'that are past their time. Each part does at most max_workflows per call, or deletes what belonged to twice as many workflows that are gone; of history it drops at most one partition, and then does nothing else. Returns a JSON object with '
  'the count of each part, or its error; next_in_ms, the milliseconds until something is due (null for nothing within 10 '
  'seconds); and turn_in_ms, when the worker of that name should call again: '
  'all workers together call it about twice a second. Anyone may call it; when it is under way elsewhere it returns '
  '{"busy": true} at once. '
  'Errors: WF005 when max_workflows is not positive.';
