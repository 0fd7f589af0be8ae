-- Looking workflows and steps up in the history by their ids.
--
-- A plan that is kept for any id has a part for each day and locks them all: with a year of history that is 700 locks and a
-- quarter of a millisecond for one row. So each of these functions plans anew, for the ids of one day at a time; the planner
-- then opens that day and no other, in 40 microseconds. That is what force_custom_plan is for. It holds for everything that is
-- called from such a function, so keep them small. New rows need none of this: an insert finds its partition by itself.
--
-- A look-up for each of many ids is a lateral subquery with a limit, or an offset of 0. As a join it could be answered by reading
-- all of the day, and is, while statistics say that there is nothing in it.

-- The ids of each day, and the bounds of the partition that they are in, in the order of the days.
create function durable._by_day(workflow_ids uuid[])
returns table (first_id uuid, next_id uuid, ids uuid[]) language plpgsql immutable as $$
declare
  v_day date := durable._day_of(workflow_ids[1]);
begin
  first_id := durable._first_id(durable._start_of(v_day));
  next_id := durable._first_id(durable._start_of(v_day + 1));
  ids := workflow_ids;
  -- Nearly always all are of one day.
  if v_day is not null and first_id <= all (workflow_ids) and next_id > all (workflow_ids) then
    return next;
    return;
  end if;
  return query
  select durable._first_id(durable._start_of(d.day)), durable._first_id(durable._start_of(d.day + 1)), d.ids
  from (
    select durable._day_of(i.id) as day, array_agg(distinct i.id) as ids
    from unnest(workflow_ids) as i(id) where i.id is not null group by 1) d
  order by d.day;
end
$$;

-- How these workflows ended; no row for one that has not, or is not stored.
create function durable._ended(workflow_ids uuid[])
returns table (
  workflow_id uuid, status text, completed_at timestamptz, lease bigint, parent_id uuid, output jsonb,
  error jsonb, continued_as uuid
) language plpgsql stable set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
  v_day record;
begin
  for v_day in select * from durable._by_day(workflow_ids) loop
    return query
    select f.workflow_id, f.status, f.completed_at, f.lease, f.parent_id, f.output, f.error, f.continued_as
    from durable.finished_workflows f
    where f.workflow_id >= v_day.first_id and f.workflow_id < v_day.next_id and f.workflow_id = any(v_day.ids);
  end loop;
end
$$;

-- Which of these workflows are stored, unfinished or finished.
create function durable._stored(workflow_ids uuid[])
returns uuid[] language plpgsql stable as $$
declare
  v_live uuid[] := array(select l.workflow_id from durable.live_workflows l where l.workflow_id = any(workflow_ids));
begin
  return v_live || array(
    select e.workflow_id from durable._ended(array(
      select i.id from unnest(workflow_ids) as i(id) except select l.id from unnest(v_live) as l(id))) e);
end
$$;

-- The stored outcomes of steps. The arrays are parallel, and item counts from 1; no row for a step that has none yet.
create function durable._outcomes(workflow_ids uuid[], step_names text[])
returns table (
  item integer, status text, started_at timestamptz, completed_at timestamptz, output jsonb, error jsonb
) language plpgsql stable set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
  v_day record;
begin
  for v_day in select d.first_id, d.next_id from durable._by_day(workflow_ids) d loop
    return query
    select i.n::integer, c.status, c.started_at, c.completed_at, c.output, c.error
    from unnest(workflow_ids, step_names) with ordinality as i(workflow_id, step_name, n)
    cross join lateral (
      select o.* from durable.checkpoints o
      where o.workflow_id >= v_day.first_id and o.workflow_id < v_day.next_id
        and o.workflow_id = i.workflow_id and o.step_name = i.step_name limit 1) c;
  end loop;
end
$$;
