-- What becomes of a due time. Everything here runs under the lock of the schedule's row.

-- The last due time up to p_until of a line that is due at p_due.
create function durable._cron_last(
  p_cron durable.cron, p_due timestamptz, p_until timestamptz, p_zone text, p_anchor timestamptz
)
returns timestamptz language plpgsql stable as $$
declare
  v_last timestamptz := p_due;
  v_high timestamptz := p_until;
  v_next timestamptz := durable._cron_next(p_cron, p_due, p_zone, p_anchor);
  v_middle timestamptz;
begin
  -- Halving the time, for there may be a million of due times in it.
  while v_next <= p_until loop
    v_last := v_next;
    loop
      v_middle := v_last + (v_high - v_last) / 2;
      v_next := durable._cron_next(p_cron, v_middle, p_zone, p_anchor);
      exit when v_next <= p_until or v_high - v_last < interval '1 second';
      v_high := v_middle;
    end loop;
  end loop;
  return v_last;
end
$$;

-- When a schedule is due next after p_after; null when it has come to its end.
create function durable._next_due(p_schedule durable.schedules, p_after timestamptz)
returns timestamptz language plpgsql stable as $$
declare
  v_next timestamptz;
begin
  if p_schedule.firings >= p_schedule.max_firings then
    return null;
  end if;
  v_next := durable._cron_next(durable._parse_cron(p_schedule.cron),
    greatest(p_after, p_schedule.starts_at - interval '1 microsecond'), p_schedule.timezone,
    coalesce(p_schedule.starts_at, 'epoch'));
  return case when v_next <= coalesce(p_schedule.ends_at, 'infinity') then v_next end;
end
$$;

-- The input of a workflow: what the schedule says, with the due time in it.
create function durable._firing_input(input jsonb, schedule text, due_at timestamptz)
returns jsonb language plpgsql stable as $$
declare
  -- ISO 8601 in UTC, which every language reads.
  v_due text := to_char(due_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
begin
  if input is null then
    return jsonb_build_object('schedule', schedule, 'due_at', v_due);
  elsif jsonb_typeof(input) = 'object' and position('"{' in input::text) > 0 then
    return (
      select jsonb_object_agg(i.key, case i.value
        when '"{due_at}"'::jsonb then to_jsonb(v_due) when '"{schedule}"'::jsonb then to_jsonb(schedule)
          else i.value end)
      from jsonb_each(input) i);
  end if;
  return input;
end
$$;

-- The wait that jitter puts before a start: the same one however often it is asked for.
create function durable._jitter(jitter interval, schedule text, due_at timestamptz)
returns interval language sql immutable as $$
  select jitter * (
    mod(abs(hashtextextended(schedule || extract(epoch from due_at), 0) / 2), 1000000) / 1000000.0)::double precision
$$;

-- Enqueues the workflows of firings and returns their ids in the same order.
create function durable._start_firings(schedules text[], dues timestamptz[])
returns uuid[] language plpgsql as $$
declare
  v_ids uuid[] := array_fill(null::uuid, array[cardinality(schedules)]);
  v_group record;
  v_new uuid[];
begin
  for v_group in
    select s.workflow, s.queue, s.priority, s.max_attempts, s.timeout, s.tags, f.due_at + j.jitter as run_at,
      array_agg(durable._firing_input(s.input, s.name, f.due_at) order by f.n) as inputs,
      array_agg(f.n order by f.n) as places
    from unnest(_start_firings.schedules, dues) with ordinality as f(schedule, due_at, n)
    join durable.schedules s on s.name = f.schedule
    cross join lateral (
      select case when s.jitter > '0' then durable._jitter(s.jitter, s.name, f.due_at) end as jitter) j
    group by s.workflow, s.queue, s.priority, s.max_attempts, s.timeout, s.tags, f.due_at + j.jitter
    order by min(f.n)
  loop
    v_new := durable._enqueue(v_group.workflow, v_group.inputs, v_group.queue, null, v_group.priority, v_group.run_at,
      v_group.max_attempts, v_group.timeout, v_group.tags);
    for i in 1 .. cardinality(v_new) loop
      v_ids[v_group.places[i]] := v_new[i];
    end loop;
  end loop;
  return v_ids;
end
$$;

-- Notes which open firings have ended, so that those still open are those whose workflow still runs. A row that somebody has locked
-- is for another time.
create function durable._close_firings(schedules text[])
returns void language plpgsql as $$
begin
  update durable.schedule_firings f set open = false
  where f.ctid = any(array(
    select o.ctid from durable.schedule_firings o
    where o.schedule = any(_close_firings.schedules) and o.open and not o.watched
      and not exists (select from durable.live_workflows l where l.workflow_id = o.workflow_id)
    for update skip locked));
end
$$;

-- Locks what a schedule has started and still runs, to be cancelled; false when another transaction holds some of it, and this one
-- may not wait.
create function durable._lock_running(p_schedule text, p_may_wait boolean)
returns boolean language plpgsql as $$
declare
  v_id uuid;
begin
  for v_id in
    select f.workflow_id from durable.schedule_firings f
    where f.schedule = p_schedule and f.open and f.backfill_id is null order by f.workflow_id
  loop
    if durable._lock_family(v_id, p_may_wait) is null then
      return false;
    end if;
  end loop;
  return true;
end
$$;

-- Decides on the due times up to p_now of the given schedules, whose rows are locked. At most a hundred of each: the
-- rest is left for the next call, or, when it was missed anyway, kept as one row. So is one that would have to wait for another
-- transaction, when it may not. Returns how many workflows were started.
create function durable._fire(p_names text[], p_now timestamptz, p_max integer, p_may_wait boolean)
returns integer language plpgsql as $$
#variable_conflict use_column
declare
  v_late timestamptz := p_now - durable._setting('schedule_grace')::interval;
  v_schedule durable.schedules;
  v_cron durable.cron;
  v_anchor timestamptz;
  v_due timestamptz;
  v_next timestamptz;
  v_last timestamptz;
  v_missed_before timestamptz;
  v_busy boolean;
  v_outcome text;
  v_reason text;
  v_count integer;
  v_waiting integer;
  v_firings bigint;
  -- Parallel arrays: one element for each due time,
  v_names text[] := array[]::text[];
  v_dues timestamptz[] := array[]::timestamptz[];
  v_outcomes text[] := array[]::text[];
  v_untils timestamptz[] := array[]::timestamptz[];
  v_reasons text[] := array[]::text[];
  -- and for each schedule.
  v_done text[] := array[]::text[];
  v_nexts timestamptz[] := array[]::timestamptz[];
  v_firings_now bigint[] := array[]::bigint[];
  v_waiting_now integer[] := array[]::integer[];
  v_to_cancel text[] := array[]::text[];
  v_start_names text[];
  v_start_dues timestamptz[];
  v_id uuid;
begin
  perform durable._close_firings(p_names);
  for v_schedule in
    select s.* from durable.schedules s where s.name = any(p_names) and s.next_at <= p_now order by s.next_at, s.name
  loop
    exit when cardinality(v_dues) >= p_max;
    v_cron := durable._parse_cron(v_schedule.cron);
    v_anchor := coalesce(v_schedule.starts_at, 'epoch');
    v_due := v_schedule.next_at;
    v_firings := v_schedule.firings;
    v_waiting := v_schedule.waiting;
    v_count := 0;
    v_busy := v_schedule.overlap <> 'allow' and (v_waiting > 0 or exists (
      select from durable.schedule_firings f where f.schedule = v_schedule.name and f.open and f.backfill_id is null
        and exists (select from durable.live_workflows l where l.workflow_id = f.workflow_id)));
    continue when v_busy and v_schedule.overlap = 'cancel' and not durable._lock_running(v_schedule.name, p_may_wait);
    v_next := durable._cron_next(v_cron, v_due, v_schedule.timezone, v_anchor);
    v_last := v_due;
    if v_next <= p_now and (v_schedule.catchup_mode = 'last' or v_schedule.overlap = 'cancel') then
      v_last := durable._cron_last(v_cron, v_due, least(p_now, v_schedule.ends_at), v_schedule.timezone, v_anchor);
    end if;
    v_missed_before := case when v_schedule.paused_at is not null then 'infinity'
      else least(v_late, p_now - v_schedule.catchup) end;
    if v_schedule.catchup_mode = 'last' then
      v_missed_before := greatest(v_missed_before, least(v_last, v_late));
    end if;

    while v_due <= p_now and v_count < 100 loop
      v_outcome := 'fired';
      v_reason := null;
      if exists (select from durable.schedule_firings f where f.schedule = v_schedule.name and f.due_at = v_due) then
        -- A clock that was set back lets times fall due that have been handled.
        v_outcome := 'handled';
      elsif v_due < v_missed_before then
        v_outcome := 'missed';
        v_reason := case
          when v_schedule.paused_at is not null then 'the schedule was paused'
          when v_due < least(v_late, p_now - v_schedule.catchup) then 'no tick came in time'
          else 'a later time was due as well' end;
      elsif v_schedule.overlap = 'cancel' and v_due < v_last then
        v_outcome := 'skipped';
        v_reason := 'a later time was due as well';
      elsif v_busy and v_schedule.overlap = 'cancel' then
        v_to_cancel := v_to_cancel || v_schedule.name;
      elsif v_busy then
        v_reason := 'the workflow before it still ran';
        if v_schedule.overlap = 'queue_all' or v_schedule.overlap = 'queue_one' and v_waiting = 0 then
          v_outcome := 'queued';
          v_waiting := v_waiting + 1;
        else
          v_outcome := 'skipped';
        end if;
      end if;
      v_names := v_names || v_schedule.name;
      v_dues := v_dues || v_due;
      v_outcomes := v_outcomes || v_outcome;
      v_untils := v_untils || null::timestamptz;
      v_reasons := v_reasons || v_reason;
      v_busy := v_busy or v_outcome = 'fired' and v_schedule.overlap <> 'allow';
      v_firings := v_firings + (v_outcome in ('fired', 'queued'))::integer;
      v_count := v_count + 1;
      if v_count > 1 then
        v_next := durable._cron_next(v_cron, v_due, v_schedule.timezone, v_anchor);
      end if;
      v_due := case
        when v_firings >= v_schedule.max_firings or v_next > v_schedule.ends_at then null else v_next end;
    end loop;
    if v_due <= p_now and v_due < v_missed_before then
      v_last := durable._cron_last(v_cron, v_due,
        least(p_now, v_missed_before - interval '1 microsecond', v_schedule.ends_at), v_schedule.timezone, v_anchor);
      v_names := v_names || v_schedule.name;
      v_dues := v_dues || v_due;
      v_outcomes := v_outcomes || 'missed'::text;
      v_untils := v_untils || nullif(v_last, v_due);
      v_reasons := v_reasons || v_reason;
      v_next := durable._cron_next(v_cron, v_last, v_schedule.timezone, v_anchor);
      v_due := case when v_next > v_schedule.ends_at then null else v_next end;
    end if;
    v_done := v_done || v_schedule.name;
    v_nexts := v_nexts || v_due;
    v_firings_now := v_firings_now || v_firings;
    v_waiting_now := v_waiting_now || v_waiting;
  end loop;

  if cardinality(v_to_cancel) > 0 then
    for v_id in
      select f.workflow_id from durable.schedule_firings f
      where f.schedule = any(v_to_cancel) and f.open and f.backfill_id is null
        and exists (select from durable.live_workflows l where l.workflow_id = f.workflow_id)
      order by f.workflow_id
    loop
      perform durable.cancel(v_id, 'the schedule is due again, and its overlap is cancel');
    end loop;
  end if;

  select coalesce(array_agg(f.schedule order by f.n), '{}'), coalesce(array_agg(f.due_at order by f.n), '{}')
    into v_start_names, v_start_dues
  from unnest(v_names, v_dues, v_outcomes) with ordinality as f(schedule, due_at, outcome, n)
  where f.outcome = 'fired';
  insert into durable.schedule_firings (schedule, due_at, outcome, open, watched, handled_at, workflow_id)
  select s.name, f.due_at, 'fired', s.overlap <> 'allow' or s.pause_on_failure, s.pause_on_failure, p_now, f.id
  from unnest(v_start_names, v_start_dues, durable._start_firings(v_start_names, v_start_dues))
    as f(schedule, due_at, id)
  join durable.schedules s on s.name = f.schedule;
  insert into durable.schedule_firings (schedule, due_at, outcome, handled_at, missed_until, reason)
  select f.schedule, f.due_at, f.outcome, p_now, f.missed_until, f.reason
  from unnest(v_names, v_dues, v_outcomes, v_untils, v_reasons) as f(schedule, due_at, outcome, missed_until, reason)
  where f.outcome not in ('fired', 'handled')
  on conflict on constraint schedule_firings_pkey do nothing;
  update durable.schedules s
  set next_at = d.next_at, firings = d.firings, waiting = d.waiting
  from unnest(v_done, v_nexts, v_firings_now, v_waiting_now) as d(name, next_at, firings, waiting)
  where s.name = d.name;
  return cardinality(v_start_names);
end
$$;

create function durable._fire_due(p_max integer)
returns integer language plpgsql as $$
declare
  v_now timestamptz := durable._now();
  v_names text[];
  v_name text;
  v_fired integer := 0;
  v_held integer := 0;
  v_error text;
  v_code text;
begin
  if not exists (select from durable.schedules s where s.next_at <= v_now) then
    return 0;
  end if;
  v_names := array(
    select s.name from durable.schedules s where s.next_at <= v_now
    order by s.next_at limit p_max for update skip locked);
  begin
    return durable._fire(v_names, v_now, p_max, false);
  exception when others then
    if durable._is_passing(sqlstate) and sqlstate <> '55P03' then
      raise;
    end if;
  end;
  -- One of them cannot fire, or would have to wait for somebody. One by one now, so that it does not stop the others.
  foreach v_name in array v_names loop
    exit when v_held = 10;
    begin
      v_fired := v_fired + durable._fire(array[v_name], v_now, p_max, false);
    exception when lock_not_available then
      v_held := v_held + 1;
    when others then
      if durable._is_passing(sqlstate) then
        raise;
      end if;
      v_code := sqlstate;
      v_error := sqlerrm;
      perform durable._give_up(v_name, v_now, format('%s (%s)', v_error, v_code));
    end;
  end loop;
  return v_fired;
end
$$;

-- Records that a due time could not fire, and goes on with the next one. A schedule whose next due time cannot be told
-- stops, and says why.
create function durable._give_up(p_name text, p_now timestamptz, p_error text)
returns void language plpgsql as $$
declare
  v_schedule durable.schedules;
  v_next timestamptz;
  v_broken text;
begin
  select * into v_schedule from durable.schedules s where s.name = p_name;
  begin
    v_next := durable._next_due(v_schedule, v_schedule.next_at);
  exception when others then
    v_broken := p_error;
  end;
  insert into durable.schedule_firings (schedule, due_at, outcome, handled_at, reason)
  values (p_name, v_schedule.next_at, 'failed', p_now, p_error)
  on conflict on constraint schedule_firings_pkey do nothing;
  update durable.schedules s set next_at = v_next, error = v_broken where s.name = p_name;
end
$$;

-- Starts the first firing that waits in each of the given schedules, whose rows are locked.
create function durable._release(p_names text[])
returns void language plpgsql as $$
declare
  v_dues timestamptz[] := array(
    select (select min(f.due_at) from durable.schedule_firings f
            where f.schedule = n.name and f.outcome = 'queued' and f.backfill_id is null)
    from unnest(p_names) with ordinality as n(name, n) order by n.n);
begin
  perform durable._close_firings(p_names);
  update durable.schedules s set waiting = s.waiting - 1 where s.name = any(p_names);
  update durable.schedule_firings f
  set outcome = 'fired', reason = null, workflow_id = d.id, open = true, watched = s.pause_on_failure
  from unnest(p_names, v_dues, durable._start_firings(p_names, v_dues)) as d(schedule, due_at, id)
  join durable.schedules s on s.name = d.schedule
  where f.schedule = d.schedule and f.due_at = d.due_at;
end
$$;

create function durable._release_queued(p_max integer)
returns integer language plpgsql as $$
declare
  v_names text[];
  v_name text;
  v_released integer := 0;
  v_held integer := 0;
begin
  if not exists (select from durable.schedules s where s.waiting > 0) then
    return 0;
  end if;
  v_names := array(
    select s.name from durable.schedules s
    -- Not exists(), which may be planned by reading all workflows.
    where s.waiting > 0 and s.paused_at is null and (
      select true from durable.schedule_firings f where f.schedule = s.name and f.open and f.backfill_id is null
        and (select true from durable.live_workflows l where l.workflow_id = f.workflow_id) limit 1) is null
    -- Of many that are held, others are tried the next time.
    order by random() limit p_max for update skip locked);
  if cardinality(v_names) = 0 then
    return 0;
  end if;
  begin
    perform durable._release(v_names);
    return cardinality(v_names);
  exception when others then
    if durable._is_passing(sqlstate) and sqlstate <> '55P03' then
      raise;
    end if;
  end;
  -- One of them cannot start, or would have to wait for somebody. One by one now, so that it does not stop the others.
  foreach v_name in array v_names loop
    exit when v_held = 10;
    begin
      perform durable._release(array[v_name]);
      v_released := v_released + 1;
    exception when lock_not_available then
      v_held := v_held + 1;
    when others then
      if durable._is_passing(sqlstate) then
        raise;
      end if;
      if durable._fail_queued(v_name, null, format('%s (%s)', sqlerrm, sqlstate)) then
        update durable.schedules s set waiting = s.waiting - 1 where s.name = v_name;
      else
        v_held := v_held + 1;
      end if;
    end;
  end loop;
  return v_released;
end
$$;

-- Gives up the first of what waits in a schedule, or in one of its backfills. False when somebody has locked it.
create function durable._fail_queued(schedule text, backfill_id bigint, reason text)
returns boolean language plpgsql as $$
#variable_conflict use_column
begin
  update durable.schedule_firings f
  set outcome = 'failed', reason = _fail_queued.reason
  where f.schedule = _fail_queued.schedule and f.due_at = any(array(
    select q.due_at from durable.schedule_firings q
    where q.schedule = _fail_queued.schedule and q.outcome = 'queued'
      and q.backfill_id is not distinct from _fail_queued.backfill_id
    order by q.due_at limit 1));
  return true;
exception when lock_not_available then
  return false;
end
$$;

-- Pauses schedules whose workflow has failed.
create function durable._pause_failed(p_max integer)
returns integer language plpgsql as $$
declare
  v_now timestamptz := durable._now();
  v_names text[];
  v_paused integer;
begin
  v_names := array(
    select f.schedule from durable.schedule_firings f
    where f.watched and not exists (select from durable.live_workflows l where l.workflow_id = f.workflow_id)
    order by random() limit p_max);
  if cardinality(v_names) = 0 then
    return 0;
  end if;
  v_names := array(select s.name from durable.schedules s where s.name = any(v_names)
    order by s.name for update skip locked);
  with ended as (
    update durable.schedule_firings f set open = false, watched = false
    where f.ctid = any(array(
      select o.ctid from durable.schedule_firings o
      where o.schedule = any(v_names) and o.watched
        and not exists (select from durable.live_workflows l where l.workflow_id = o.workflow_id)
      for update skip locked))
    returning f.schedule, f.workflow_id
  ), failed as (
    select e.schedule, max(e.workflow_id::text) as workflow_id from ended e
    join durable._ended(array(select o.workflow_id from ended o)) w on w.workflow_id = e.workflow_id and w.status = 'failed'
    group by e.schedule
  )
  update durable.schedules s
  set paused_at = v_now, pause_reason = format('workflow %s failed', f.workflow_id), changed_at = v_now
  from failed f
  where s.name = f.schedule and s.pause_on_failure and s.paused_at is null;
  get diagnostics v_paused = row_count;
  return v_paused;
end
$$;

-- Starts the next workflows of a backfill, as many at once as it was told. The row of its schedule is locked.
create function durable._run_backfill(p_backfill durable.schedule_backfills, p_max integer)
returns integer language plpgsql as $$
declare
  v_open bigint;
  v_dues timestamptz[];
begin
  perform durable._close_firings(array[p_backfill.schedule]);
  select count(*) into v_open from durable.schedule_firings f
  where f.schedule = p_backfill.schedule and f.open and f.backfill_id = p_backfill.backfill_id;
  v_dues := array(
    select f.due_at from durable.schedule_firings f
    where f.schedule = p_backfill.schedule and f.outcome = 'queued' and f.backfill_id = p_backfill.backfill_id
    order by f.due_at limit greatest(0, least(p_backfill.max_parallel - v_open, p_max)));
  if cardinality(v_dues) > 0 then
    update durable.schedule_firings f
    set outcome = 'backfilled', reason = null, open = true, workflow_id = d.id, handled_at = durable._now()
    from unnest(v_dues, durable._start_firings(array_fill(p_backfill.schedule, array[cardinality(v_dues)]), v_dues))
      as d(due_at, id)
    where f.schedule = p_backfill.schedule and f.due_at = d.due_at;
  elsif v_open = 0 then
    update durable.schedule_backfills b set ended_at = durable._now() where b.backfill_id = p_backfill.backfill_id;
  end if;
  return cardinality(v_dues);
end
$$;

create function durable._run_backfills(p_max integer)
returns integer language plpgsql as $$
declare
  v_backfill durable.schedule_backfills;
  v_started integer := 0;
  v_held integer := 0;
begin
  -- Those that have as many under way as they may, or are held, must not keep the others waiting.
  for v_backfill in select b.* from durable.schedule_backfills b where b.ended_at is null order by random() limit 100 loop
    exit when v_held = 10;
    continue when not exists (
      select from durable.schedules s where s.name = v_backfill.schedule for update skip locked);
    begin
      v_started := v_started + durable._run_backfill(v_backfill, p_max - v_started);
    exception when lock_not_available then
      v_held := v_held + 1;
    when others then
      if durable._is_passing(sqlstate) then
        raise;
      end if;
      if not durable._fail_queued(v_backfill.schedule, v_backfill.backfill_id, format('%s (%s)', sqlerrm, sqlstate)) then
        v_held := v_held + 1;
      end if;
    end;
  end loop;
  return v_started;
end
$$;

-- Removes firings that are past their time, and the backfills that they were part of.
create function durable._forget_firings(p_max integer)
returns integer language plpgsql as $$
declare
  v_before timestamptz := durable._now() - durable._setting('firing_retention')::interval;
  v_forgotten bigint;
  v_backfill_ids bigint[];
begin
  with forgotten as (
    delete from durable.schedule_firings f
    where f.ctid = any(array(
      select o.ctid from durable.schedule_firings o
      where o.handled_at < v_before and o.outcome <> 'queued' and not o.watched
      order by o.handled_at limit p_max for update skip locked))
    returning f.backfill_id
  )
  select count(*), array_agg(distinct f.backfill_id) filter (where f.backfill_id is not null)
    into v_forgotten, v_backfill_ids from forgotten f;
  if v_backfill_ids is not null then
    delete from durable.schedule_backfills b
    where b.backfill_id = any(array(
      select o.backfill_id from durable.schedule_backfills o
      where o.backfill_id = any(v_backfill_ids) and o.ended_at < v_before for update skip locked));
  end if;
  return v_forgotten::integer;
end
$$;

-- The row of a schedule, locked; with it, what fell due before now is decided by what the schedule said until now.
create function durable._lock_schedule(p_name text)
returns durable.schedules language plpgsql as $$
declare
  v_schedule durable.schedules;
  v_now timestamptz;
begin
  select * into v_schedule from durable.schedules s where s.name = p_name for update;
  if not found then
    perform durable._require(false, format('there is no schedule %L', p_name),
      'See select name from durable.schedules.');
  end if;
  v_now := durable._now();
  if v_schedule.next_at <= v_now then
    begin
      perform durable._fire(array[p_name], v_now, 1000, true);
    exception when others then
      if durable._is_passing(sqlstate) then
        raise;
      end if;
      perform durable._give_up(p_name, v_now, format('%s (%s)', sqlerrm, sqlstate));
    end;
    select * into v_schedule from durable.schedules s where s.name = p_name;
  end if;
  return v_schedule;
end
$$;

create function durable._check_schedule(
  name text, cron text, timezone text, overlap text, catchup interval, catchup_mode text, jitter interval,
  starts_at timestamptz, ends_at timestamptz, max_firings bigint
)
returns void language plpgsql as $$
declare
  v_what text := format('schedule %L: ', name);
begin
  perform durable._require(char_length(name) between 1 and 200, 'the name of a schedule must have 1 to 200 characters',
    'For example ''nightly-report''.');
  perform durable.cron_next(cron, durable._now(), timezone);
  perform durable._require(overlap in ('skip', 'queue_one', 'queue_all', 'cancel', 'allow'),
    v_what || format('overlap must not be %s', quote_nullable(overlap)),
    'It is what happens while the workflow before still runs: skip, queue_one, queue_all, cancel or allow.');
  perform durable._require(catchup >= '0' and catchup <= durable._longest(),
    v_what || format('catchup must be from 0 to 100 years, not %s', quote_nullable(catchup)),
    'It is how late a due time may be made up for: 0 for not at all.');
  perform durable._require(catchup_mode in ('all', 'last'),
    v_what || format('catchup_mode must not be %s', quote_nullable(catchup_mode)),
    'It is which of several late due times are made up for: all, or the last.');
  perform durable._require(jitter >= '0' and jitter <= durable._longest(),
    v_what || format('jitter must be from 0 to 100 years, not %s', quote_nullable(jitter)),
    'Each start is put off by a random part of it.');
  perform durable._require(isfinite(starts_at) is not false and isfinite(ends_at) is not false
    and (starts_at > ends_at) is not true,
    v_what || format('starts_at %s and ends_at %s are not a range', quote_nullable(starts_at), quote_nullable(ends_at)),
    'Both are finite, and starts_at is not after ends_at; leave out either for no limit.');
  perform durable._require((max_firings < 1) is not true,
    v_what || format('max_firings must be at least 1, not %s', max_firings),
    'Leave it out for no limit.');
end
$$;

create function durable.schedule(
  name text, cron text, workflow text, input jsonb default null, queue text default 'default',
  timezone text default 'UTC', overlap text default 'skip', catchup interval default '0', jitter interval default '0',
  starts_at timestamptz default null, ends_at timestamptz default null, max_firings bigint default null,
  pause_on_failure boolean default false, catchup_mode text default 'all', priority integer default 0,
  max_attempts integer default 1, timeout interval default null, tags jsonb default '{}'
)
returns timestamptz language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_column
declare
  v_old durable.schedules;
  v_new durable.schedules;
begin
  perform durable._check_schedule(name, cron, timezone, overlap, catchup, catchup_mode, jitter, starts_at, ends_at,
    max_firings);
  perform durable._require(pause_on_failure is not null, format('schedule %L: pause_on_failure must not be NULL', name),
    'Leave it out for false.');
  perform durable._check_enqueue(workflow, queue, priority, null, max_attempts, timeout, tags);
  perform durable._check_inputs(workflow, array[input], null, durable._max_payload());
  insert into durable.schedules (name, cron, timezone, workflow, queue, overlap, catchup, catchup_mode, jitter,
    starts_at, ends_at, max_firings, pause_on_failure, priority, max_attempts, timeout, tags, input)
  values (schedule.name, schedule.cron, schedule.timezone, schedule.workflow, schedule.queue, schedule.overlap,
    schedule.catchup, schedule.catchup_mode, schedule.jitter, schedule.starts_at, schedule.ends_at,
    schedule.max_firings, schedule.pause_on_failure, schedule.priority, schedule.max_attempts, schedule.timeout,
    schedule.tags, schedule.input)
  on conflict on constraint schedules_pkey do nothing;
  if found then
    select * into v_new from durable.schedules s where s.name = schedule.name;
    v_new.next_at := durable._next_due(v_new, durable._now());
    update durable.schedules s set next_at = v_new.next_at where s.name = schedule.name;
    return v_new.next_at;
  end if;

  v_old := durable._lock_schedule(schedule.name);
  perform durable._require(v_old.workflow = schedule.workflow,
    format('the name %L is taken by a schedule of workflow %L', schedule.name, v_old.workflow),
    'Choose another name, or end that schedule first with durable.unschedule().');
  update durable.schedules s
  set cron = schedule.cron, timezone = schedule.timezone, queue = schedule.queue, overlap = schedule.overlap,
    catchup = schedule.catchup, catchup_mode = schedule.catchup_mode, jitter = schedule.jitter,
    starts_at = schedule.starts_at, ends_at = schedule.ends_at, max_firings = schedule.max_firings,
    pause_on_failure = schedule.pause_on_failure, priority = schedule.priority, max_attempts = schedule.max_attempts,
    timeout = schedule.timeout, tags = schedule.tags, input = schedule.input
  where s.name = schedule.name
  returning * into v_new;
  if v_new is not distinct from v_old and v_new.error is null then
    return v_new.next_at;
  end if;
  -- Only a change of the times begins anew, so that whoever applies a schedule again and again does not put it off.
  if (v_new.cron, v_new.timezone, v_new.starts_at, v_new.ends_at, v_new.max_firings, v_new.error)
    is distinct from (v_old.cron, v_old.timezone, v_old.starts_at, v_old.ends_at, v_old.max_firings, null::text) then
    v_new.next_at := durable._next_due(v_new, durable._now());
  end if;
  update durable.schedules s set next_at = v_new.next_at, error = null, changed_at = durable._now()
  where s.name = schedule.name;
  if v_new.overlap <> 'allow' or v_new.pause_on_failure then
    -- What was started while nobody had to know of its end.
    update durable.schedule_firings f set open = true, watched = v_new.pause_on_failure
    where f.schedule = schedule.name and f.backfill_id is null
      and f.workflow_id = any(array(
        select o.workflow_id from durable.schedule_firings o
        join durable.live_workflows l on l.workflow_id = o.workflow_id
        where o.schedule = schedule.name and o.outcome in ('fired', 'triggered')));
  end if;
  return v_new.next_at;
end
$$;
comment on function durable.schedule(
  text, text, text, jsonb, text, text, text, interval, interval, timestamptz, timestamptz, bigint, boolean, text,
  integer, integer, interval, jsonb) is
  'Enqueues a workflow each time that a cron line falls due, or changes a schedule to what is given; to apply the '
  'same again changes nothing, and a paused one stays paused. Returns when it is due next (null for never again). '
  'cron and timezone as for durable.cron_next(); an interval is counted from starts_at. input is that of each '
  'workflow: in an object, the values "{due_at}" and "{schedule}" are replaced; null gives {"schedule": name, '
  '"due_at": ISO 8601 in UTC}. overlap is what happens while the workflow before still runs: skip, queue_one (start '
  'one more when it has ended), queue_all, cancel (it), or allow. catchup is how late a due time may be made up for '
  'when nothing ticked; never less than the setting schedule_grace. catchup_mode: all late due times, or only the '
  'last. jitter puts each start off by a random part of it. It fires from starts_at to ends_at, both included, and at '
  'most max_firings times. pause_on_failure pauses it when a workflow of it failed. The rest as for '
  'durable.enqueue(). Errors: WF005 invalid argument, also for a name that a schedule of another workflow has; WF006.';

create function durable.unschedule(name text)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
begin
  perform from durable.schedules s where s.name = unschedule.name for update;
  if not found then
    return false;
  end if;
  perform durable._lock_schedule(unschedule.name);
  update durable.schedule_firings f set outcome = 'skipped', reason = 'the schedule was removed'
  where f.schedule = unschedule.name and f.outcome = 'queued';
  update durable.schedule_firings f set open = false, watched = false where f.schedule = unschedule.name and f.open;
  update durable.schedule_backfills b set ended_at = durable._now()
  where b.schedule = unschedule.name and b.ended_at is null;
  delete from durable.schedules s where s.name = unschedule.name;
  return true;
end
$$;
comment on function durable.unschedule(text) is
  'Removes a schedule; false when there is none of that name. Workflows that it started go on, what waits in it does '
  'not start, and its firings stay listed.';

create function durable.pause_schedule(name text, reason text default null)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
  v_schedule durable.schedules := durable._lock_schedule(pause_schedule.name);
  v_now timestamptz;
begin
  if v_schedule.paused_at is not null then
    return false;
  end if;
  v_now := durable._now();
  update durable.schedules s set paused_at = v_now, pause_reason = pause_schedule.reason, changed_at = v_now
  where s.name = pause_schedule.name;
  return true;
end
$$;
comment on function durable.pause_schedule(text, text) is
  'Lets a schedule start nothing until it is resumed; false when it was paused already. Due times are kept as missed, '
  'firings that wait go on waiting, and workflows that run go on running. Errors: WF005 when there is no such '
  'schedule.';

create function durable.resume_schedule(name text)
returns timestamptz language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
  v_schedule durable.schedules := durable._lock_schedule(resume_schedule.name);
begin
  v_schedule.next_at := coalesce(v_schedule.next_at, durable._next_due(v_schedule, durable._now()));
  update durable.schedules s
  set paused_at = null, pause_reason = null, error = null, next_at = v_schedule.next_at, changed_at = durable._now()
  where s.name = resume_schedule.name;
  return v_schedule.next_at;
end
$$;
comment on function durable.resume_schedule(text) is
  'Ends the pause of a schedule and returns when it is due next (null for never again). What fell due during the '
  'pause is not made up for; see durable.backfill_schedule(). Errors: WF005 when there is no such schedule, or its '
  'cron line or zone is not valid any more.';

create function durable.trigger_schedule(name text)
returns uuid language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
  v_schedule durable.schedules := durable._lock_schedule(trigger_schedule.name);
  v_due timestamptz := durable._now();
  v_id uuid;
begin
  -- Never at the same time as another one, and never at a whole second, which cron lines name.
  while date_trunc('second', v_due) = v_due
    or exists (select from durable.schedule_firings f where f.schedule = trigger_schedule.name
      and f.due_at = v_due) loop
    v_due := v_due + interval '1 microsecond';
  end loop;
  v_id := (durable._start_firings(array[trigger_schedule.name], array[v_due]))[1];
  insert into durable.schedule_firings (schedule, due_at, outcome, open, watched, handled_at, workflow_id)
  values (trigger_schedule.name, v_due, 'triggered', v_schedule.overlap <> 'allow' or v_schedule.pause_on_failure,
    v_schedule.pause_on_failure, v_due, v_id);
  return v_id;
end
$$;
comment on function durable.trigger_schedule(text) is
  'Starts the workflow of a schedule now, paused or not and whatever still runs, and returns its id. To the next due '
  'times it is a workflow that runs like any other. Errors: WF005 when there is no such schedule, WF006.';

create function durable.next_firings(name text, max_firings integer default 10)
returns setof timestamptz language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
  v_schedule durable.schedules;
  v_due timestamptz;
begin
  perform durable._require(next_firings.max_firings between 1 and 10000,
    format('max_firings must be 1 to 10000, not %s', coalesce(next_firings.max_firings::text, 'NULL')),
      'Leave it out for 10.');
  select * into v_schedule from durable.schedules s where s.name = next_firings.name;
  if not found then
    perform durable._require(false, format('there is no schedule %L', next_firings.name),
      'See select name from durable.schedules.');
  end if;
  v_due := v_schedule.next_at;
  for i in 1 .. least(next_firings.max_firings, v_schedule.max_firings - v_schedule.firings)::integer loop
    exit when v_due is null;
    return next v_due;
    v_due := durable._next_due(v_schedule, v_due);
  end loop;
end
$$;
comment on function durable.next_firings(text, integer) is
  'When a schedule is due next, the first max_firings times; while it is paused, too. The past ones are in '
  'durable.schedule_firings. Errors: WF005 when there is no such schedule, or max_firings is not 1 to 10000.';

create function durable.backfill_schedule(
  name text, from_at timestamptz, until_at timestamptz, dry_run boolean default true, max_parallel integer default 1,
  redo boolean default false
)
returns table (due_at timestamptz, outcome text, action text) language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_column
declare
  v_schedule durable.schedules := durable._lock_schedule(backfill_schedule.name);
  v_cron durable.cron := durable._parse_cron(v_schedule.cron);
  v_due timestamptz;
  v_dues timestamptz[] := array[]::timestamptz[];
  v_backfill_id bigint;
begin
  perform durable._require(from_at <= until_at and isfinite(from_at) and until_at <= durable._now(),
    format('schedule %L: %s to %s is not a range in the past', name, quote_nullable(from_at), quote_nullable(until_at)),
    'from_at is not after until_at, and until_at is not after now; both are included.');
  perform durable._require(max_parallel >= 1, format('schedule %L: max_parallel must be at least 1, not %s', name,
    coalesce(max_parallel::text, 'NULL')), 'It is how many workflows of the backfill run at once.');
  v_due := from_at - interval '1 microsecond';
  loop
    v_due := durable._cron_next(v_cron, v_due, v_schedule.timezone, coalesce(v_schedule.starts_at, 'epoch'));
    exit when v_due > until_at;
    v_dues := v_dues || v_due;
    perform durable._require(cardinality(v_dues) <= 10000,
      format('schedule %L: more than 10000 due times from %s to %s', name, from_at, until_at),
        'Give it a shorter range, and then the next one.');
  end loop;
  if not dry_run then
    insert into durable.schedule_backfills (schedule, from_at, until_at, max_parallel)
    values (backfill_schedule.name, backfill_schedule.from_at, backfill_schedule.until_at,
      backfill_schedule.max_parallel)
    returning backfill_id into v_backfill_id;
  end if;
  return query
  with planned as materialized (
    select d.due_at, f.outcome, case
      when f.outcome = 'queued' then 'skip: it waits to be started'
      when f.workflow_id is null then 'run'
      when exists (select from durable.live_workflows l where l.workflow_id = f.workflow_id) then 'skip: it still runs'
      when backfill_schedule.redo then 'run again'
      else 'skip: it ran already' end as action
    from unnest(v_dues) as d(due_at)
    left join durable.schedule_firings f on f.schedule = backfill_schedule.name and f.due_at = d.due_at
  ), queued as (
    insert into durable.schedule_firings as f (schedule, due_at, outcome, handled_at, backfill_id, reason)
    select backfill_schedule.name, p.due_at, 'queued', durable._now(), v_backfill_id,
      'its turn in the backfill has not come'
    from planned p where not dry_run and p.action in ('run', 'run again')
    on conflict on constraint schedule_firings_pkey do update
      set outcome = 'queued', handled_at = excluded.handled_at, backfill_id = excluded.backfill_id,
      reason = excluded.reason,
        workflow_id = null, earlier_ids = array_remove(f.earlier_ids || f.workflow_id, null), missed_until = null,
        open = false, watched = false
  )
  select p.due_at, p.outcome, p.action from planned p order by p.due_at;
end
$$;
comment on function durable.backfill_schedule(text, timestamptz, timestamptz, boolean, integer, boolean) is
  'Runs a schedule for due times of the past, from from_at to until_at, both included. Returns for each what became '
  'of it until now (null for nothing) and what is done about it. As a dry run, which is the default, nothing is '
  'changed; with dry_run => false ticks start the workflows, oldest first and max_parallel at a time, apart from '
  'overlap and pause. What ran already is left alone, or with redo run again. Errors: WF005 when there is no such '
  'schedule, the range is not in the past or has more than 10000 due times, or max_parallel is not positive.';
