-- Who killed the worker? When it dies with no suspect, all that it held get a suspicion, and nothing is counted; with the second
-- one a workflow is a suspect. A worker holds at most one of these. When it dies with one, that one counts a crash, and the
-- others are not to blame. A checkpoint clears a workflow of suspicion and of its crashes: since the last one it has come further.

-- The suspects of these workers have ended or are cleared: they may have others.
create function durable._relieve(worker_ids integer[])
returns void language plpgsql as $$
begin
  perform durable._let_ring();
  perform durable._tell(worker_ids, '');
end
$$;

-- Clears workflows that have stored a checkpoint. One that somebody else holds at this moment is cleared by its next one.
create function durable._clear(workflow_ids uuid[])
returns void language plpgsql as $$
declare
  v_relieved integer[];
begin
  with suspected as materialized (
    select l.workflow_id, l.worker_id, l.suspicions from durable.live_workflows l
    where l.workflow_id = any(workflow_ids) and l.suspicions > 0
    for update skip locked
  ), cleared as (
    update durable.live_workflows l
    set suspicions = 0, crashes = 0, line_id = durable._cleared_line(l.line_id)
    where l.workflow_id = any(array(select s.workflow_id from suspected s))
  )
  select array_agg(s.worker_id) into v_relieved from suspected s where s.suspicions >= 2;
  if v_relieved is not null then
    perform durable._relieve(v_relieved);
  end if;
end
$$;

-- Puts leased workflows whose owner is gone back in line, or gives up the ones that were to blame too often. At most
-- max_workflows of them.
create function durable._requeue(worker_ids integer[], max_workflows integer)
returns integer language plpgsql as $$
declare
  v_ids uuid[];
  v_blamed uuid[];
  v_unclear uuid[];
  v_worn uuid[];
  v_places durable.place[];
  v_max integer := durable._setting('max_crashes')::integer;
begin
  v_ids := array(
    -- Not in order: it waits for nobody, and with an order the primary key would be read from its start.
    select l.workflow_id from durable.live_workflows l where l.worker_id = any(worker_ids)
    limit max_workflows for update skip locked);
  if cardinality(v_ids) = 0 then
    return 0;
  end if;
  select coalesce(array_agg(l.workflow_id) filter (where l.workflow_id = w.suspect_id), '{}'),
      coalesce(array_agg(l.workflow_id) filter (where w.suspect_id is null), '{}'),
      array_agg(l.workflow_id) filter (where l.workflow_id = w.suspect_id and l.crashes >= v_max)
    into v_blamed, v_unclear, v_worn
  from durable.live_workflows l join durable.workers w on w.worker_id = l.worker_id and not w.left_by_itself
  where l.workflow_id = any(v_ids);
  if cardinality(v_worn) > 0 then
    update durable.live_workflows l set crashes = l.crashes + 1 where l.workflow_id = any(v_worn);
    perform durable._fail_many_now(v_worn, jsonb_build_object(
      'code', 'WF009', 'type', 'RecoveryLimitExceeded',
      'message', format('gave up after %s crashes in a row: each time the worker that ran it died (setting max_crashes)', v_max + 1)));
  end if;
  perform pg_current_xact_id();
  with requeued as (
    update durable.live_workflows l
    set status = 'pending', lease = null, worker_id = null, ready_seq = nextval('durable.ready_seq'),
      line_id = case when l.suspicions >= 1 and l.workflow_id = any(v_unclear) then durable._suspect_line(l.line_id)
        else l.line_id end,
      suspicions = least(l.suspicions + (l.workflow_id = any(v_unclear))::integer, 1000),
      crashes = l.crashes + (l.workflow_id = any(v_blamed))::integer, attempt = l.attempt + 1, replay = true
    where l.workflow_id = any(v_ids)
    returning row(l.line_id, l.priority, l.queue, l.name)::durable.place as place
  )
  select array_agg(r.place) into v_places from requeued r;
  perform durable._line_up(v_places);
  return cardinality(v_ids);
end
$$;

-- Declares those of these workers dead whose row nobody else holds, and has held lately.
create function durable._bury(worker_ids integer[], at timestamptz, grace interval)
returns void language plpgsql as $$
declare
  v_time interval := durable._time_for_heartbeat();
  -- Before the rows, so that of two recoveries the later one knows of the other.
  v_is_alone boolean := pg_try_advisory_xact_lock(hashtext('durable.recover'));
  v_kept integer[];
  v_free integer[] := array(
    select d.worker_id from durable.workers d
    where d.worker_id = any(worker_ids) and d.died_at is null and (d.expires_at < at or d.lock_lost_at <= at - grace)
    for update skip locked);
begin
  delete from durable.kept_workers k
  where k.ctid = any(array(
    select o.ctid from durable.kept_workers o where o.seen_at not between at - v_time and at for update skip locked));
  -- Another recovery that is under way may be who holds it.
  if v_is_alone then
    insert into durable.kept_workers (worker_id, seen_at)
    select d.worker_id, at from durable.workers d
    where d.worker_id = any(worker_ids) and d.worker_id <> all(v_free) and d.died_at is null;
  end if;
  v_kept := array(select distinct k.worker_id from durable.kept_workers k);
  update durable.workers w
  set died_at = at, lock_lost_at = null, suspect_id = case when durable._holds_suspect(w) then w.suspect_id end
  where w.worker_id = any(v_free) and (w.worker_id <> all(v_kept) or w.lock_lost_at <= at - grace);
end
$$;

-- For a tick that could not look, because a lock was in its way: the same lock may keep workers from renewing their leases.
create function durable._keep_expired(p_at timestamptz)
returns void language plpgsql as $$
begin
  insert into durable.kept_workers (worker_id, seen_at)
  select w.worker_id, p_at from durable.workers w where w.died_at is null and w.expires_at < p_at;
exception when lock_not_available then
  null;
end
$$;

-- How long a worker gets to send a heartbeat that something kept back: longer than it is from one to the next.
create function durable._time_for_heartbeat()
returns interval language plpgsql stable as $$ begin return greatest(durable._lease() / 2, interval '5 seconds'); end $$;

-- A clock that is set forward ends all leases at once, and a lock on the tables keeps all heartbeats back, also those of workers that
-- live. From a gap of three seconds in the ticks nobody can tell whether that was it: workers whose lease ended in the gap get time,
-- once, in which they renew it if they live.
create function durable._renew_overtaken(p_now timestamptz)
returns void language plpgsql as $$
declare
  v_ticked_at timestamptz := durable._last_tick();
  v_lease interval := durable._lease();
begin
  if v_ticked_at < p_now - interval '3 seconds' then
    update durable.workers w set expires_at = p_now + durable._time_for_heartbeat()
    where w.worker_id = any(array(
      select o.worker_id from durable.workers o
      where o.died_at is null and o.expires_at < p_now and o.expires_at > v_ticked_at
        and o.heartbeat_at < v_ticked_at + interval '3 seconds'
        -- As a heartbeat makes it: it has not had more time before.
        and o.expires_at - o.heartbeat_at between v_lease and v_lease + interval '1 second'
      for update skip locked));
  end if;
end
$$;

-- Declares workers dead whose lease ran out, or whose session lock has been gone for longer than a reconnect takes.
create function durable._bury_workers()
returns void language plpgsql as $$
declare
  v_now timestamptz := durable._now();
  -- Read once, for in a condition they would be read for each row.
  v_grace interval := durable._setting('session_grace')::interval;
  v_retention interval := durable._setting('dead_worker_retention')::interval;
  v_restart_grace interval := durable._setting('restart_grace')::interval;
  v_started timestamptz := pg_postmaster_start_time();
  v_free integer[];
  v_ended integer[];
begin
  if not exists (select from durable.crash_marks) then
    insert into durable.crash_marks (seen_at) values (v_now);
  end if;
  if v_started > v_now then
    -- The clock was set back since it started: then it counts from when this is noticed.
    update durable.crash_marks m set seen_at = v_now, started_at = v_started where m.started_at is distinct from v_started;
    v_started := null;
  end if;
  -- Right after a start or a crash of Postgres all sessions are new, their locks are still to be taken, and their leases to be
  -- renewed.
  if greatest(v_started, (select max(m.seen_at) from durable.crash_marks m)) <= v_now - v_restart_grace then
    -- As a difference of two sets, for "not exists" is planned to look for each worker among all locks.
    v_free := array(
      select w.worker_id::bigint from durable.workers w where w.died_at is null and w.session_lock
      except
      select k.objid::bigint from pg_locks k
      where k.locktype = 'advisory' and k.database = (select d.oid from pg_database d where d.datname = current_database())
        and k.classid::bigint = durable._lock_class() and k.objsubid = 2 and k.granted);
    -- One whose row an open transaction has locked is for a later tick.
    update durable.workers w set lock_lost_at = case when w.worker_id = any(v_free) then v_now end
    where w.worker_id = any(array(
      select o.worker_id from durable.workers o
      where o.died_at is null and (o.lock_lost_at is null) = (o.worker_id = any(v_free)) for update skip locked));

    -- When a lock kept the last recovery from its work, it may have kept workers from renewing their leases, too.
    v_ended := array(
      select d.worker_id from durable.workers d
      where d.died_at is null and (
        d.expires_at < v_now and not exists (select from durable.tick_troubles t where t.part = 'recovered' and t.code = '55P03')
        or d.lock_lost_at <= v_now - v_grace) limit 1000);
    if cardinality(v_ended) > 0 then
      perform durable._renew_overtaken(v_now);
      perform durable._bury(v_ended, v_now, v_grace);
    end if;
  end if;

  -- Not waiting for a claim of theirs that is still open; what it holds is deleted another time.
  delete from durable.idle_workers i
  where i.ctid = any(array(
    select o.ctid from durable.idle_workers o
    where o.worker_id in (
      select w.worker_id from durable.workers w where w.died_at is not null and w.cleared_at is null)
    for update of o skip locked));

  delete from durable.workers w
  where w.worker_id = any(array(
    select d.worker_id from durable.workers d
    where d.died_at < v_now - v_retention
      and not exists (select from durable.live_workflows l where l.worker_id = d.worker_id)
    order by d.died_at limit 1000 for update of d skip locked));
end
$$;

-- Terminates sessions in which a dead worker left a transactional step open. Without this, a host that vanished or a stopped
-- process would block recovery and cancel of its workflow for hours. A session must have been idle for a whole lease, because
-- one that runs SQL makes progress. A worker that lost only its session is alive under another number, and its steps continue.
create function durable._end_open_steps(worker_ids integer[])
returns void language plpgsql as $$
declare
  v_silent_since timestamptz := durable._now() - durable._lease();
  v_step record;
begin
  for v_step in
    select k.pid, w.name from pg_locks k join durable.workers w on w.worker_id = k.objid::bigint
    where k.locktype = 'advisory' and k.database = (select d.oid from pg_database d where d.datname = current_database())
      and k.classid::bigint = durable._step_lock_class() and k.objsubid = 2
      and w.worker_id = any(worker_ids) and w.died_at is not null and w.heartbeat_at < v_silent_since
      and not exists (select from durable.workers a where a.name = w.name and a.died_at is null)
      and exists (select from durable.live_workflows l where l.worker_id = w.worker_id)
      -- The function and not the view, which would read all sessions. The state of other roles' sessions may be hidden.
      and exists (
        select from pg_stat_get_activity(k.pid) a
        where a.state in ('idle in transaction', 'idle in transaction (aborted)') and a.state_change < v_silent_since)
  loop
    begin
      perform pg_terminate_backend(v_step.pid);
    exception when insufficient_privilege then
      raise warning 'worker % is dead, and its step keeps a transaction open in process %, which this role may not terminate',
          v_step.name, v_step.pid
        using hint = 'Grant pg_signal_backend to the owner of the schema durable.';
    end;
  end loop;
end
$$;

-- Puts what dead workers hold back in line. A claim that was under way when its worker was declared dead commits after
-- that, so the dead are looked at again; for a minute each time, and then now and then, for a look wades through all that
-- they ever held while a long transaction keeps vacuum from removing it.
create function durable._requeue_of_dead(max_workflows integer)
returns integer language plpgsql as $$
declare
  v_now timestamptz := durable._now();
  v_dead integer[];
  v_done integer;
begin
  if random() < 0.01 then
    v_dead := array(select w.worker_id from durable.workers w where w.died_at is not null);
  else
    v_dead := array(select w.worker_id from durable.workers w where w.died_at is not null and w.cleared_at is null);
  end if;
  if cardinality(v_dead) = 0 then
    return 0;
  end if;
  v_done := durable._requeue(v_dead, max_workflows);
  if v_done = 0 then
    update durable.workers w set cleared_at = v_now
    where w.worker_id = any(array(
      select d.worker_id from durable.workers d
      where d.worker_id = any(v_dead) and d.died_at < v_now - interval '1 minute' and d.cleared_at is null
        and not exists (select from durable.live_workflows l where l.worker_id = d.worker_id)
      for update of d skip locked));
    perform durable._end_open_steps(v_dead);
  end if;
  return v_done;
end
$$;

create function durable.recover(max_workflows integer default 1000)
returns integer language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
begin
  if pg_is_in_recovery() then
    perform durable._refuse_standby();
  end if;
  perform durable._require(max_workflows > 0,
    format('max_workflows must be positive, not %s', coalesce(max_workflows::text, 'NULL')), 'Leave it out for 1000.');
  perform durable._let_ring();
  perform durable._bury_workers();
  return durable._requeue_of_dead(max_workflows);
end
$$;
comment on function durable.recover(integer) is
  'Declares workers dead whose lease ran out or whose session is gone, and puts at most max_workflows of what they held back '
  'in line; returns how many that were. A worker that held a suspect was killed by it: that one counts a crash, and is failed '
  '(WF009) beyond the setting max_crashes. Else each of them gets a suspicion, which a checkpoint clears, and with the second '
  'is a suspect. '
  'Ticks call it all the time; anyone may. What another transaction holds is for the next call. '
  'Errors: WF005 when max_workflows is not positive.';
