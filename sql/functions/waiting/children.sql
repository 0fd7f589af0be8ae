-- Children: workflows that a workflow starts, and waits for. How they are stored stands in sql/tables/waiting/children.sql.

-- The id of a child by the first one of its group and its place, from 0; the last place there can be ends the range of
-- ids.
create function durable._child_id(first_id uuid, place integer default 16777215)
returns uuid language sql immutable strict parallel safe as $$
  select (left(first_id::text, 30) || lpad(to_hex(place), 6, '0'))::uuid
$$;

create function durable._child_place(id uuid)
returns integer language sql immutable strict parallel safe as $$ select ('x' || right(id::text, 6))::bit(24)::integer $$;

-- The last child of a group that has not ended; null when all have. From the end, where none is for as long as most are
-- not, so that whatever has ended before is not waded through each time.
create function durable._unfinished_child(first_id uuid)
returns uuid language plpgsql stable as $$
begin
  return (
    select l.workflow_id from durable.live_workflows l
    where l.workflow_id >= _unfinished_child.first_id and l.workflow_id <= durable._child_id(_unfinished_child.first_id)
    order by l.workflow_id desc limit 1);
end
$$;

-- The id of a first child, from what may be anything.
create function durable._as_first_id(id text)
returns uuid language sql immutable strict parallel safe as $$
  select case when id ~ '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{6}0{6}$' then id::uuid end
$$;

-- How many children a call of durable.start_children() started: what its step says, when some may have left the history.
create function durable._children_started(first_id uuid, parent_id uuid)
returns integer language plpgsql stable set plan_cache_mode = force_custom_plan as $$
declare
  v_now timestamptz := durable._now();
begin
  if durable._id_time(first_id) > v_now - (durable._keeps(v_now)).shortest then
    return null;
  end if;
  return (
    select (c.output ->> 'children')::integer from durable.checkpoints c
    where c.workflow_id = parent_id and c.output ->> 'first' = first_id::text and c.output ? 'children' and c.status = 'completed'
    limit 1);
end
$$;

create function durable._is_child(first_id uuid, parent_id uuid)
returns boolean language plpgsql stable as $$
begin
  return exists (
      select from durable.live_workflows l where l.workflow_id = _is_child.first_id and l.parent_id = _is_child.parent_id)
    or exists (
      select from durable._ended(array[_is_child.first_id]) e where e.parent_id = _is_child.parent_id)
    -- The first one, and all of them, may have left the history.
    or durable._children_started(_is_child.first_id, _is_child.parent_id) is not null;
end
$$;

-- What a wait for children ends with. A replay must find what the first run found, also when a child was retried since:
-- so failures are stored with the wait, in short when they are many. Outputs are stored with it while they are few;
-- else they stay with the children. A child that is stored no more counts as one that failed: nobody knows how it ended.
create function durable._children_value(first_id uuid, parent_id uuid)
returns jsonb language plpgsql stable set plan_cache_mode = force_custom_plan as $$
declare
  v_most constant integer := 100000;
  v_last uuid := durable._child_id(first_id);
  v_started integer := durable._children_started(first_id, parent_id);
  v_all record;
  v_has_outputs boolean;
  v_letters integer;
  v_gone uuid[] := array[]::uuid[];
begin
  select count(*) as count, sum(pg_column_size(f.output)) as output_size, sum(pg_column_size(f.error)) as error_size
    into v_all
  from durable.finished_workflows f
  where f.workflow_id >= _children_value.first_id and f.workflow_id <= v_last;
  -- The sizes of columns are those of their compressed form: what is small by that may be large.
  v_has_outputs := case when v_all.output_size > v_most then false else (
    select (sum(octet_length(f.output::text)) > 10 * v_most) is not true from durable.finished_workflows f
    where f.workflow_id >= _children_value.first_id and f.workflow_id <= v_last) end;
  v_letters := case when v_all.error_size > v_most then greatest(10, least(200, 20000000 / v_all.count))::integer else (
    select case when sum(octet_length(f.error::text)) > 10 * v_most then 200 end from durable.finished_workflows f
    where f.workflow_id >= _children_value.first_id and f.workflow_id <= v_last) end;
  if v_all.count < v_started then
    v_gone := array(
      select durable._child_id(_children_value.first_id, g.place) from generate_series(0, v_started - 1) as g(place)
      except
      select f.workflow_id from durable.finished_workflows f
      where f.workflow_id >= _children_value.first_id and f.workflow_id <= v_last);
  end if;
  return jsonb_build_object('first', first_id, 'children', coalesce(v_started, v_all.count), 'failed', (
      select coalesce(jsonb_object_agg(durable._child_place(n.id), jsonb_build_object('status', n.status, 'error', n.error)), '{}')
      from (
        select f.workflow_id as id, f.status, case when v_letters is null then f.error else jsonb_build_object(
          'type', left(f.error ->> 'type', v_letters), 'code', left(f.error ->> 'code', v_letters),
          'message', left(coalesce(f.error ->> 'message', f.error::text), v_letters)) end as error
        from durable.finished_workflows f
        where f.workflow_id >= _children_value.first_id and f.workflow_id <= v_last and f.status <> 'completed'
        union all
        select g.id, 'failed', jsonb_build_object(
          'type', 'WorkflowNotFound', 'code', 'WF001', 'message', format('workflow %s not found', g.id),
          'detail', 'This child ended, and has left the history since: nobody knows how.',
          'hint', 'Enqueue the parent anew, or keep the history of its children for longer: see durable.retain().')
        from unnest(v_gone) as g(id)) n))
    || case when not v_has_outputs then '{}' else jsonb_build_object('outputs', (
      select jsonb_agg(o.output order by o.id)
      from (
        select f.workflow_id as id, f.output from durable.finished_workflows f
        where f.workflow_id >= _children_value.first_id and f.workflow_id <= v_last
        union all
        select g.id, null from unnest(v_gone) as g(id)) o)) end;
end
$$;

create function durable.start_children(
  workflow_id uuid, lease bigint, step_name text, workflow text, inputs jsonb[], queue text default null,
  priority integer default null, max_parallel integer default null, max_attempts integer default 1,
  timeout interval default null, tags jsonb default '{}'
)
returns uuid language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set enable_nestloop = off
set plan_cache_mode = force_generic_plan set jit = off as $$
#variable_conflict use_variable
declare
  v_first uuid := durable._child_id(durable._new_id(), 0);
  v_stored record;
  v_queue text;
  v_priority integer;
  v_line_id bigint;
  v_now timestamptz;
begin
  perform durable._hold_lease(workflow_id, lease, step_name);
  select coalesce(start_children.queue, l.queue), coalesce(start_children.priority, l.priority) into v_queue, v_priority
  from durable.live_workflows l where l.workflow_id = start_children.workflow_id;
  perform durable._check_enqueue(workflow, v_queue, v_priority, null, max_attempts, timeout, tags);
  perform durable._check_inputs(workflow, inputs, null, durable._max_payload());
  perform durable._require(cardinality(inputs) between 1 and 1000000 and (max_parallel >= 1) is not false,
    format('workflow %s, step %L: %s children, at most %s at a time', workflow_id, step_name, cardinality(inputs),
      max_parallel),
    'Start 1 to 1000000 children in one call; max_parallel is 1 or more, or NULL for all of them at once.');

  select r.outcome, r.output, r.error into v_stored
  from durable._checkpoint(array[workflow_id], array[lease], array[step_name],
    array[jsonb_build_object('first', v_first, 'children', cardinality(inputs))], null, null, null) r;
  if v_stored.error is not null then
    perform durable._raise('WF007', format('workflow %s, step %L: it is already stored as failed', workflow_id, step_name),
      v_stored.error ->> 'message', 'The first outcome of a step stands; durable.retry() lets a failed one run again.');
  elsif v_stored.outcome = 'exists' then
    perform durable._require(durable._is_child(durable._as_first_id(v_stored.output ->> 'first'), workflow_id),
      format('workflow %s, step %L: it is stored, and did not start children', workflow_id, step_name),
      'Use a name of its own for each step.');
    return (v_stored.output ->> 'first')::uuid;
  elsif v_stored.outcome is not null then
    perform durable._raise_outcome(v_stored.outcome, workflow_id, lease, step_name);
  end if;

  perform durable._let_ring();
  perform pg_current_xact_id();
  v_line_id := durable._line_id(v_queue, v_priority, workflow);
  v_now := durable._now();
  insert into durable.live_workflows (workflow_id, parent_id, line_id, lets_in, ready_seq, wake_at, created_at, max_attempts,
    priority, status, timeout, name, queue, tags, input)
  select durable._child_id(v_first, i.n::integer - 1), workflow_id, v_line_id,
    case when max_parallel < cardinality(inputs) then true end,
    case when i.n > max_parallel then null else nextval('durable.ready_seq') end,
    case when i.n > max_parallel then 'infinity'::timestamptz end,
    v_now, max_attempts, v_priority, 'pending', timeout, workflow, v_queue, tags, i.input
  from unnest(inputs) with ordinality as i(input, n)
  order by i.n;
  perform durable._line_up(array_fill(row(v_line_id, v_priority, v_queue, workflow)::durable.place,
    array[least(cardinality(inputs), max_parallel)]));
  return v_first;
end
$$;
comment on function
  durable.start_children(uuid, bigint, text, text, jsonb[], text, integer, integer, integer, interval, jsonb) is
  'Starts one workflow for each input as children of a workflow, as a step of it: exactly once, however often it is called. '
  'Returns the id of the first child; the ids of the others follow it, and durable.child_results() lists them. queue and '
  'priority are those of the parent unless given; at most max_parallel of them are under way at a time; all else is as for '
  'durable.enqueue(). Wait for all of them with durable.wait() and the condition {"children": id of the first}. They are '
  'cancelled with their parent, and otherwise go on without it. Errors: WF001 workflow not found, WF002 lease lost, WF004 '
  'cancelled, WF005 invalid argument, WF006 input too large, WF007 the step is stored as failed.';

create function durable.child_results(first_id uuid)
returns table (workflow_id uuid, status text, output jsonb, error jsonb)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off
set plan_cache_mode = force_custom_plan set jit = off as $$
#variable_conflict use_column
declare
  v_last uuid := durable._child_id(first_id);
begin
  return query
  select f.workflow_id, f.status, f.output, f.error from durable.finished_workflows f
  where f.workflow_id >= first_id and f.workflow_id <= v_last and f.parent_id is not null
  union all
  select l.workflow_id, l.status, null, l.error from durable.live_workflows l
  where l.workflow_id >= first_id and l.workflow_id <= v_last and l.parent_id is not null
  order by 1;
end
$$;
comment on function durable.child_results(uuid) is
  'The children that one call of durable.start_children() started, by what it returned: one row for each, in the order of the '
  'inputs, also for those that have not ended. No row when there are none, or none any more.';

create function durable._failed_children(first_id uuid)
returns uuid[] language plpgsql stable set plan_cache_mode = force_custom_plan as $$
declare
  v_last uuid := durable._child_id(first_id);
begin
  return array(
    select f.workflow_id from durable.finished_workflows f
    where f.workflow_id >= _failed_children.first_id and f.workflow_id <= v_last and f.status <> 'completed');
end
$$;

-- What the next attempt must run again when a wait for children ended the last one, as their failure: those that
-- failed. It waits for all of them anew.
create function durable._retry_children(workflow_id uuid, error jsonb)
returns void language plpgsql as $$
declare
  v_step text := error ->> 'step';
  v_first uuid;
begin
  select durable._as_first_id(o.output #>> '{value,first}') into v_first
  from durable._outcomes(array[workflow_id], array[v_step]) o
  where o.output #> '{value,failed}' <> '{}';
  if durable._is_child(v_first, workflow_id) then
    perform durable._forget_step(workflow_id, v_step);
    perform durable._retry(durable._failed_children(v_first));
  end if;
end
$$;

-- Lets in as many children that max_parallel holds back as have ended, and leaves what it could not do for the tick:
-- others may hold their rows.
create function durable._let_in(p_xids xid8[], p_seqs bigint[])
returns integer language plpgsql as $$
declare
  v_group record;
  v_places durable.place[];
  v_count integer;
  v_left integer;
  v_let_in integer := 0;
begin
  perform pg_current_xact_id();
  for v_group in
    select e.first_id, sum(e.slots)::integer as slots, min(e.seq) as seq from durable.ended_children e
    where e.xid = any(p_xids) and e.seq = any(p_seqs) and e.slots > 0
    group by e.first_id order by e.first_id
  loop
    with let_in as (
      update durable.live_workflows l
      set wake_at = null, ready_seq = case when l.paused_at is null then nextval('durable.ready_seq') end
      where l.workflow_id = any(array(
        select h.workflow_id from durable.live_workflows h
        -- Written so that no other index than the primary key serves it.
        where h.workflow_id >= v_group.first_id and h.workflow_id <= durable._child_id(v_group.first_id)
          and not isfinite(h.wake_at)
        order by h.workflow_id limit v_group.slots for update skip locked))
      returning l.ready_seq, row(l.line_id, l.priority, l.queue, l.name)::durable.place as place
    )
    select array_agg(i.place) filter (where i.ready_seq is not null), count(*)::integer into v_places, v_count from let_in i;
    v_left := v_group.slots - v_count;
    if v_left > 0 and not exists (
        select from durable.live_workflows h
        where h.workflow_id >= v_group.first_id and h.workflow_id <= durable._child_id(v_group.first_id)
          and not isfinite(h.wake_at)) then
      v_left := 0;
    end if;
    update durable.ended_children e set slots = case when e.seq = v_group.seq then v_left else 0 end
    where e.xid = any(p_xids) and e.seq = any(p_seqs) and e.first_id = v_group.first_id and e.slots > 0;
    perform durable._line_up(v_places);
    v_let_in := v_let_in + v_count;
  end loop;
  return v_let_in;
end
$$;

-- What the end of children brings about, at the commit: once for all that a transaction ended.
create function durable._wake_parents()
returns trigger language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
  v_seqs bigint[];
  v_parents uuid[];
  v_slots integer;
begin
  if not durable._sees_commits()
    or exists (select from durable.ended_children e where e.xid = new.xid and e.seq > new.seq) then
    return null;
  end if;
  select array_agg(e.seq), array_agg(distinct e.parent_id), sum(e.slots) into v_seqs, v_parents, v_slots
  from durable.ended_children e where e.xid = new.xid;
  if v_slots > 0 then
    perform durable._let_in(array[new.xid], v_seqs);
  end if;
  v_parents := durable._wake(array(
    select distinct w.workflow_id from durable.waits w
    where w.workflow_id = any(v_parents) and w.kind = 'children'
      and durable._has_come(w.kind, w.subject, w.workflow_id)));
  if cardinality(v_parents) > 0 then
    delete from durable.ended_children e where e.xid = new.xid and e.parent_id = any(v_parents) and e.slots = 0;
  end if;
  return null;
end
$$;

-- An unfinished workflow with all that is unfinished below it, locked in the order of the ids. A child that a
-- transaction starts while this one waits for its row is found in the next round. Null when another transaction has locked something
-- of one of them, and this one may not wait.
create function durable._lock_family(workflow_id uuid, may_wait boolean default true)
returns uuid[] language plpgsql as $$
declare
  v_ids uuid[];
  v_found uuid[] := array[workflow_id];
  v_level uuid[];
begin
  loop
    if not may_wait and (exists (
        select from durable.live_workflows l where l.workflow_id = any(v_found) and l.workflow_id <> all(array(
          select o.workflow_id from durable.live_workflows o where o.workflow_id = any(v_found) for update skip locked)))
        or cardinality(durable._with_held_rows(v_found)) > 0) then
      return null;
    end if;
    v_ids := array(
      select l.workflow_id from durable.live_workflows l where l.workflow_id = any(v_found)
      order by l.workflow_id for update);
    v_found := v_ids;
    v_level := v_ids;
    while cardinality(v_level) > 0 loop
      v_level := array(
        select l.workflow_id from durable.live_workflows l where l.parent_id = any(v_level) and l.parent_id is not null
        except select unnest(v_found));
      v_found := v_found || v_level;
    end loop;
    exit when cardinality(v_found) = cardinality(v_ids);
  end loop;
  return v_ids;
end
$$;
