-- The most workflows that one call in bulk takes.
create function durable._check_bulk(workflow_ids uuid[])
returns void language plpgsql as $$
begin
  perform durable._require(durable._length(workflow_ids) between 0 and 10000,
    format('%s workflows are too many for one call, or not in a flat array', coalesce(cardinality(workflow_ids)::text, 'NULL')),
    'Pass at most 10000 ids: put a limit on the selection, and call it again for the others.');
end
$$;

-- Brings failed and cancelled workflows back to life, and returns how many.
create function durable._retry(workflow_ids uuid[])
returns integer language plpgsql set plan_cache_mode = force_custom_plan as $$
declare
  v_day record;
  v_ids uuid[];
  v_errors jsonb[];
  v_places durable.place[];
  v_count integer := 0;
begin
  perform pg_current_xact_id();
  for v_day in select * from durable._by_day(workflow_ids) loop
    with ended as materialized (
      select f.workflow_id from durable.finished_workflows f
      where f.workflow_id >= v_day.first_id and f.workflow_id < v_day.next_id and f.workflow_id = any(v_day.ids)
        and f.status in ('failed', 'cancelled')
      order by f.workflow_id for update
    ), back as (
      delete from durable.finished_workflows f
      where f.workflow_id >= v_day.first_id and f.workflow_id < v_day.next_id
        and f.workflow_id = any(array(select e.workflow_id from ended e))
      returning f.*, row(durable._line_id(f.queue, f.priority, f.name), f.priority, f.queue, f.name)::durable.place as place
    ), live as (
      insert into durable.live_workflows (workflow_id, parent_id, line_id, ready_seq, created_at, started_at, attempt, max_attempts,
        priority, replay, status, timeout, name, queue, key, tags, input, warning, forked_from, forked_at_step, continued_from)
      select b.workflow_id, b.parent_id, (b.place).line_id, nextval('durable.ready_seq'), b.created_at, b.started_at, b.attempt + 1,
        b.max_attempts, b.priority, true, 'pending', b.timeout, b.name, b.queue, b.key, b.tags, b.input, b.warning,
        b.forked_from, b.forked_at_step, b.continued_from
      from back b order by b.workflow_id
    )
    select array_agg(b.workflow_id), array_agg(b.error), array_agg(b.place) into v_ids, v_errors, v_places from back b;
    -- Also a step that was interrupted: whoever retries the workflow that it failed decides that it may run again.
    perform durable._forget_failed_steps(i.id, i.error), durable._retry_children(i.id, i.error)
    from unnest(v_ids, v_errors) as i(id, error);
    perform durable._line_up(v_places);
    v_count := v_count + coalesce(cardinality(v_ids), 0);
  end loop;
  return v_count;
end
$$;

create function durable.retry(workflow_id uuid)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off
set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
begin
  if durable._retry(array[workflow_id]) = 0 then
    perform durable.status(workflow_id);
    return false;
  end if;
  return true;
end
$$;
comment on function durable.retry(uuid) is
  'Lets a failed or cancelled workflow go on from its last checkpoint; the step that failed it runs again, also one that runs at '
  'most once, and so do the children whose failure it was. Failures, crashes and the timeout count anew. Returns false when it '
  'is neither failed nor cancelled. Errors: WF001 workflow not found.';

create function durable.retry_many(workflow_ids uuid[])
returns integer language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off
set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
begin
  perform durable._check_bulk(workflow_ids);
  return durable._retry(workflow_ids);
end
$$;
comment on function durable.retry_many(uuid[]) is
  'durable.retry() for a selection of at most 10000 workflows, in one statement: select durable.retry_many(array(select '
  'workflow_id from durable.workflows where ...)). Returns how many go on; those that are neither failed nor cancelled, or not '
  'stored, are passed over. Errors: WF005 for more ids, or NULL.';
