-- Everything that a replay of these workflows needs, in the order in which it happened. Outputs that are large, alone or
-- together, are left out and fetched one by one with durable.step_result(): jsonb holds 256 MB at the most. For all workflows of
-- a claim at once, because a look into the history is planned anew each time, see sql/functions/history/lookup.sql.
create function durable._steps(workflow_ids uuid[])
returns table (workflow_id uuid, steps jsonb) language plpgsql stable
set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
  v_now timestamptz := durable._now();
  v_day record;
begin
  if cardinality(workflow_ids) = 0 then
    return;
  end if;
  for v_day in select * from durable._by_day(workflow_ids) loop
    return query
    select s.workflow_id, jsonb_agg(s.step order by s.at)
    from (
      select c.workflow_id, c.completed_at as at,
        jsonb_build_object('step_name', c.step_name, 'status', c.status, 'attempt', c.attempt)
        || case when c.status = 'error' then jsonb_build_object('error', c.error)
           when c.size > 100000 or c.total > 32000000 then '{"omitted": true}'
           else jsonb_build_object('output', c.output) end as step
      from (
        select s.*, sum(s.size) over (partition by s.workflow_id order by s.completed_at, s.step_name) as total
        -- As text, for the size of the column is that of its compressed form.
        from (select k.*, octet_length(k.output::text) as size from durable.checkpoints k
              where k.workflow_id >= v_day.first_id and k.workflow_id < v_day.next_id and k.workflow_id = any(v_day.ids)) s) c
      union all
      select o.workflow_id, o.started_at, jsonb_build_object('step_name', o.step_name, 'status', 'running', 'attempt', o.attempt,
        'at_most_once', o.at_most_once, 'error', o.error,
        'retry_in_ms', greatest(0, extract(epoch from o.retry_at - v_now) * 1000)::bigint)
      from durable.open_steps o
      where o.workflow_id = any(v_day.ids) and (
        select true from durable.checkpoints c
        where c.workflow_id >= v_day.first_id and c.workflow_id < v_day.next_id
          and c.workflow_id = o.workflow_id and c.step_name = o.step_name) is null
    ) s
    group by s.workflow_id;
  end loop;
end
$$;

-- The place in line, and 20 random bits: a crash of Postgres may take a claim back that did not wait for its commit to reach
-- the disk, and the next claim of that place must not have the lease of somebody who is still at work.
create function durable._new_lease(ready_seq bigint)
returns bigint language sql volatile as $$ select (ready_seq << 20) | floor(random() * 1048576)::bigint $$;

create function durable.claim(
  worker text, queues text[] default '{default}', max_workflows integer default 1, workflows text[] default null,
  synchronous_commit boolean default true
)
returns table (
  workflow_id uuid, lease bigint, name text, queue text, input jsonb, attempt integer, steps jsonb,
  created_at timestamptz, claimed_at timestamptz, deadline timestamptz
) language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off
set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
  v_worker_id integer := durable._worker_id(claim.worker, claim.queues);
  v_now timestamptz := durable._now();
  v_left integer := max_workflows;
  v_queue text;
  v_priorities smallint[];
  v_starts bigint[];
  v_seq bigint;
  v_due boolean;
  v_advanced boolean;
  v_queues integer := cardinality(claim.queues);
  -- Start anywhere in the list, so that a long queue does not starve the ones behind it.
  v_first integer := floor(random() * v_queues)::integer;
  v_got integer;
begin
  if (max_workflows >= 0) is not true then
    perform durable._require(false,
      format('worker %L: max_workflows must be 0 or more, not %s', worker, coalesce(max_workflows::text, 'NULL')),
      'Pass the number of free slots.');
  end if;
  if not synchronous_commit then
    perform set_config('synchronous_commit', 'off', true);
  end if;
  for i in 0 .. v_queues - 1 loop
    v_queue := claim.queues[1 + (v_first + i) % v_queues];
    v_advanced := false;
    loop
      -- In a variable: as a volatile argument it would keep _is_due from being inlined.
      v_seq := pg_sequence_last_value('durable.ready_seq');
      -- A lane that is there twice is looked through twice, which harms nothing. A short stretch that may still get rows
      -- is cheaper to read than to sweep.
      select array_agg(s.priority), array_agg(s.start_seq), bool_or(s.due) into v_priorities, v_starts, v_due
      from (
        select n.priority, durable._is_due(m, v_seq, v_now) as due,
          coalesce(case when m.start_seq - m.safe_seq < 2000 then m.safe_seq else m.start_seq end, 0) as start_seq
        from durable.lanes n left join durable.lane_marks m on m.queue = n.queue and m.priority = n.priority
        where n.queue = v_queue order by n.priority) s;
      exit when v_advanced or v_due is not true;
      perform durable._advance_lanes(v_queue);
      v_advanced := true;
    end loop;
    for v_lane in 1 .. coalesce(cardinality(v_priorities), 0) loop
      exit when v_left <= 0;
      return query
      with claimed as (
        update durable.live_workflows l
        set status = 'running', lease = durable._new_lease(l.ready_seq), ready_seq = null, worker_id = v_worker_id,
          started_at = coalesce(l.started_at, v_now), deadline = coalesce(l.deadline, v_now + l.timeout)
        where l.workflow_id = any(array(
          select r.workflow_id from durable.live_workflows r
          where r.queue = v_queue and r.priority = v_priorities[v_lane] and r.ready_seq > v_starts[v_lane]
            and (claim.workflows is null or r.name = any(claim.workflows))
          order by r.ready_seq
          limit v_left for update skip locked))
        returning l.workflow_id, l.lease, l.name, l.queue, l.input, l.attempt, l.replay, l.created_at, l.deadline
      ), replayed as materialized (
        select s.* from durable._steps(array(select c.workflow_id from claimed c where c.replay)) s
      )
      -- Not a join: without a replay, which is the usual case, nothing of it is begun.
      select c.workflow_id, c.lease, c.name, c.queue, c.input, c.attempt,
        case when c.replay then coalesce((select r.steps from replayed r where r.workflow_id = c.workflow_id), '[]') end,
        c.created_at, v_now, c.deadline
      from claimed c order by c.lease;
      get diagnostics v_got = row_count;
      v_left := v_left - v_got;
    end loop;
  end loop;
  if v_left < max_workflows then
    delete from durable.idle_workers i where i.worker_id = v_worker_id;
  end if;
end
$$;
comment on function durable.claim(text, text[], integer, text[], boolean) is
  'Hands up to max_workflows ready workflows of the given queues to a worker, each with a lease that every later call must '
  'carry; by priority, then first in, first out, within a queue. workflows, if given, limits it to these names: the ones that '
  'the worker has code for. A first claim registers the worker. steps is null on a first run, else a JSON array of all '
  'that is stored: {"step_name", "status", "attempt", "output" or "error"}, where "omitted" marks an output to be fetched '
  'with durable.step_result(). claimed_at is the database''s clock. synchronous_commit => false, for a '
  'transaction in which nothing else is written, spares the claim the wait for the disk: a crash of Postgres may then put the '
  'workflows back in line, which every later call under the lease, and the heartbeat, report as WF002; what is checkpointed is '
  'never lost, nor the claim before it. Errors: WF005 invalid argument.';

create function durable.reclaim(worker text, known uuid[] default '{}')
returns table (
  workflow_id uuid, lease bigint, name text, queue text, input jsonb, attempt integer, steps jsonb,
  created_at timestamptz, claimed_at timestamptz, deadline timestamptz
) language sql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off as $$
  with held as materialized (
    select l.* from durable.live_workflows l
    where l.worker_id = (select w.worker_id from durable.workers w where w.name = reclaim.worker and w.died_at is null)
      and l.workflow_id <> all(known)
  )
  select h.workflow_id, h.lease, h.name, h.queue, h.input, h.attempt, coalesce(s.steps, '[]'),
    h.created_at, durable._now(), h.deadline
  from held h left join durable._steps(array(select o.workflow_id from held o)) s on s.workflow_id = h.workflow_id
  order by h.priority, h.lease
$$;
comment on function durable.reclaim(text, uuid[]) is
  'Hands over again what a worker holds and does not know of: call it when the answer to a claim was lost. known lists the '
  'workflows that it does know of. The columns are those of durable.claim().';
