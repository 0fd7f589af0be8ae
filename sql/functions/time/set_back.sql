-- The clock of a server can be set back, by a millisecond or by hours: by hand, by NTP, or when a virtual machine moves. What was
-- written down before is then a time that is yet to come, and whatever looks again at such a time would wait for the clock to come
-- there. What users set (a delay, a timeout, a wait) is not touched: it ends later by as much as the clock was set back.

-- Due times that a clock ahead has passed over are decided on again, and those that are yet to come fall due again. Where a workflow
-- was started, that stands. False when somebody has locked some of it.
create function durable._set_schedules_back(p_at timestamptz)
returns boolean language plpgsql as $$
declare
  v_schedule durable.schedules;
  v_names text[];
  v_first timestamptz;
  v_next timestamptz;
  v_known integer := 0;
begin
  v_names := array(
    select distinct f.schedule from durable.schedule_firings f where f.handled_at > p_at
    union
    select s.name from durable.schedules s where s.changed_at > p_at);
  for v_schedule in
    select s.* from durable.schedules s where s.name = any(v_names) and s.error is null order by s.name for update skip locked
  loop
    v_known := v_known + 1;
    with gone as (
      delete from durable.schedule_firings f
      where f.ctid = any(array(
        select o.ctid from durable.schedule_firings o
        where o.schedule = v_schedule.name and o.handled_at > p_at and o.outcome in ('missed', 'skipped', 'failed')
        for update skip locked))
      returning f.due_at
    )
    select min(g.due_at) into v_first from gone g;
    begin
      v_next := durable._next_due(v_schedule, least(p_at, v_first - interval '1 microsecond'));
      update durable.schedules s set next_at = v_next
      where s.name = v_schedule.name and v_next < coalesce(s.next_at, 'infinity');
    exception when others then
      if durable._is_passing(sqlstate) then
        raise;
      end if;
      -- Its time zone is not valid any more, say: the next firing records why.
    end;
  end loop;
  return v_known = (select count(*) from durable.schedules s where s.name = any(v_names) and s.error is null) and not exists (
    select from durable.schedule_firings f
    where f.schedule = any(v_names) and durable._is_ahead(f.handled_at, p_at) and f.outcome in ('missed', 'skipped', 'failed'));
end
$$;

-- For the tick, at p_at: when the clock was set back since the last one, puts right what waits for a time that is yet to come. What
-- somebody has locked is for the next tick: until it is done, the mark of the timers stays where it is, and tells that there is more.
create function durable._set_back(p_at timestamptz)
returns integer language plpgsql as $$
declare
  v_mark durable.line_marks := durable._newest_mark('');
  -- Of a crash, or of a standby that took over, the workers tell.
  v_last timestamptz := coalesce(durable._time_of(v_mark),
    (select max(w.heartbeat_at) from durable.workers w));
  v_expiry timestamptz;
  v_is_done boolean;
begin
  if durable._is_ahead(v_last, p_at) is not true then
    return 0;
  end if;
  v_is_done := durable._set_schedules_back(p_at);
  v_expiry := p_at + durable._lease();
  -- A worker that does not live to renew its lease is found to be dead after one lease.
  update durable.workers w
  set heartbeat_at = least(w.heartbeat_at, p_at), expires_at = least(w.expires_at, v_expiry),
    lock_lost_at = case when w.lock_lost_at > p_at then p_at else w.lock_lost_at end,
    died_at = case when w.died_at > p_at then p_at else w.died_at end
  where w.worker_id = any(array(
    select o.worker_id from durable.workers o
    where o.heartbeat_at > p_at or o.expires_at > v_expiry or o.lock_lost_at > p_at or o.died_at > p_at for update skip locked));
  update durable.crash_marks m set seen_at = p_at
  where m.ctid = any(array(select o.ctid from durable.crash_marks o where o.seen_at > p_at for update skip locked));
  update durable.lines n set look_at = p_at
  where n.ctid = any(array(select o.ctid from durable.lines o where o.look_at > p_at + o.patience for update skip locked));
  update durable.wake_marks m set sweep_at = p_at
  where m.ctid = any(array(select o.ctid from durable.wake_marks o where o.sweep_at > p_at for update skip locked));
  delete from durable.line_sweeps s where s.ctid = any(array(select o.ctid from durable.line_sweeps o for update skip locked));
  delete from durable.history_users u
  where u.ctid = any(array(select o.ctid from durable.history_users o where o.seen_at > p_at for update skip locked));
  -- With a second to spare, for others go on meanwhile: what they write now is no leftover.
  if v_is_done and not exists (
      select from durable.workers o
      where durable._is_ahead(o.heartbeat_at, p_at) or durable._is_ahead(o.expires_at, v_expiry)
        or durable._is_ahead(o.lock_lost_at, p_at) or durable._is_ahead(o.died_at, p_at))
    and not exists (select from durable.crash_marks m where durable._is_ahead(m.seen_at, p_at))
    and not exists (select from durable.lines n where durable._is_ahead(n.look_at, p_at + n.patience))
    and not exists (select from durable.wake_marks m where durable._is_ahead(m.sweep_at, p_at + interval '1 minute'))
    and not exists (select from durable.line_sweeps s where durable._is_ahead(s.sweep_at, p_at + interval '10 minutes'))
    and not exists (select from durable.history_users u where durable._is_ahead(u.seen_at, p_at)) then
    delete from durable.line_marks m
    where m.ctid = any(array(select o.ctid from durable.line_marks o where o.queue = '' for update skip locked));
  else
    -- Timers are read from the beginning.
    update durable.line_marks m set line_ids = '{}', safe_seqs = '{}', start_seqs = '{}'
    where m.ctid = any(array(select o.ctid from durable.line_marks o where o.queue = '' and o.line_ids <> '{}' for update skip locked));
  end if;
  return 1;
end
$$;
