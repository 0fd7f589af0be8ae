-- The first key of the session advisory locks that workers hold; the second is the worker_id.
create function durable._lock_class()
returns integer language sql immutable parallel safe as $$ select 1685418593 $$;

-- The first key of the advisory locks that transactional steps hold; the second is the worker_id.
create function durable._step_lock_class()
returns integer language sql immutable parallel safe as $$ select 1685418594 $$;

-- The registration of a living worker; a new one when there is none.
create function durable._worker_id(worker text, queues text[])
returns integer language plpgsql as $$
declare
  v_worker_id integer;
begin
  if pg_is_in_recovery() then
    perform durable._refuse_standby();
  end if;
  -- No query while the names are short in all: this is for every claim.
  if (durable._length(queues) > 0 and array_position(queues, null) is null and array_position(queues, '') is null
      and char_length(array_to_string(queues, '')) <= 200) is not true then
    perform durable._require(
      durable._length(queues) > 0
        and (select bool_and(char_length(q) between 1 and 200 and q is not null) from unnest(queues) as q),
      format('worker %L: the queues must be a list of names of 1 to 200 characters', worker),
      'For example ''{default}'', which is the default.');
  end if;
  loop
    select w.worker_id into v_worker_id from durable.workers w where w.name = worker and w.died_at is null;
    if found then
      return v_worker_id;
    end if;
    perform durable._require(char_length(worker) between 1 and 200,
      'the worker name must have 1 to 200 characters', 'Make it unique for each process, for example host:pid:random.');
    insert into durable.workers (name, queues, expires_at) values (worker, queues, durable._now() + durable._lease())
    on conflict (name) where died_at is null do nothing;
  end loop;
end
$$;

-- Whether it holds a suspect, one that no checkpoint has cleared yet.
create function durable._holds_suspect(worker durable.workers)
returns boolean language plpgsql stable as $$
begin
  return exists (
    select from durable.live_workflows l
    where l.workflow_id = worker.suspect_id and l.worker_id = worker.worker_id and l.suspicions >= 2);
end
$$;

create function durable.attach(worker text, queues text[] default '{default}')
returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_worker_id integer := durable._worker_id(attach.worker, attach.queues);
  v_held boolean;
begin
  v_held := exists (
      select from pg_locks k where k.locktype = 'advisory' and k.pid = pg_backend_pid() and k.granted and k.objsubid = 2
        and k.classid::bigint = durable._lock_class() and k.objid::bigint = v_worker_id)
    or pg_try_advisory_lock(durable._lock_class(), v_worker_id);
  -- While another transaction has its row, the next call of the worker writes it down.
  update durable.workers w
  set session_lock = v_held, lock_lost_at = null, queues = attach.queues
  where w.worker_id = any(array(
    select o.worker_id from durable.workers o where o.worker_id = v_worker_id for no key update skip locked));
  return 'durable_worker_' || v_worker_id;
end
$$;
comment on function durable.attach(text, text[]) is
  'Ties a worker to the calling session and returns the channel of its doorbell (LISTEN "..."). The session takes an advisory '
  'lock; when the session ends while the worker is registered, the process is taken for dead and recovery need not wait '
  'for the lease. Call it again after a reconnect; not through a transaction pooler, where only the lease counts. '
  'Errors: WF005 for an invalid worker or queue name.';

-- Renews the lease of a worker. Another transaction may have its row, an open claim for example: then the next heartbeat does it.
create function durable._renew(worker text, clock timestamptz)
returns void language plpgsql as $$
declare
  v_lease interval := durable._lease();
begin
  -- Now, and not a time from before it waited for a lock on a table.
  update durable.workers w
  set heartbeat_at = durable._now(), expires_at = durable._now() + v_lease, clock_ahead = case when isfinite(_renew.clock) then _renew.clock - durable._now() end
  where w.worker_id = any(array(
    select o.worker_id from durable.workers o
    where o.name = worker and o.died_at is null for no key update skip locked));
end
$$;

create function durable.heartbeat(
  worker text, workflow_ids uuid[] default null, leases bigint[] default null, running_steps jsonb default null,
  clock timestamptz default null
)
returns table (workflow_id uuid, reason text, lease bigint) language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off
set plan_cache_mode = force_generic_plan set jit = off as $$
#variable_conflict use_column
declare
  v_began_at timestamptz := durable._now();
  v_step jsonb;
begin
  perform durable._require(durable._length(workflow_ids) is not distinct from durable._length(leases)
      and durable._length(workflow_ids) is distinct from -1,
    format('worker %L: %s workflow ids but %s leases', worker, cardinality(workflow_ids), cardinality(leases)),
    'Pass one lease for each workflow id, in flat arrays.');
  perform durable._renew(worker, clock);
  if jsonb_typeof(running_steps) = 'array' then
    begin
      perform durable._open_running_steps(running_steps);
    exception
      -- The lease is renewed all the same.
      when lock_not_available then
        raise debug 'worker %: its running steps are shown later: %', worker, sqlerrm;
      when data_exception or integrity_constraint_violation or invalid_parameter_value or program_limit_exceeded then
        -- The others are shown.
        for v_step in select s from jsonb_array_elements(running_steps) as s limit 1000 loop
          begin
            perform durable._open_running_steps(jsonb_build_array(v_step));
          exception
            when data_exception or integrity_constraint_violation or invalid_parameter_value or program_limit_exceeded
              or lock_not_available then
              raise warning 'worker %: a running step cannot be shown: %', worker, sqlerrm
                using hint = 'It is {"workflow_id", "lease", "step_name", "attempt", "elapsed_ms"}.';
          end;
        end loop;
    end;
  end if;
  return query
  select i.workflow_id, durable._why_lost(i.workflow_id, i.lease), i.lease
  from unnest(heartbeat.workflow_ids, heartbeat.leases) as i(workflow_id, lease)
  -- What it has just parked it will be told by the answer to that call.
  where not exists (
    select from durable.live_workflows l
    where l.workflow_id = i.workflow_id and i.lease in (l.lease, l.parked_lease));
  if durable._now() > v_began_at + interval '1 second' then
    -- It waited for a lock on a table, with its row locked: the lease begins now.
    perform durable._renew(worker, clock);
  end if;
end
$$;
comment on function durable.heartbeat(text, uuid[], bigint[], jsonb, timestamptz) is
  'Renews the lease of a worker on all that it holds, and returns which of the workflows it names it must stop, with the '
  'code of the reason (WF002 taken away or ended, WF004 cancelled) and the lease that is lost: the worker may have claimed the '
  'workflow again meanwhile. running_steps lists steps that have been running '
  'for long: [{"workflow_id", "lease", "step_name", "attempt", "elapsed_ms"}]; they show in durable.workflow_steps. clock is what the '
  'clock of the worker''s machine says, for durable.health(). A worker '
  'that was declared dead is not revived: all that it held is returned. Errors: WF005 for arrays of different lengths.';

-- The codes that tell a worker why its leases are not valid; ok when the same lease ended the workflow that way before, and busy
-- when a lease is valid. The arrays are parallel, and item counts from 1.
create function durable._why_lost_many(workflow_ids uuid[], leases bigint[], ended_as text default null)
returns table (item integer, code text) language plpgsql stable as $$
begin
  return query
  select i.n::integer, coalesce(
    case when l.failed_lease = i.lease and ended_as = 'failed' then 'ok' when l.lease = i.lease then 'busy'
      when l.workflow_id is not null then 'WF002' end,
    case when e.status = 'cancelled' then 'WF004' when e.lease = i.lease and e.status = ended_as then 'ok'
      when e.workflow_id is not null then 'WF002' end,
    'WF001')
  from unnest(workflow_ids, leases) with ordinality as i(workflow_id, lease, n)
  left join (
    select o.workflow_id, o.lease, o.failed_lease from durable.live_workflows o where o.workflow_id = any(workflow_ids)) l on l.workflow_id = i.workflow_id
  left join durable._ended(workflow_ids) e on e.workflow_id = i.workflow_id;
end
$$;

create function durable._why_lost(workflow_id uuid, lease bigint, ended_as text default null)
returns text language sql stable as $$
  select w.code from durable._why_lost_many(array[workflow_id], array[lease], ended_as) w
$$;

create function durable.release_many(workflow_ids uuid[], leases bigint[])
returns integer language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off
set plan_cache_mode = force_generic_plan set jit = off as $$
declare
  v_places durable.place[];
begin
  perform durable._require(durable._length(workflow_ids) is not distinct from durable._length(leases)
      and durable._length(workflow_ids) is distinct from -1,
    format('%s workflow ids but %s leases', cardinality(workflow_ids), cardinality(leases)),
    'Pass one lease for each workflow id, in flat arrays.');
  perform durable._let_ring();
  perform pg_current_xact_id();
  with item as materialized (
    select i.workflow_id, i.lease from unnest(release_many.workflow_ids, release_many.leases) as i(workflow_id, lease)
  ), held as (
    select l.workflow_id from durable.live_workflows l
    where l.workflow_id = any(release_many.workflow_ids)
      and exists (select from item i where i.workflow_id = l.workflow_id and i.lease = l.lease)
    order by l.workflow_id for update skip locked
  ), released as (
    update durable.live_workflows l
    set status = 'pending', lease = null, worker_id = null, ready_seq = nextval('durable.ready_seq'), replay = true
    where l.workflow_id = any(array(select h.workflow_id from held h))
    returning row(l.line_id, l.priority, l.queue, l.name)::durable.place as place
  )
  select array_agg(r.place) into v_places from released r;
  perform durable._line_up(v_places);
  return coalesce(cardinality(v_places), 0);
end
$$;
comment on function durable.release_many(uuid[], bigint[]) is
  'Gives claimed workflows back without counting a failure or a crash; another worker goes on with them at once. Returns how '
  'many there were; items whose lease is lost, or that another transaction holds, are passed over. '
  'Errors: WF005 for arrays of different lengths.';

create function durable.leave(worker text)
returns integer language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_column
declare
  v_worker_id integer := (select w.worker_id from durable.workers w where w.name = leave.worker and w.died_at is null);
  v_released integer;
begin
  -- While another transaction has its row, its lease runs out instead.
  update durable.workers w set died_at = durable._now(), lock_lost_at = null, left_by_itself = true
  where w.worker_id = any(array(
    select o.worker_id from durable.workers o
    where o.worker_id = v_worker_id and o.died_at is null for update skip locked));
  delete from durable.idle_workers i
  where i.ctid = any(array(
    select o.ctid from durable.idle_workers o where o.worker_id = v_worker_id for update skip locked));
  select durable.release_many(array_agg(l.workflow_id), array_agg(l.lease)) into v_released
  from durable.live_workflows l where l.worker_id = v_worker_id;
  return v_released;
end
$$;
comment on function durable.leave(text) is
  'Ends the registration of a worker and gives back all that it holds, without counting a crash. Returns how many workflows '
  'that were. A worker with a fixed name calls it at its start, too, for what an earlier process under that name left.';
