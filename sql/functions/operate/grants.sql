-- Who may do what. Nobody has rights on tables; roles get groups of functions and views.

create function durable._functions_of(audience text)
returns setof regprocedure language sql stable as $$
  select p.oid::regprocedure from pg_proc p
  where p.pronamespace = 'durable'::regnamespace and p.proname::text = any (case audience
    when 'client' then array['enqueue', 'enqueue_many', 'send', 'emit', 'cancel', 'pause', 'resume', 'retry', 'retry_many', 'fork',
      'fork_many', 'status', 'result', 'history', 'state', 'cron_next', 'version', 'build']
    when 'worker' then array['attach', 'begin_step', 'checkpoint', 'checkpoint_many', 'child_results', 'claim', 'complete',
      'complete_many', 'continue_as_new', 'fail', 'fail_many', 'fail_step', 'flush', 'health', 'heartbeat', 'idle', 'leave', 'publish',
      'recheck_waits', 'reclaim', 'recover', 'release_many', 'request_approval', 'start_children', 'start_step', 'step_result', 'suspend',
      'tick', 'wait', 'wait_many', 'warn', 'version', 'build']
    when 'approver' then array['decide', 'version', 'build']
    when 'observer' then array['child_results', 'cron_next', 'health', 'next_firings', 'status', 'result', 'history', 'state', 'step_result',
      'version', 'build']
    when 'admin' then array['backfill_schedule', 'build', 'cancel', 'configure', 'cron_next', 'disable_pg_cron',
      'enable_pg_cron', 'fork', 'fork_many', 'health', 'leave', 'next_firings', 'pause', 'pause_schedule', 'recover', 'repair_sequences',
      'resume', 'resume_schedule', 'retain', 'retry', 'retry_many', 'schedule', 'tick', 'trigger_schedule', 'unschedule', 'version']
    -- Everyone reads the clock: readers of a view that tells whether a time has passed, and the command.
  end || array['_now', '_now_in_view'])
$$;

create function durable._views_of(audience text)
returns text[] language sql immutable as $$
  select case audience
    when 'observer' then
      '{workflows,workflow_steps,workflow_state,approvals,queues,workers,settings,retention_rules,schedules,schedule_firings,schedule_backfills}'::text[]
    when 'admin' then '{settings,retention_rules,schedules,schedule_firings,schedule_backfills}'
    when 'approver' then '{approvals}'
    when 'worker' then '{settings}'
    else '{}' end
$$;

create function durable._grant(audience text, role regrole)
returns void language plpgsql as $$
declare
  v_name text;
begin
  execute format('grant usage on schema durable to %s', role);
  for v_name in select durable._functions_of(audience)::text loop
    execute format('grant execute on function %s to %s', v_name, role);
  end loop;
  foreach v_name in array durable._views_of(audience) loop
    execute format('grant select on durable.%I to %s', v_name, role);
  end loop;
end
$$;

create function durable.grant_client(role regrole)
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$ begin perform durable._grant('client', role); end $$;
comment on function durable.grant_client(regrole) is
  'Lets a role enqueue, cancel, pause, resume, retry and fork workflows, send messages, emit events, and read the status, '
  'result, history and published state of one whose id it knows.';

create function durable.grant_worker(role regrole)
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$ begin perform durable._grant('worker', role); end $$;
comment on function durable.grant_worker(regrole) is 'Lets a role run workers: claim, report, heartbeat, recover, tick.';

create function durable.grant_approver(role regrole)
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$ begin perform durable._grant('approver', role); end $$;
comment on function durable.grant_approver(regrole) is
  'Lets a role list what workflows ask people, durable.approvals, and decide it. No other group may decide.';

create function durable.grant_observer(role regrole)
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$ begin perform durable._grant('observer', role); end $$;
comment on function durable.grant_observer(regrole) is
  'Lets a role read all workflows, steps, published state, approvals, queues, workers, schedules and settings, inputs and outputs included.';

create function durable.grant_admin(role regrole)
returns void language plpgsql set search_path = pg_catalog, pg_temp as $$ begin perform durable._grant('admin', role); end $$;
comment on function durable.grant_admin(regrole) is
  'Lets a role change settings, retention and schedules, cancel, pause, resume, retry and fork workflows, recover, tick and end '
  'registrations of workers.';

-- Postgres lets everyone execute a new function; here nobody may who was not told so.
revoke all on all routines in schema durable from public;
revoke all on all tables in schema durable from public;
