-- Everything that a replay of these workflows needs, in the order in which it happened. Outputs and errors that are large, alone or
-- together, are left out and fetched one by one with durable.step_result(): jsonb holds 256 MB at the most. For all workflows of
-- a claim at once, because a look into the history is planned anew each time, see sql/functions/history/lookup.sql.
create function durable._steps(workflow_ids uuid[])
returns table (workflow_id uuid, steps jsonb) language plpgsql stable
set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
  v_now timestamptz := durable._now();
  v_day record;
  v_ids uuid[];
  v_done uuid[];
  v_largest bigint;
begin
  if cardinality(workflow_ids) = 0 then
    return;
  end if;
  for v_day in select * from durable._by_day(workflow_ids) loop
    v_ids := v_day.ids;
    v_done := '{}'::uuid[];
    v_largest := 100000;
    loop
      begin
        for workflow_id, steps in
          select s.workflow_id, jsonb_agg(s.step order by s.at)
          from (
            select c.workflow_id, c.completed_at as at,
              jsonb_build_object('step_name', c.step_name, 'status', c.status, 'attempt', c.attempt)
              || case when c.size > v_largest or c.total > 32000000 or c.total_of_all > 256000000 then '{"omitted": true}'
                 when c.status = 'error' then jsonb_build_object('error', c.error)
                 else jsonb_build_object('output', c.output) end as step
            from (
              select s.*, sum(s.size) over (partition by s.workflow_id order by s.completed_at, s.step_name) as total,
                sum(s.size) over (order by s.workflow_id, s.completed_at, s.step_name) as total_of_all
              -- As text, for the size of the column is that of its compressed form.
              from (select k.*, case when v_largest < 0 then 0 else octet_length(coalesce(k.error, k.output)::text) end as size
                    from durable.checkpoints k
                    where k.workflow_id >= v_day.first_id and k.workflow_id < v_day.next_id and k.workflow_id = any(v_ids)) s) c
            union all
            select o.workflow_id, o.started_at, jsonb_build_object('step_name', o.step_name, 'status', 'running', 'attempt', o.attempt,
              'at_most_once', o.at_most_once,
              'error', case when v_largest > 0 and octet_length(o.error::text) <= v_largest then o.error end,
              'retry_in_ms', greatest(0, extract(epoch from o.retry_at - v_now) * 1000)::bigint)
            from durable.open_steps o
            where o.workflow_id = any(v_ids) and (
              select true from durable.checkpoints c
              where c.workflow_id >= v_day.first_id and c.workflow_id < v_day.next_id
                and c.workflow_id = o.workflow_id and c.step_name = o.step_name) is null
          ) s
          group by s.workflow_id
        loop
          return next;
          v_done := v_done || workflow_id;
        end loop;
        exit;
      exception when program_limit_exceeded then
        -- A value may be nested so deep that it cannot be part of another. Then all are left out, for a claim that fails would
        -- fail for every worker, each time.
        if v_largest < 0 then
          raise;
        end if;
        v_largest := -1;
        v_ids := array(select i.id from unnest(v_ids) as i(id) where i.id <> all(v_done));
      end;
    end loop;
  end loop;
end
$$;

-- The place in line, and 20 random bits: a crash of Postgres may take a claim back that did not wait for its commit to reach
-- the disk, and the next claim of that place must not have the lease of somebody who is still at work.
create function durable._new_lease(ready_seq bigint)
returns bigint language sql volatile as $$ select (ready_seq << 20) | floor(random() * 1048576)::bigint $$;

-- Locks what comes first in some lines, up to p_wanted, and returns where these rows are. p_heads are lines of one queue and
-- priority with something in them, in the order of what comes first in each. Nothing behind p_until counts, nor what is in p_known.
create function durable._first_in(p_heads durable.line_head[], p_wanted integer, p_until bigint, p_known tid[] default '{}')
returns tid[] language plpgsql as $$
#variable_conflict use_column
declare
  v_lines integer := cardinality(p_heads);
  v_first durable.line_head := p_heads[1];
  v_up_to bigint := least(p_until, v_first.head_seq + p_wanted - 1);
  v_rows tid[];
  v_left bigint;
  v_after bigint;
  v_most bigint;
  v_some record;
  v_candidates tid[] := array[]::tid[];
  v_seen bigint;
begin
  if v_lines = 1 then
    return array(
      select r.ctid from durable.live_workflows r
      where r.line_id = v_first.line_id and r.ready_seq > v_first.start_seq and r.ready_seq <= p_until
        and r.name = v_first.name and r.queue = v_first.queue and r.priority = v_first.priority and r.ctid <> all(p_known)
      order by r.ready_seq limit p_wanted for update skip locked);
  end if;
  -- Up to a place before which there cannot be more than are wanted: all of it is locked at once.
  v_rows := array(
    select r.ctid
    from unnest(p_heads) as h
    cross join lateral (
      select r.ctid from durable.live_workflows r
      where h.head_seq <= v_up_to
        and r.line_id = h.line_id and r.ready_seq >= h.head_seq and r.ready_seq <= v_up_to
        and r.name = h.name and r.queue = h.queue and r.priority = h.priority and r.ctid <> all(p_known)
      for update skip locked) r);
  v_seen := cardinality(v_rows)::bigint;
  v_left := p_wanted - v_seen;
  if v_left <= 0 or v_up_to >= p_until then
    return v_rows;
  end if;
  -- Then what may be among the first is read before it is locked: twice as much while others are at work, who may be about to
  -- lock the same.
  v_most := v_left * (1 + (pg_snapshot_xmin(pg_current_snapshot()) < pg_snapshot_xmax(pg_current_snapshot()))::integer);
  v_after := v_up_to;
  loop
    if v_after >= v_up_to then
      -- Bit by bit, for most of what each line has would be read in vain: by as much as what is left takes at the density so far;
      -- where there was nothing, to the next line that begins, or four times as far.
      v_up_to := case when v_lines * v_most <= 50 then p_until
        else least(p_until, v_most + coalesce(
          case when v_seen = 0 then (select min(h.head_seq) from unnest(p_heads) as h where h.head_seq > v_up_to) end,
          v_up_to + ((v_up_to - v_first.head_seq) * case when v_seen = 0 then 3
            else least(16, 1.2 * (v_most - cardinality(v_candidates)) / (v_seen + 1)) end)::bigint)) end;
    end if;
    select array_agg(c.ctid) as rows, max(c.ready_seq) as last into v_some
    from (
      select r.ctid, r.ready_seq
      from unnest(p_heads) as h
      cross join lateral (
        select r.ctid, r.ready_seq from durable.live_workflows r
        where h.head_seq <= v_up_to
          and r.line_id = h.line_id and r.ready_seq > greatest(h.start_seq, v_after) and r.ready_seq <= v_up_to
          and r.name = h.name and r.queue = h.queue and r.priority = h.priority and r.ctid <> all(p_known)
          -- Mostly what others are about to claim: else each of many claimers would first come upon what the others have.
          and r.xmax <> all(array(select x::xid from pg_snapshot_xip(pg_current_snapshot()) as x))
        order by r.ready_seq limit v_most - cardinality(v_candidates)) r
      order by r.ready_seq limit v_most - cardinality(v_candidates)) c;
    v_candidates := v_candidates || v_some.rows;
    v_seen := v_seen + coalesce(cardinality(v_some.rows), 0);
    v_after := case when cardinality(v_candidates) = v_most then v_some.last else v_up_to end;
    if cardinality(v_candidates) = v_most or v_after >= p_until then
      -- Of these, others may hold some; then it goes on behind them, and takes more into view. What is ready is never changed and
      -- ready at the same place, so that where one was there is no other.
      v_rows := v_rows || array(
        select r.ctid from durable.live_workflows r
        where r.ctid = any(v_candidates) and r.ready_seq <= p_until
        order by r.ready_seq limit v_left for update skip locked);
      v_left := (p_wanted - cardinality(v_rows))::bigint;
      exit when v_left = 0 or v_after >= p_until;
      v_most := 4 * v_left;
      v_candidates := array[]::tid[];
    end if;
  end loop;
  return v_rows;
end
$$;

-- Whether a worker has no suspect. It gets none from anybody else before the end of this transaction, for its row is locked; while
-- somebody else has locked it, a later claim asks again.
create function durable._may_take_suspect(p_worker_id integer)
returns boolean language plpgsql as $$
declare
  v_worker durable.workers;
begin
  select * into v_worker from durable.workers w where w.worker_id = p_worker_id for no key update skip locked;
  return found and v_worker.died_at is null and not durable._holds_suspect(v_worker);
end
$$;

-- How many of the next ones, up to p_wanted, are to be new, where both started and new ones are ready: every fourth. Counted for
-- all who claim the same (queue, priority, names): a count of the whole queue would give the new ones always to the same of
-- two workers that claim in turns. While another transaction is about to say how far it has come, it is left to chance.
create function durable._turns_of_new(p_claim bigint, p_wanted integer)
returns integer language plpgsql as $$
declare
  v_now timestamptz := durable._now();
  v_turn durable.claim_turns;
begin
  if p_wanted % 4 = 0 then
    return p_wanted / 4;
  end if;
  if pg_try_advisory_xact_lock(hashtext('durable.turns'), hashint8(p_claim)) then
    select * into v_turn from durable.claim_turns t
    where t.claim = p_claim order by t.version desc limit 1 for update skip locked;
    if found then
      update durable.claim_turns t
      set version = t.version + (t.changes % 64 = 63)::integer, changes = t.changes + 1, claimed = (t.claimed + p_wanted % 4) % 4,
        claimed_at = v_now
      where t.claim = p_claim and t.version = v_turn.version;
      return ((v_turn.claimed + p_wanted::bigint) / 4)::integer;
    elsif not exists (select from durable.claim_turns t where t.claim = p_claim) then
      insert into durable.claim_turns (claim, claimed, claimed_at) values (p_claim, p_wanted % 4, v_now)
      on conflict on constraint claim_turns_pkey do nothing;
      return p_wanted / 4;
    end if;
  end if;
  return ((floor(random() * 4)::bigint + p_wanted) / 4)::integer;
end
$$;

-- Forgets turns that nobody has counted for an hour.
create function durable._forget_turns()
returns void language plpgsql as $$
declare
  v_now timestamptz := durable._now();
begin
  delete from durable.claim_turns t
  where t.ctid = any(array(
    select o.ctid from durable.claim_turns o
    where o.claimed_at < v_now - interval '1 hour' or durable._is_ahead(o.claimed_at, v_now) for update skip locked));
end
$$;

-- Locks what a worker gets from several lines of one priority, up to p_wanted, and returns where these rows are: started ones
-- first, but every fourth is new; each of these first in, first out. p_suspects is null for a worker that may not have one.
create function durable._first_of(
  p_worker_id integer, p_names text[], p_suspects durable.line_head[], p_started durable.line_head[], p_new durable.line_head[],
  p_wanted integer, p_until bigint
)
returns tid[] language plpgsql as $$
declare
  v_rows tid[] := array[]::tid[];
  v_wanted_new integer := case when p_new is null then 0 when p_suspects is null and p_started is null then p_wanted
    else durable._turns_of_new(
      hashtextextended(p_new[1].queue || coalesce(p_names::text, ''), p_new[1].priority), p_wanted) end;
begin
  if p_suspects is not null and v_wanted_new < p_wanted then
    v_rows := durable._first_in(p_suspects, 1, p_until);
    update durable.workers w
    set suspect_id = (select l.workflow_id from durable.live_workflows l where l.ctid = v_rows[1])
    where w.worker_id = p_worker_id and cardinality(v_rows) = 1;
  end if;
  if p_started is not null and v_wanted_new + cardinality(v_rows) < p_wanted then
    v_rows := v_rows || durable._first_in(p_started, p_wanted - v_wanted_new - cardinality(v_rows), p_until);
  end if;
  if p_new is not null and cardinality(v_rows) < p_wanted then
    v_rows := v_rows || durable._first_in(p_new, p_wanted - cardinality(v_rows), p_until);
    if p_started is not null and v_wanted_new > 0 and cardinality(v_rows) < p_wanted then
      -- There were not as many new ones.
      v_rows := v_rows || durable._first_in(p_started, p_wanted - cardinality(v_rows), p_until, v_rows);
    end if;
  end if;
  return v_rows;
end
$$;

create function durable.claim(
  worker text, queues text[] default '{default}', max_workflows integer default 1, workflows text[] default null,
  synchronous_commit boolean default true
)
returns table (
  workflow_id uuid, lease bigint, name text, queue text, input jsonb, attempt integer, steps jsonb,
  created_at timestamptz, claimed_at timestamptz, deadline timestamptz
) language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off
set plan_cache_mode = force_generic_plan set jit = off as $$
#variable_conflict use_column
declare
  v_worker_id integer := durable._worker_id(claim.worker, claim.queues);
  v_now timestamptz := durable._now();
  v_rows tid[];
  v_left integer := max_workflows;
  v_queue text;
  v_queues integer := cardinality(claim.queues);
  -- Start anywhere in the list, so that a long queue does not starve the ones behind it.
  v_first integer := floor(random() * v_queues)::integer;
  v_done text[];
  v_seq bigint;
  v_lines durable.lines[];
  v_line durable.lines;
  v_mark record;
  v_start bigint;
  v_moved boolean;
  v_heads durable.line_head[];
  v_group record;
  v_some tid[];
  v_has_suspect boolean;
  v_is_direct boolean := false;
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
    exit when v_left <= 0;
    v_queue := claim.queues[1 + (v_first + i) % v_queues];
    if v_queues > 1 then
      continue when v_queue = any(v_done);
      v_done := v_done || v_queue;
    end if;
    -- Few names are looked up one by one, many compared with all lines of the queue: both may be hundreds.
    if claim.workflows is null then
      v_lines := array(select n from durable.lines n where n.queue = v_queue);
    elsif cardinality(claim.workflows) <= 8 then
      v_lines := array(select n from durable.lines n where n.queue = v_queue and n.name = any(claim.workflows));
    else
      v_lines := array(
        select n from durable.lines n where n.queue = v_queue and n.name in (select unnest(claim.workflows)));
    end if;
    v_line := v_lines[1];
    continue when v_line is null;
    v_moved := false;
    loop
      -- In a variable: as a volatile argument it would keep _is_due from being inlined.
      v_seq := coalesce(pg_sequence_last_value('durable.ready_seq'), 0);
      select durable._is_due(m, v_seq, v_now) as is_due, durable._short(m, v_now) as short,
          durable._start_in(m.safe_seqs[array_position(m.line_ids, v_line.line_id)],
            m.start_seqs[array_position(m.line_ids, v_line.line_id)], durable._short(m, v_now)) as start_seq,
          m.line_ids, m.safe_seqs, m.start_seqs
        into v_mark
      from durable.line_marks m where m.queue = v_queue order by m.version desc limit 1;
      exit when v_moved or v_mark.is_due is false;
      perform durable._pass_claimed(v_queue, array(select distinct n.line_id from unnest(v_lines) as n));
      v_moved := true;
    end loop;
    if cardinality(v_lines) = 1 and not durable._is_suspect_line(v_line.line_id) then
      v_start := coalesce(v_mark.start_seq, 0);
      -- Of the last queue, in the statement that claims.
      v_is_direct := i = v_queues - 1;
      exit when v_is_direct;
      v_rows := v_rows || durable._first_in(
        array[row(v_line.line_id, v_line.priority, v_queue, v_line.name, v_start, v_start)::durable.line_head], v_left, v_seq);
      v_left := max_workflows - coalesce(cardinality(v_rows), 0);
      continue;
    end if;

    v_heads := array(
      select row(l.line_id, l.priority, l.queue, l.name, l.start_seq, r.ready_seq)::durable.line_head
      from (
        select n.*, durable._start_in(m.safe_seq, m.start_seq, v_mark.short) as start_seq
        -- Once each: a line may be registered twice.
        from (select distinct n.line_id, n.priority, n.queue, n.name from unnest(v_lines) as n) as n
        left join unnest(v_mark.line_ids, v_mark.safe_seqs, v_mark.start_seqs) as m(line_id, safe_seq, start_seq)
          on m.line_id = n.line_id) l
      cross join lateral (
        -- By the number alone: that something else may have the same is seen when rows are locked.
        select r.ready_seq from durable.live_workflows r
        where r.line_id = l.line_id and r.ready_seq > l.start_seq
        order by r.ready_seq limit 1) r
      order by l.priority, not durable._is_started_line(l.line_id), r.ready_seq);
    continue when cardinality(v_heads) = 0;
    if v_heads[1].priority = v_heads[cardinality(v_heads)].priority and not durable._is_started_line(v_heads[1].line_id) then
      -- All are new and of one priority.
      v_rows := v_rows || durable._first_in(v_heads, v_left, v_seq);
      v_left := max_workflows - cardinality(v_rows);
      continue;
    end if;
    for v_group in
      select h.priority,
        array_agg(h order by h.head_seq) filter (where durable._is_suspect_line(h.line_id)) as suspects,
        array_agg(h order by h.head_seq)
          filter (where durable._is_started_line(h.line_id) and not durable._is_suspect_line(h.line_id)) as started,
        array_agg(h order by h.head_seq) filter (where not durable._is_started_line(h.line_id)) as fresh
      from unnest(v_heads) as h group by h.priority order by h.priority
    loop
      exit when v_left <= 0;
      if v_group.suspects is not null and v_has_suspect is null then
        v_has_suspect := not durable._may_take_suspect(v_worker_id);
      end if;
      v_some := durable._first_of(
        v_worker_id, claim.workflows, case when not v_has_suspect then v_group.suspects end, v_group.started, v_group.fresh,
        v_left, v_seq);
      v_has_suspect := v_has_suspect or v_group.suspects is not null and cardinality(v_some) > 0;
      v_rows := v_rows || v_some;
      v_left := max_workflows - coalesce(cardinality(v_rows), 0);
    end loop;
  end loop;
  if v_rows is null and not v_is_direct then
    return;
  end if;
  return query
  with claimed as (
    update durable.live_workflows l
    set status = 'running', lease = durable._new_lease(l.ready_seq), ready_seq = null, worker_id = v_worker_id,
      line_id = durable._started_line(l.line_id),
      started_at = coalesce(l.started_at, v_now), deadline = coalesce(l.deadline, v_now + l.timeout)
    where l.ctid = any(case when not v_is_direct then v_rows else v_rows || array(
      select r.ctid from durable.live_workflows r
      where r.line_id = v_line.line_id and r.ready_seq > v_start
        and r.name = v_line.name and r.queue = v_queue and r.priority = v_line.priority
      order by r.ready_seq limit v_left for update skip locked) end)
    returning l.workflow_id, l.lease, l.name, l.queue, l.input, l.attempt, l.replay, l.created_at, l.deadline, l.priority
  ), replayed as materialized (
    select s.* from durable._steps(array(select c.workflow_id from claimed c where c.replay)) s
  )
  -- Not a join: without a replay, which is the usual case, nothing of it is begun.
  select c.workflow_id, c.lease, c.name, c.queue, c.input, c.attempt,
    case when c.replay then coalesce((select r.steps from replayed r where r.workflow_id = c.workflow_id), '[]') end,
    c.created_at, v_now, c.deadline
  from claimed c
  -- By priority, then what is started, then the place in line: in one number, for a sort by three takes twice as long.
  order by case when v_is_direct then c.lease
    else (c.priority::bigint << 47) | ((not c.replay)::integer::bigint << 46) | (c.lease >> 20) end;
  get diagnostics v_got = row_count;
  if v_got > 0 then
    -- Another call of this worker may be about to do the same.
    delete from durable.idle_workers i
    where i.ctid = any(array(
      select o.ctid from durable.idle_workers o where o.worker_id = v_worker_id for update skip locked));
  end if;
end
$$;
comment on function durable.claim(text, text[], integer, text[], boolean) is
  'Hands up to max_workflows ready workflows of the given queues to a worker, each with a lease that every later call must '
  'carry; within a queue by priority, then what was started before, then first in, first out, but of every four at least one is '
  'new if one is ready. Of workflows that are suspected of killing their workers, a worker holds one at the most. workflows, if '
  'given, limits it to these names: the ones that '
  'the worker has code for. A first claim registers the worker. steps is null on a first run, else a JSON array of all '
  'that is stored: {"step_name", "status", "attempt", "output" or "error"}, where "omitted" marks an output or error to be '
  'fetched with durable.step_result(). claimed_at is the database''s clock. synchronous_commit => false, for a '
  'transaction in which nothing else is written, spares the claim the wait for the disk: a crash of Postgres may then put the '
  'workflows back in line, which every later call under the lease, and the heartbeat, report as WF002; what is checkpointed is '
  'never lost, nor the claim before it. Errors: WF005 invalid argument.';

create function durable.reclaim(worker text, known uuid[] default '{}')
returns table (
  workflow_id uuid, lease bigint, name text, queue text, input jsonb, attempt integer, steps jsonb,
  created_at timestamptz, claimed_at timestamptz, deadline timestamptz
) language sql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
  with held as materialized (
    select l.* from durable.live_workflows l
    where l.worker_id = (select w.worker_id from durable.workers w where w.name = reclaim.worker and w.died_at is null)
      and (l.workflow_id = any(known)) is not true
  )
  select h.workflow_id, h.lease, h.name, h.queue, h.input, h.attempt, coalesce(s.steps, '[]'),
    h.created_at, durable._now(), h.deadline
  from held h left join durable._steps(array(select o.workflow_id from held o)) s on s.workflow_id = h.workflow_id
  order by h.priority, h.lease
$$;
comment on function durable.reclaim(text, uuid[]) is
  'Hands over again what a worker holds and does not know of: call it when the answer to a claim was lost. known lists the '
  'workflows that it does know of. The columns are those of durable.claim().';
