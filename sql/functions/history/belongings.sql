-- What belongs to a workflow and goes with it when it leaves the history: everything that has its id, in the tables that are not
-- partitioned by day. A new table of this kind has its place in these two functions, and tests/test_retention.py finds it
-- missing.

-- The first max_workflows workflows of which something is stored here, from one id up to another, in the order of the ids.
create function durable._belongings(first_id uuid, next_id uuid, max_workflows integer)
returns setof uuid language plpgsql stable as $$
begin
  return query
  select distinct b.workflow_id from (
    (select distinct k.workflow_id from durable.workflow_keys k
     where k.workflow_id >= first_id and k.workflow_id < next_id order by k.workflow_id limit max_workflows)
    union all
    (select distinct m.workflow_id from durable.messages m
     where m.workflow_id >= first_id and m.workflow_id < next_id order by m.workflow_id limit max_workflows)
    union all
    (select distinct r.workflow_id from durable.approval_requests r
     where r.workflow_id >= first_id and r.workflow_id < next_id order by r.workflow_id limit max_workflows)
    union all
    (select distinct s.workflow_id from durable.workflow_state s
     where s.workflow_id >= first_id and s.workflow_id < next_id order by s.workflow_id limit max_workflows)
    union all
    (select distinct o.workflow_id from durable.open_steps o
     where o.workflow_id >= first_id and o.workflow_id < next_id order by o.workflow_id limit max_workflows)) b
  order by 1 limit max_workflows;
end
$$;

-- Deletes all that belongs to these workflows, and returns those of which it did. It waits for nobody: a workflow stays as it
-- is while someone decides an approval of it, or takes its key, in a transaction that is still open.
create function durable._forget(workflow_ids uuid[])
returns uuid[] language plpgsql as $$
declare
  v_ids uuid[];
begin
  v_ids := array(
    select i.id from unnest(workflow_ids) as i(id)
    except (
      select r.workflow_id from durable.approval_requests r
      where r.workflow_id = any(workflow_ids) and r.approval_id not in (
        select o.approval_id from durable.approval_requests o where o.workflow_id = any(workflow_ids)
        order by o.approval_id for update skip locked))
    except (
      select k.workflow_id from durable.workflow_keys k
      where k.workflow_id = any(workflow_ids) and k.key not in (
        select o.key from durable.workflow_keys o where o.workflow_id = any(workflow_ids)
        order by o.key for update skip locked))
    -- What nobody else needs may be locked by hand: only what has an xmax is looked at more closely.
    except (
      select m.workflow_id from durable.messages m
      where m.workflow_id = any(workflow_ids) and m.xmax <> '0'::xid and m.ctid <> all(array(
        select o.ctid from durable.messages o
        where o.workflow_id = any(workflow_ids) and o.xmax <> '0'::xid for update skip locked)))
    except (
      select s.workflow_id from durable.workflow_state s
      where s.workflow_id = any(workflow_ids) and s.xmax <> '0'::xid and s.ctid <> all(array(
        select o.ctid from durable.workflow_state o
        where o.workflow_id = any(workflow_ids) and o.xmax <> '0'::xid for update skip locked)))
    except (
      select s.workflow_id from durable.open_steps s
      where s.workflow_id = any(workflow_ids) and s.xmax <> '0'::xid and s.ctid <> all(array(
        select o.ctid from durable.open_steps o
        where o.workflow_id = any(workflow_ids) and o.xmax <> '0'::xid for update skip locked))));
  delete from durable.workflow_keys k where k.workflow_id = any(v_ids);
  delete from durable.messages m where m.workflow_id = any(v_ids);
  delete from durable.approval_requests r where r.workflow_id = any(v_ids);
  delete from durable.workflow_state s where s.workflow_id = any(v_ids);
  delete from durable.open_steps o where o.workflow_id = any(v_ids);
  return v_ids;
end
$$;

-- Deletes steps that a heartbeat stored as running while a flush ended their workflow: neither transaction saw the other. Views
-- do not show these steps.
create function durable._forget_running(max_steps integer)
returns integer language plpgsql as $$
declare
  v_forgotten integer;
begin
  delete from durable.open_steps o
  where o.ctid = any(array(
    select r.ctid from durable.open_steps r
    where r.waits_for is null and r.retry_at is null and not r.at_most_once
      -- Not exists(), which may be planned by reading all workflows.
      and (select true from durable.live_workflows l where l.workflow_id = r.workflow_id) is null
    order by r.workflow_id limit max_steps for update skip locked));
  get diagnostics v_forgotten = row_count;
  return v_forgotten;
end
$$;

-- Finds days that somebody dropped by hand: looks at one workflow, of which something is stored here and whose day is past. A day
-- that was detached may be attached again, so everything stays for as long as it has its name.
create function durable._find_dropped_day()
returns void language plpgsql as $$
declare
  v_now timestamptz := durable._now();
  v_until timestamptz := greatest(v_now - (durable._keeps(v_now)).shortest, 'epoch');
  v_first timestamptz;
  v_id uuid;
begin
  v_id := (select b from durable._belongings(durable._first_id('epoch'), durable._first_id(v_until), 1) as b);
  if v_id is null then
    return;
  end if;
  if random() < 0.5 then
    v_first := durable._id_time(v_id);
    v_id := coalesce((
      select b from durable._belongings(
        durable._first_id(v_first + random() * (v_until - v_first)), durable._first_id(v_until), 1) as b), v_id);
  end if;
  if durable._partition_table('finished_workflows', durable._day_of(v_id)) is null
    and cardinality(durable._stored(array[v_id])) = 0 then
    insert into durable.dropped_days (day) values (durable._day_of(v_id))
    on conflict on constraint dropped_days_pkey do update set looked_up_to = null;
  end if;
end
$$;

-- Deletes what is left of workflows that went with their day, and returns of how many. Nobody waits for this: a key whose
-- workflow is gone is free already, see durable._take_keys().
create function durable._forget_dropped(max_workflows integer)
returns integer language plpgsql as $$
declare
  v_day record;
  v_found uuid[];
  v_gone uuid[];
  v_forgotten integer;
  v_count integer := 0;
begin
  perform durable._find_dropped_day();
  -- Rarely, for it reads all that heartbeats have listed.
  if random() < 0.05 then
    perform durable._forget_running(max_workflows);
  end if;
  -- A few days at most, and not always the same: of some, all that is left may be in use.
  for v_day in select d.day, d.looked_up_to from durable.dropped_days d order by random() limit 3 loop
    v_found := array(
      select b from durable._belongings(
        coalesce(v_day.looked_up_to, durable._first_id(durable._start_of(v_day.day))),
        durable._first_id(durable._start_of(v_day.day + 1)), max_workflows) as b);
    v_gone := array(select f.id from unnest(v_found) as f(id) except select s.id from unnest(durable._stored(v_found)) as s(id));
    v_forgotten := cardinality(durable._forget(v_gone));
    v_count := v_count + v_forgotten;
    if v_forgotten = cardinality(v_gone) then
      if cardinality(v_found) < max_workflows then
        delete from durable.dropped_days d where d.day = v_day.day;
      else
        update durable.dropped_days d set looked_up_to = v_found[max_workflows] where d.day = v_day.day;
      end if;
    end if;
    exit when v_count >= max_workflows;
  end loop;
  return v_count;
end
$$;
