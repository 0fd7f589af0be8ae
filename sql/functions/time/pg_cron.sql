-- Ticking without a worker: pg_cron calls once a minute, in all its versions, and the call ticks until the next one.
--
-- One call a minute rather than one a second (which pg_cron has since 1.5): it is one session instead of sixty, and one
-- row of cron.job_run_details. Each tick is a transaction of its own, so that what the call has done stays done when it
-- is killed.

-- Ticks, and returns how many seconds to wait before the next time; null when that would be too late.
create function durable._tick_until(until timestamptz)
returns double precision language plpgsql set search_path = pg_catalog, pg_temp as $$
declare
  v_report jsonb := durable.tick();
  v_wait double precision := greatest(0.02, least(coalesce((v_report ->> 'next_in_ms')::double precision, 500), 500) / 1000);
begin
  return case when durable._now() + make_interval(secs => v_wait) < until then v_wait end;
end
$$;

create procedure durable._tick_for(period interval)
language plpgsql as $$
declare
  -- Commits end a SET clause and are not allowed below one, so every name here is qualified instead, and operators are functions.
  v_until timestamptz := pg_catalog.timestamptz_pl_interval(durable._now(), period);
  v_wait double precision;
begin
  loop
    -- Whatever the defaults of the database: a stricter tick could not drop history.
    commit;
    set transaction isolation level read committed, read write;
    v_wait := durable._tick_until(v_until);
    exit when v_wait is null;
    commit;
    perform pg_catalog.pg_sleep(v_wait);
  end loop;
end
$$;

-- The functions of pg_cron are called dynamically, for they need not be there.
create function durable._require_pg_cron()
returns void language plpgsql as $$
begin
  if not exists (select from pg_extension e where e.extname = 'pg_cron') then
    perform durable._raise('WF005', format('pg_cron is not installed in database %I', current_database()),
      'Nothing was changed.',
      format('Where its background worker runs (shared_preload_libraries, cron.database_name), create extension pg_cron. In another '
        'database than this one, call there, as the owner of the schema durable: select '
        'cron.schedule_in_database(''durable'', ''* * * * *'', '
        '''call durable._tick_for(''''59.5 seconds'''')'', %L)', current_database()));
  end if;
end
$$;

create function durable.enable_pg_cron()
returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
begin
  perform durable._require_pg_cron();
  -- A job of that name is replaced.
  execute 'select cron.schedule($1, $2, $3)'
    using 'durable', '* * * * *', 'call durable._tick_for(''59.5 seconds'')';
end
$$;
comment on function durable.enable_pg_cron() is
  'Has pg_cron tick, so that schedules fire, delayed workflows become ready, timeouts end what is late, and dead '
  'workers are recovered while no worker runs. It calls once a minute, and the call ticks all through the minute: at '
  'least twice a second, and when something falls due. Workers may tick as well. To call it again is harmless. '
  'Errors: WF005 when pg_cron is not in this database.';

create function durable.disable_pg_cron()
returns boolean language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_disabled boolean;
begin
  perform durable._require_pg_cron();
  execute 'select bool_or(cron.unschedule(j.jobid)) from cron.job j where j.jobname = $1 and j.username = current_user'
    into v_disabled using 'durable';
  return coalesce(v_disabled, false);
end
$$;
comment on function durable.disable_pg_cron() is
  'Ends what durable.enable_pg_cron() began; false when it was not enabled. A call that is under way ticks until the '
  'end of its minute. Errors: WF005 when pg_cron is not in this database.';
