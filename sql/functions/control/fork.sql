-- A fork is a new workflow that begins with checkpoints of another one. Before a step is what had ended when that step
-- ended: whatever depends on the outcome of a step ends after it. So of steps that ran side by side, those that ended first are
-- copied, and the others run again.

-- Whether a step started children that no wait had seen the end of by then. They are those of the original: a fork starts its
-- own.
create function durable._has_pending_children(step durable.checkpoints, until timestamptz)
returns boolean language plpgsql stable set plan_cache_mode = force_custom_plan as $$
begin
  return step.output ? 'first'
    and durable._is_child(durable._as_first_id(step.output ->> 'first'), step.workflow_id) is true
    and not exists (
      select from durable.checkpoints w
      where w.workflow_id = step.workflow_id and w.completed_at < until and (
        w.output #>> '{value,first}' = step.output ->> 'first'
        or w.output -> 'values' @> jsonb_build_array(jsonb_build_object('first', step.output -> 'first'))));
end
$$;

-- Returns the ids of the forks in the order of the workflows; null for those that are not stored, or lack a step.
create function durable._fork(workflow_ids uuid[], from_step text, input jsonb, outputs jsonb)
returns uuid[] language plpgsql set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
  -- Read before the snapshot is taken: what comes after a step that has no outcome in it ends later than this.
  v_now timestamptz := durable._now();
  v_today date := (v_now at time zone 'UTC')::date;
  v_day record;
  v_max bigint := durable._max_payload();
  v_forks uuid[] := array_fill(null::uuid, array[cardinality(workflow_ids)]);
  v_items bigint[];
  v_new uuid[];
  v_places durable.place[];
begin
  perform durable._require((jsonb_typeof(outputs) = 'object') is true, 'outputs must be a JSON object',
    'For example ''{"charge": {"paid": true}}'': the names of steps, and what they are to have returned.');
  if durable._is_too_large(input, v_max) or exists (
      select from jsonb_each(outputs) as o where durable._is_too_large(o.value, v_max)) then
    perform durable._raise('WF006', 'the input or an output of the fork is too large',
      format('The limit is %s bytes of jsonb (setting max_payload_bytes), and %s of text. Nothing was forked.', v_max,
        durable._max_text()),
      'Store the data elsewhere and pass a reference, or raise the limit with durable.configure().');
  end if;
  perform durable._provision_partitions(v_today, v_today + 1);
  perform pg_current_xact_id();
  for v_day in select d.first_id, d.next_id from durable._by_day(workflow_ids) d loop
    with item as materialized (
      select i.n, durable._new_id() as fork, w.*,
        row(durable._line_id(w.queue, w.priority, w.name), w.priority, w.queue, w.name)::durable.place as place
      from (
        select i.n, i.workflow_id,
          case when from_step is null then '-infinity' else coalesce(
            (select c.completed_at from durable.checkpoints c
             where c.workflow_id >= v_day.first_id and c.workflow_id < v_day.next_id
               and c.workflow_id = i.workflow_id and c.step_name = _fork.from_step),
            (select v_now from durable.open_steps o where o.workflow_id = i.workflow_id and o.step_name = _fork.from_step))
          end as until
        from unnest(_fork.workflow_ids) with ordinality as i(workflow_id, n)
        where i.workflow_id >= v_day.first_id and i.workflow_id < v_day.next_id) i
      cross join lateral (
        select i.until, s.workflow_id, s.max_attempts, s.priority, s.timeout, s.name, s.queue, s.tags, s.input
        from durable.workflows s
        where s.workflow_id >= v_day.first_id and s.workflow_id < v_day.next_id and s.workflow_id = i.workflow_id limit 1) w
      where i.until is not null and not exists (
        select from jsonb_object_keys(outputs) as k(step_name)
        where (
            select true from durable.checkpoints c
            where c.workflow_id >= v_day.first_id and c.workflow_id < v_day.next_id
              and c.workflow_id = i.workflow_id and c.step_name = k.step_name) is null
          and (
            select true from durable.open_steps o
            where o.workflow_id = i.workflow_id and o.step_name = k.step_name) is null)
    ), forked as (
      insert into durable.live_workflows (workflow_id, line_id, ready_seq, created_at, max_attempts, priority, replay, status,
        timeout, name, queue, tags, input, forked_from, forked_at_step)
      select i.fork, (i.place).line_id, nextval('durable.ready_seq'), v_now, i.max_attempts, i.priority, true, 'pending',
        i.timeout, i.name, i.queue, i.tags, coalesce(_fork.input, i.input), i.workflow_id, _fork.from_step
      from item i order by i.n
    ), copied as (
      insert into durable.checkpoints (workflow_id, started_at, completed_at, attempt, status, step_name, output, error)
      select i.fork, c.started_at, c.completed_at, c.attempt, c.status, c.step_name, c.output, c.error
      from item i
      cross join lateral (
        select o.* from durable.checkpoints o
        where o.workflow_id >= v_day.first_id and o.workflow_id < v_day.next_id and o.workflow_id = i.workflow_id offset 0) c
      where c.completed_at < i.until and c.step_name is distinct from _fork.from_step and not outputs ? c.step_name
        and not durable._has_pending_children(c, i.until)
    ), replaced as (
      insert into durable.checkpoints (workflow_id, started_at, completed_at, attempt, status, step_name, output)
      select i.fork, c.started_at, coalesce(c.completed_at, v_now), coalesce(c.attempt, 1), 'completed', o.key, o.value
      from item i cross join jsonb_each(outputs) as o
      left join lateral (
        select p.* from durable.checkpoints p
        where p.workflow_id >= v_day.first_id and p.workflow_id < v_day.next_id
          and p.workflow_id = i.workflow_id and p.step_name = o.key limit 1) c on true
    )
    select array_agg(i.n), array_agg(i.fork), array_agg(i.place) into v_items, v_new, v_places from item i;
    perform durable._line_up(v_places);
    for i in 1 .. coalesce(cardinality(v_items), 0) loop
      v_forks[v_items[i]] := v_new[i];
    end loop;
  end loop;
  return v_forks;
end
$$;

create function durable.fork(
  workflow_id uuid, from_step text default null, input jsonb default null, outputs jsonb default '{}'
)
returns uuid language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off
set enable_hashjoin = off set enable_mergejoin = off set jit = off set plan_cache_mode = force_custom_plan as $$
declare
  v_fork uuid := (durable._fork(array[workflow_id], from_step, input, outputs))[1];
  v_missing text;
begin
  if v_fork is null then
    perform durable.status(workflow_id);
    select k.step_name into v_missing
    from (select from_step as step_name union all select jsonb_object_keys(outputs)) k
    where k.step_name is not null and not exists (
      select from durable.workflow_steps s where s.workflow_id = fork.workflow_id and s.step_name = k.step_name);
    perform durable._require(false, format('workflow %s has no step %L', workflow_id, v_missing),
      'durable.history() lists its steps; a repeated one has a number: ''charge#2''.');
  end if;
  return v_fork;
end
$$;
comment on function durable.fork(uuid, text, jsonb, jsonb) is
  'Starts a copy of a workflow, finished or not, in the caller''s transaction, and returns its id. The copy has the checkpoints of '
  'all that had ended before from_step ended, and runs from there; of parallel steps, those that ended later run again. Without '
  'from_step it runs from the start. input replaces the input. outputs replaces what steps returned: {"step": output}; the '
  'fork has these outputs whether the steps came before from_step or not. Everything else is that of the original, but the '
  'key, which a fork has not. The two share nothing from there on; forked_from and forked_at_step in durable.workflows keep the '
  'lineage. Errors: WF001 workflow not found, WF005 no such step, or outputs is not an object, WF006 too large.';

create function durable.fork_many(
  workflow_ids uuid[], from_step text default null, input jsonb default null, outputs jsonb default '{}'
)
returns setof uuid language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off
set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
begin
  perform durable._check_bulk(workflow_ids);
  return query select unnest(durable._fork(workflow_ids, from_step, input, outputs));
end
$$;
comment on function durable.fork_many(uuid[], text, jsonb, jsonb) is
  'durable.fork() for a selection of at most 10000 workflows, in one statement: select durable.fork_many(array(select workflow_id '
  'from durable.workflows where ...), ''charge''). Returns the ids of the forks in the order of the workflows; null for one that '
  'is not stored, or has not all of the steps. Errors: WF005 for more ids, NULL, or outputs that is not an object; WF006 too large.';
