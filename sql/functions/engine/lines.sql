-- The registry of lines; how it works stands in sql/tables/engine/lines.sql.

-- A number for a kind of work, the same on every server and in every version: of what is hashed, only UTF-8 bytes decide, and
-- no text has a byte of zero.
create function durable._line_hash(queue text, priority integer, name text)
returns bigint language sql stable as $$
  select ('x' || encode(substring(sha256(
    convert_to(queue, 'UTF8') || decode('00', 'hex') || convert_to(name, 'UTF8') || decode('00', 'hex')
    || int4send(priority)) for 8), 'hex'))::bit(64)::bigint
$$;

-- The line of what is new; the two below make of it the one of what is started, and of suspects.
create function durable._line_id(queue text, priority integer, name text)
returns bigint language sql stable as $$ select durable._line_hash(queue, priority, name) << 2 $$;

create function durable._started_line(line_id bigint)
returns bigint language sql immutable parallel safe as $$ select line_id | 1 $$;

create function durable._suspect_line(line_id bigint)
returns bigint language sql immutable parallel safe as $$ select line_id | 3 $$;

-- The line of what is no longer a suspect.
create function durable._cleared_line(line_id bigint)
returns bigint language sql immutable parallel safe as $$ select line_id & -3 $$;

create function durable._is_suspect_line(line_id bigint)
returns boolean language sql immutable parallel safe as $$ select line_id & 2 <> 0 $$;

create function durable._is_started_line(line_id bigint)
returns boolean language sql immutable parallel safe as $$ select line_id & 1 <> 0 $$;

-- Adds a line that the caller does not see, without waiting for others who do the same.
create function durable._add_line(line_id bigint, priority smallint, queue text, name text)
returns void language plpgsql as $$
begin
  insert into durable.lines (line_id, priority, queue, name)
  values (_add_line.line_id, _add_line.priority, _add_line.queue, _add_line.name);
  perform durable._add_queue(queue);
end
$$;

-- For what was just put in line, one element for each workflow: adds the lines that the caller does not see, and rings. Call it
-- in a statement of its own, after the transaction has its xid.
create function durable._line_up(places durable.place[])
returns void language plpgsql as $$
#variable_conflict use_column
declare
  v_line record;
begin
  for v_line in
    select p.line_id, p.priority, p.queue, p.name, count(*)::integer as workflows,
      -- Not exists(), which may be planned by reading all lines.
      (select true from durable.lines n
       where n.line_id = p.line_id and n.queue = p.queue and n.priority = p.priority and n.name = p.name
         and not n.leaving limit 1) as is_known
    from unnest(places) as p group by p.line_id, p.priority, p.queue, p.name
  loop
    if v_line.is_known is null then
      perform durable._add_line(v_line.line_id, v_line.priority, v_line.queue, v_line.name);
    end if;
    perform durable._ring(v_line.queue, v_line.name, v_line.workflows);
  end loop;
end
$$;

-- Looks at the lines whose time it is: makes one of those that are double, and lets those leave that are empty. p_at is null when
-- the transaction had its xid before it was known that no other tick is under way.
create function durable._tidy_lines(max_lines integer, p_at timestamptz)
returns integer language plpgsql as $$
#variable_conflict use_column
declare
  v_now timestamptz := durable._now();
  -- Read before the snapshot in which a line is seen to be empty.
  v_xmin xid8 := pg_snapshot_xmin(pg_current_snapshot());
  v_line record;
  v_kept tid[] := array[]::tid[];
  v_marked tid[] := array[]::tid[];
  v_seen tid[] := array[]::tid[];
  v_gone tid[] := array[]::tid[];
  v_gone_ids bigint[] := array[]::bigint[];
  v_gone_from text[] := array[]::text[];
  v_free tid[];
  v_tidied integer := 0;
begin
  for v_line in
    with due as (
      select distinct d.line_id, d.priority, d.queue, d.name
      from (
        select o.* from durable.lines o
        -- An xid from the future came with a dump from another server.
        where o.look_at <= v_now and (o.leaving_xid < v_xmin or o.leaving_xid > pg_current_xact_id()) is not false
        order by o.look_at limit max_lines) d
    ), kind as (
      select d.line_id, d.queue, array_agg(n.ctid order by n.patience desc, n.ctid) as places,
        bool_and(n.leaving) as leaves, bool_and(n.leaving_xid is not null) as is_seen, bool_and(n.leaving_xid < v_xmin) as may_go
      from due d join durable.lines n
        on n.line_id = d.line_id and n.queue = d.queue and n.priority = d.priority and n.name = d.name
      group by d.line_id, d.priority, d.queue, d.name
    )
    select k.*,
      (select true from durable.live_workflows r
       where r.line_id = k.line_id and r.ready_seq is not null limit 1) is not null as is_used,
      (select true from durable.known_queues q where q.queue = k.queue limit 1) is not null as is_listed
    from kind k order by k.queue
  loop
    continue when not (v_line.is_listed or durable._add_queue(v_line.queue));
    v_tidied := v_tidied + 1;
    if not v_line.is_used and not v_line.leaves and cardinality(v_line.places) = 1 then
      v_marked := v_marked || v_line.places;
    elsif not v_line.is_used and v_line.leaves and not v_line.is_seen then
      v_seen := v_seen || v_line.places;
    elsif not v_line.is_used and v_line.leaves and v_line.may_go then
      v_gone := v_gone || v_line.places;
      v_gone_ids := v_gone_ids || v_line.line_id;
      v_gone_from := v_gone_from || v_line.queue;
    else
      v_kept := v_kept || v_line.places[1];
      v_gone := v_gone || v_line.places[2:];
    end if;
  end loop;
  if v_tidied > 0 then
    -- What another tick has locked is tidied by that one.
    v_free := array(
      select n.ctid from durable.lines n where n.ctid = any(v_gone || v_marked || v_seen || v_kept) for update skip locked);
    delete from durable.lines n where n.ctid = any(v_free) and n.ctid = any(v_gone);
    update durable.lines n set leaving = true, look_at = v_now where n.ctid = any(v_free) and n.ctid = any(v_marked);
    update durable.lines n set leaving_xid = pg_current_xact_id(), look_at = v_now + n.patience
    where n.ctid = any(v_free) and n.ctid = any(v_seen) and p_at is not null;
    update durable.lines n
    set leaving = false, leaving_xid = null, patience = least(2 * n.patience, interval '10 minutes'), look_at = v_now + n.patience
    where n.ctid = any(v_free) and n.ctid = any(v_kept);
  end if;
  perform durable._forget_marks(v_gone_from, v_gone_ids);
  if random() < 0.01 then
    perform durable._forget_turns();
  end if;
  return v_tidied;
end
$$;

-- Registers what stands in lines that are not registered: a net, under snapshots from before a line was marked and under what
-- nobody thought of. Looks only between the numbers of registered lines, which it need not read for that; at max_lines of these
-- gaps, from anywhere on.
create function durable._register_lines(max_lines integer)
returns integer language plpgsql as $$
#variable_conflict use_column
declare
  v_lowest constant bigint := -9223372036854775808;
  v_highest constant bigint := 9223372036854775807;
  v_from bigint := durable._line_hash(random()::text, 0, '');
  v_ids bigint[];
  v_more bigint[];
  v_found durable.place;
  v_added integer := 0;
  v_began_at timestamptz := durable._now();
  v_took interval;
begin
  if exists (select from durable.line_sweeps s where s.sweep_at > v_began_at) then
    return 0;
  end if;
  v_ids := array(select distinct l.line_id from durable.lines l where l.line_id > v_from order by l.line_id limit max_lines);
  if cardinality(v_ids) < max_lines then
    -- To the highest number, and from the lowest on.
    v_more := array(
      select distinct l.line_id from durable.lines l where l.line_id <= v_from
      order by l.line_id limit max_lines - cardinality(v_ids));
    if cardinality(v_ids) + cardinality(v_more) < max_lines then
      v_more := v_more || v_from;
    end if;
    v_ids := v_ids || v_highest || v_lowest || v_more;
  end if;
  v_ids := v_from || v_ids;
  for v_gap in 1 .. cardinality(v_ids) - 1 loop
    loop
      select l.line_id, l.priority, l.queue, l.name into v_found from durable.live_workflows l
      where l.ready_seq is not null and l.line_id > v_ids[v_gap] and l.line_id < v_ids[v_gap + 1]
      order by l.line_id, l.ready_seq limit 1;
      exit when not found;
      perform durable._line_up(array[v_found]);
      v_added := v_added + 1;
      v_ids[v_gap] := v_found.line_id;
    end loop;
  end loop;
  -- What left a line that is gone lies there until vacuum may remove it: a twentieth of the time at the most.
  v_took := durable._now() - v_began_at;
  if v_took > interval '10 milliseconds' then
    delete from durable.line_sweeps;
    insert into durable.line_sweeps (sweep_at) values (v_began_at + least(20 * v_took, interval '10 minutes'));
  end if;
  return v_added;
end
$$;
