-- What an operator has to know. Each check returns one row, or one for each thing that it found.

create function durable._finding(
  "check" text, state text, detail text, remedy text default null, since timestamptz default null
)
returns durable.finding language sql immutable as $$ select row("check", state, since, detail, remedy)::durable.finding $$;

-- ok up to the first limit, warning up to the second, then critical.
create function durable._severity(value interval, warning interval, critical interval)
returns text language sql immutable as $$
  select case when value > critical then 'critical' when value > warning then 'warning' else 'ok' end
$$;

-- A time span as people read it, in every IntervalStyle: 45 s, 12 min, 3 h.
create function durable._span(span interval)
returns text language sql immutable as $$
  select case when s.n < 120 then round(s.n) || ' s' when s.n < 7200 then round(s.n / 60) || ' min' else round(s.n / 3600) || ' h' end
  from (select extract(epoch from span) as n) s
$$;

-- Where there are sessions of other roles of which only the process can be seen, a check that looks at what sessions do and found
-- nothing cannot say that all is well.
create function durable._unless_hidden(name text, detail text)
returns durable.finding language plpgsql stable as $$
begin
  if exists (select from pg_stat_activity a where a.query = '<insufficient privilege>') then
    return durable._finding(name, 'warning', 'the sessions of other roles cannot be seen, nor what they hold or wait for',
      format('As a superuser: grant pg_read_all_stats to %s', quote_ident(current_user)));
  end if;
  return durable._finding(name, 'ok', detail);
end
$$;

-- Who a session is: its process, role, program and what it does. Of sessions of other roles, only members of pg_read_all_stats
-- see more than the process.
create function durable._session(pid integer)
returns text language plpgsql stable as $$
begin
  return coalesce((
    select format('process %s (role %s, application %s, %s)', a.pid, coalesce(quote_ident(a.usename), 'unknown'),
      coalesce(nullif(quote_literal(a.application_name), ''''''), 'without a name'), coalesce(a.state, 'state unknown'))
    from pg_stat_activity a where a.pid = _session.pid), format('process %s', coalesce(_session.pid::text, 'unknown')));
end
$$;

create function durable._check_ticks(at timestamptz)
returns setof durable.finding language plpgsql stable as $$
declare
  v_last timestamptz := (select m.looked_at from durable.tick_marks m order by m.looked_at desc limit 1);
  v_state text := durable._severity(at - v_last, interval '10 seconds', interval '30 seconds');
begin
  if v_last is null then
    return query select * from durable._finding('ticks', 'critical', 'nothing has ticked since the installation, or since a crash of Postgres',
      'Start a worker, or have pg_cron tick: durable.enable_pg_cron().');
  elsif v_state = 'ok' then
    return query select * from durable._finding('ticks', 'ok', format('the last tick was %s ago', durable._span(at - v_last)));
  else
    return query select * from durable._finding('ticks', v_state,
      format('no tick for %s: nothing is recovered, woken, timed out or fired', durable._span(at - v_last)),
      'Start a worker, or have pg_cron tick: durable.enable_pg_cron(). If workers run, see their logs and the checks locks and commits.', v_last);
  end if;
end
$$;

create function durable._check_tick_parts(at timestamptz)
returns setof durable.finding language plpgsql stable as $$
begin
  return query
  select 'tick parts', case when t.since < at - interval '1 minute' then 'critical' else 'warning' end, t.since,
    format(case when durable._is_passing(t.code) then 'the part %s was kept from its work: %s (%s)' else 'the part %s fails: %s (%s)' end,
      t.part, t.error, t.code),
    case when durable._is_passing(t.code) then 'Another transaction is in its way: see the check locks, and pg_locks.'
      else 'Mend what the error says; all other parts go on.' end
  from durable.tick_troubles t where t.last_at > at - interval '5 minutes';
  if not found then
    return query select * from durable._finding('tick parts', 'ok', 'all do their work');
  end if;
end
$$;

-- Whoever has locked a table of the engine so that others wait, and whoever has held one of its advisory keys for five seconds and
-- does nothing. The engine holds these to the end of a transaction, so that is one that stays open, or somebody who uses the same key.
create function durable._check_locks(at timestamptz)
returns setof durable.finding language plpgsql stable as $$
begin
  return query
  select 'locks', 'warning', coalesce(p.prepared, a.xact_start, a.state_change),
    format('%s holds the advisory key %s%s',
      case when p.gid is null then durable._session(k.pid) else format('prepared transaction %L', p.gid) end, n.name, n.effect),
    case when p.gid is null then format('End that transaction: commit it there, or select pg_terminate_backend(%s).', k.pid)
      else format('End it: commit prepared %L, or else rollback prepared %L.', p.gid, p.gid) end
  from (
    select hashtext(e.name) as first, e.name, e.effect from (values
      ('durable.tick', ': a tick whose transaction stays open; other ticks go on without it'),
      ('durable.recover', ''),
      ('durable.wake_marks', ''),
      ('durable.lines', ': a claim or tick whose transaction stays open; claims of that queue read more than they need'),
      ('durable.queues', ': new queues are listed later'),
      ('durable.turns', '')) as e(name, effect)) n
  join pg_locks k on k.locktype = 'advisory' and k.granted and case k.objsubid
    when 1 then (k.classid::bigint << 32) | k.objid::bigint = n.first::bigint
    else k.classid::bigint = n.first::bigint & 4294967295 end
  left join pg_stat_activity a on a.pid = k.pid
  left join pg_locks x on k.pid is null and x.locktype = 'transactionid' and x.virtualtransaction = k.virtualtransaction
  left join pg_prepared_xacts p on p.transaction = x.transactionid
  where k.database = (select d.oid from pg_database d where d.datname = current_database())
    and k.pid is distinct from pg_backend_pid()
    -- A short transaction of the engine is no finding.
    and (p.prepared < at - interval '5 seconds' or a.xact_start < at - interval '5 seconds' and a.state <> 'active' or a.state = 'idle')
  union all
  select 'locks', 'critical', min(w.waitstart),
    format('%s has locked %s, and others wait for it',
      case when b.pid = 0 then 'a prepared transaction' else durable._session(b.pid) end,
      string_agg(distinct w.relation::regclass::text, ', ')),
    case when b.pid = 0 then 'End it: find it in pg_prepared_xacts, and commit prepared or rollback prepared.'
      else format('End that transaction: commit it there, or select pg_terminate_backend(%s).', b.pid) end
    || ' Until then calls that need the table wait.'
  from pg_locks w
  join pg_class c on c.oid = w.relation and c.relnamespace = 'durable'::regnamespace
  cross join lateral unnest(pg_blocking_pids(w.pid)) as b(pid)
  where not w.granted and w.locktype = 'relation' and w.waitstart < at - interval '2 seconds'
    and w.database = (select d.oid from pg_database d where d.datname = current_database())
    and not exists (select from pg_locks o where o.pid = b.pid and not o.granted)
  group by b.pid;
  if not found then
    return query select * from durable._unless_hidden('locks', 'nobody else holds a key of the engine');
  end if;
end
$$;

create function durable._check_partitions(at timestamptz)
returns setof durable.finding language plpgsql stable as $$
declare
  v_today date := (at at time zone 'UTC')::date;
  v_missing text := (
    select string_agg(durable._partition_name(p.parent, d.day), ', ' order by d.day, p.parent)
    from (values ('finished_workflows'), ('checkpoints')) as p(parent), (values (v_today), (v_today + 1)) as d(day)
    where durable._partition(p.parent, d.day) is null);
begin
  if v_missing is null then
    return query select * from durable._finding('partitions', 'ok', format('there are those of %s and %s', v_today, v_today + 1));
  else
    return query select * from durable._finding('partitions', 'warning', format('missing: %s', v_missing),
      'They are made by ticks; see the checks ticks and tick parts. A report that needs one makes it, if nobody is in its way.');
  end if;
end
$$;

-- Schedules whose time has passed: their rows, or what they would have to cancel, may be locked.
create function durable._check_schedules(at timestamptz)
returns setof durable.finding language plpgsql stable as $$
begin
  return query
  select 'schedules', durable._severity(at - s.next_at, interval '30 seconds', interval '5 minutes'), s.next_at,
    format('schedule %L was due %s ago and has not fired', s.name, durable._span(at - s.next_at)),
    'Ticks pass over one whose row, or the workflow that it has to cancel, another transaction has locked: see pg_locks.'
  from durable.schedules s where s.next_at < at - interval '30 seconds' order by s.next_at limit 10;
  if not found then
    return query select * from durable._finding('schedules', 'ok', 'none is late');
  end if;
end
$$;

-- What keeps vacuum from removing rows that are dead, in all databases: it makes queues slow.
create function durable._check_vacuum(at timestamptz)
returns setof durable.finding language plpgsql stable as $$
begin
  return query
  select 'vacuum', durable._severity(at - h.since, interval '10 minutes', interval '4 hours'), h.since,
    format('%s keeps dead rows from being removed', h.who), h.remedy
  from (
    (select durable._session(a.pid) as who, a.xact_start as since,
       'End its transaction, and limit such ones with idle_in_transaction_session_timeout.' as remedy
     from pg_stat_activity a
     where a.xact_start is not null and (a.backend_xmin is not null or a.backend_xid is not null)
       and a.backend_type <> 'autovacuum worker' and a.wait_event is distinct from 'SyncRep'
     order by a.xact_start limit 1)
    union all
    (select format('prepared transaction %L', p.gid), p.prepared, 'Commit or roll it back: commit prepared, rollback prepared.'
     from pg_prepared_xacts p order by p.prepared limit 1)) h
  where h.since < at - interval '10 minutes'
  union all
  select 'vacuum', 'warning', null,
    format('replication slot %s%s keeps %s transactions back', quote_ident(s.slot_name),
      case when s.active then '' else ', which nobody uses,' end, greatest(age(s.xmin), age(s.catalog_xmin))),
    'Bring its consumer back, or drop it: select pg_drop_replication_slot(...).'
  from pg_replication_slots s where greatest(age(s.xmin), age(s.catalog_xmin)) > 1000000;
  if not found then
    return query select * from durable._unless_hidden('vacuum', 'no transaction is older than 10 minutes');
  end if;
end
$$;

-- Commits that wait for a synchronous standby: what they wrote is in no danger, but nobody sees it, and its session does nothing.
create function durable._check_commits(at timestamptz)
returns setof durable.finding language plpgsql stable as $$
declare
  v_waiting record;
begin
  select count(*) as sessions, min(a.state_change) as since into v_waiting
  from pg_stat_activity a
  where a.datname = current_database() and a.wait_event = 'SyncRep' and a.state_change < at - interval '5 seconds';
  if v_waiting.sessions > 0 then
    return query select * from durable._finding('commits', 'critical',
      format('commits of %s session(s) wait for a synchronous standby (synchronous_standby_names is %L)', v_waiting.sessions,
        current_setting('synchronous_standby_names')),
      'Bring the standby back, or go on without it, as a superuser: alter system set synchronous_standby_names = ''''; '
        'select pg_reload_conf();',
      v_waiting.since);
  else
    return query select * from durable._unless_hidden('commits', 'none waits for a standby');
  end if;
end
$$;

create function durable._check_notifications()
returns setof durable.finding language plpgsql stable as $$
declare
  v_usage double precision := pg_notification_queue_usage();
begin
  if v_usage >= 0.1 then
    return query select * from durable._finding('notifications', case when v_usage < 0.5 then 'warning' else 'critical' end,
      format('the queue is full to %s %%; from 50 %% on nobody rings, and idle workers poll', round((100 * v_usage)::numeric)),
      'A session that listens stays in a transaction: find it in pg_stat_activity, state ''idle in transaction'', and end it.');
  else
    return query select * from durable._finding('notifications', 'ok', format('the queue is full to %s %%', round((100 * v_usage)::numeric))
      || case when current_setting('max_prepared_transactions') = '0' then ''
         else '; max_prepared_transactions is above 0, so only workers and ticks ring' end);
  end if;
end
$$;

create function durable._check_clocks()
returns setof durable.finding language plpgsql stable as $$
declare
  v_worker record;
begin
  select w.name, w.clock_ahead, greatest(w.clock_ahead, -w.clock_ahead) as apart into v_worker
  from durable.workers w where w.died_at is null and w.clock_ahead is not null
  order by greatest(w.clock_ahead, -w.clock_ahead) desc limit 1;
  if v_worker.apart > interval '5 seconds' then
    return query select * from durable._finding('clocks', 'warning',
      format('the clock of worker %L is %s %s the database''s', v_worker.name, durable._span(v_worker.apart),
        case when v_worker.clock_ahead > '0' then 'ahead of' else 'behind' end),
      'Set both by the same time service. The engine counts by the database''s clock, so no workflow suffers; logs and code do.');
  else
    return query select * from durable._finding('clocks', 'ok',
      case when v_worker is null then 'no living worker has told its clock'
        else 'those of the workers are within 5 seconds of the database''s' end);
  end if;
end
$$;

create function durable._check_sequences()
returns setof durable.finding language plpgsql stable as $$
begin
  return query
  select 'sequences', 'critical', null::timestamptz,
    format('%s is at %s, and its rows at %s', b.sequence, b.last_value, b.needed),
    'Call durable.repair_sequences(). A switchover to a logical replica leaves sequences behind.'
  from durable._sequences_behind() b;
  if not found then
    return query select * from durable._finding('sequences', 'ok', 'all are ahead of their rows');
  end if;
end
$$;

-- Dead workers that still hold something: a tick gives it to others within a second, unless a transaction holds the rows.
create function durable._check_dead_workers(at timestamptz)
returns setof durable.finding language plpgsql stable as $$
begin
  return query
  select 'dead workers', durable._severity(at - w.died_at, interval '10 seconds', interval '10 minutes'), w.died_at,
    format('worker %L died and still holds %s workflows, %s for one', w.name, h.held, h.workflow_id),
    'A transaction holds their rows: a transactional step whose host is gone, or somebody''s cancel or pause. Find it with '
      'pg_locks and pg_stat_activity, and end it.'
  from durable.workers w
  cross join lateral (
    select count(*) as held, (array_agg(l.workflow_id))[1] as workflow_id from (
      select o.workflow_id from durable.live_workflows o where o.worker_id = w.worker_id limit 1000) l) h
  where w.died_at < at - interval '10 seconds' and w.cleared_at is null and h.held > 0
  order by w.died_at limit 100;
  if not found then
    return query select * from durable._finding('dead workers', 'ok', 'none of them holds anything');
  end if;
end
$$;

create function durable.health()
returns setof durable.finding language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off
set lock_timeout = '50ms' as $$
declare
  v_now timestamptz := durable._now();
  v_check text;
begin
  if pg_is_in_recovery() then
    return query select * from durable._finding('server', 'warning', 'this server is a standby: nothing is claimed or ticked here',
      'Ask the primary.');
    return;
  end if;
  foreach v_check in array array['ticks', 'tick parts', 'locks', 'partitions', 'schedules', 'vacuum', 'commits', 'notifications',
    'clocks', 'sequences', 'dead workers']
  loop
    begin
      case v_check
        when 'ticks' then return query select * from durable._check_ticks(v_now);
        when 'tick parts' then return query select * from durable._check_tick_parts(v_now);
        when 'locks' then return query select * from durable._check_locks(v_now);
        when 'partitions' then return query select * from durable._check_partitions(v_now);
        when 'schedules' then return query select * from durable._check_schedules(v_now);
        when 'vacuum' then return query select * from durable._check_vacuum(v_now);
        when 'commits' then return query select * from durable._check_commits(v_now);
        when 'notifications' then return query select * from durable._check_notifications();
        when 'clocks' then return query select * from durable._check_clocks();
        when 'sequences' then return query select * from durable._check_sequences();
        when 'dead workers' then return query select * from durable._check_dead_workers(v_now);
      end case;
    exception when lock_not_available then
      return query select * from durable._finding(v_check, 'warning', 'it cannot look: another transaction has locked a table',
        'See the check locks, and pg_locks.');
    end;
  end loop;
end
$$;
comment on function durable.health() is
  'What an operator has to know: for each thing that it looks at, one row when all is well, else one for each thing that it found. '
  'check is ticks (whether time passes for the engine), tick parts (those that keep failing), locks (who holds an advisory key of '
  'the engine for long, a tick in an open transaction for example), partitions (those of today and tomorrow), schedules (that are late), vacuum (the oldest '
  'transaction that keeps dead rows), commits (that wait for a synchronous standby), notifications (the queue of the server), clocks (of the workers against the database''s), '
  'sequences (numbers that are behind the rows), or dead workers (what they still hold). state is ok, warning or critical. since is '
  'when it began, where that is known. detail says what it saw, and remedy what to do. Sessions of other roles are named as far as '
  'the owner of the schema may see them, see pg_read_all_stats.';
