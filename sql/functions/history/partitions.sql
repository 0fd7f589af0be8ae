-- History lives in one partition per UTC day of creation. Made ahead by the tick, and by whoever finds one missing.

create function durable._partition_name(parent text, day date)
returns text language sql stable as $$ select parent || to_char(day, '_YYYYMMDD') $$;

-- A table with the name of a day's partition, whether or not it is attached; null when there is none.
create function durable._partition_table(parent text, day date)
returns regclass language sql stable as $$ select to_regclass('durable.' || durable._partition_name(parent, day)) $$;

create function durable._add_partition(parent text, day date)
returns boolean language plpgsql as $$
declare
  v_name text := durable._partition_name(parent, day);
begin
  if durable._partition_table(parent, day) is not null then
    return false;
  end if;
  -- Not an advisory lock: only one on a relation makes this session hear of the partition that the one before has made. Without
  -- ONLY it would be a lock on every day.
  execute format('lock table only durable.%I in share update exclusive mode', parent);
  if durable._partition_table(parent, day) is not null then
    return false;
  end if;
  -- Rows of history never change: pages are full, and the first vacuum freezes what it sees. Payloads over a few hundred
  -- bytes lie outside the row, which halves what a list has to read and costs no more to write.
  --
  -- Attaching locks the parent for nobody who reads or writes it; CREATE TABLE ... PARTITION OF would lock all out.
  execute format(
    'create table durable.%I (like durable.%I including all) with (toast_tuple_target = 256, autovacuum_freeze_min_age = 0)',
    v_name, parent || '_shape');
  execute format('alter table durable.%I attach partition durable.%I for values from (%L) to (%L)', parent, v_name,
    durable._first_id(durable._start_of(day)), durable._first_id(durable._start_of(day + 1)));
  return true;
end
$$;

-- The partition of a day; null when there is none. One that somebody has detached, or is about to, is none.
create function durable._partition(parent text, day date)
returns regclass language plpgsql stable as $$
declare
  v_partition regclass := durable._partition_table(parent, day);
begin
  return (
    select i.inhrelid::regclass from pg_inherits i
    where i.inhrelid = v_partition and i.inhparent = ('durable.' || parent)::regclass and not i.inhdetachpending);
end
$$;

-- The first day after a day that has a partition; null when there is none. Names of partitions sort by their day, so that this
-- takes as long however many there are.
create function durable._next_partition(parent text, after date)
returns date language plpgsql stable as $$
begin
  return (
    select to_date(right(c.relname, 8), 'YYYYMMDD') from (
      select c.relname from pg_class c
      -- A tilde sorts behind the names of the indexes of that day, and a colon behind all digits.
      where c.relname > (
          case when isfinite(after) then durable._partition_name(parent, after) || '~' else parent || '_' end)::name
        and c.relname < (parent || '_:')::name
        and c.relnamespace = 'durable'::regnamespace and c.relname ~ '_[0-9]{8}$' and (
          -- Not exists(), which may be planned as a join of all of them.
          select true from pg_inherits i
          where i.inhrelid = c.oid and i.inhparent = ('durable.' || parent)::regclass and not i.inhdetachpending limit 1)
      order by c.relname limit 1) c);
end
$$;

create function durable._provision_partitions(first_day date, last_day date)
returns integer language plpgsql as $$
declare
  v_day date := first_day;
  v_added integer := 0;
begin
  while v_day <= last_day loop
    v_added := v_added
      + durable._add_partition('finished_workflows', v_day)::integer
      + durable._add_partition('checkpoints', v_day)::integer;
    v_day := v_day + 1;
  end loop;
  return v_added;
end
$$;

-- Makes the partitions of a day unless that would have to wait; null when it would.
create function durable._try_to_provision(day date)
returns integer language plpgsql set lock_timeout = '50ms' as $$
begin
  return durable._provision_partitions(day, day);
exception when lock_not_available then
  return null;
end
$$;

-- Makes sure that rows of these workflows can be stored. In the usual case all are of one day, and it takes one look-up
-- in the catalogue's cache. Ids that are not live are passed over: a made-up one must not make a partition. Returns those for
-- which that has to wait for another transaction, which it does only if it may; null for none.
create function durable._ensure_partitions(workflow_ids uuid[], may_wait boolean)
returns uuid[] language plpgsql as $$
declare
  v_day date := durable._day_of(workflow_ids[1]);
  v_late uuid[];
begin
  if durable._partition_table('checkpoints', v_day) is not null
    and durable._first_id(durable._start_of(v_day)) <= all (workflow_ids)
    and durable._first_id(durable._start_of(v_day + 1)) > all (workflow_ids) then
    return null;
  end if;
  for v_day in
    select distinct durable._day_of(l.workflow_id) from durable.live_workflows l where l.workflow_id = any(workflow_ids)
  loop
    if may_wait then
      perform durable._provision_partitions(v_day, v_day);
    elsif durable._try_to_provision(v_day) is null then
      v_late := v_late || array(select i.id from unnest(workflow_ids) as i(id) where durable._day_of(i.id) = v_day);
    end if;
  end loop;
  return v_late;
end
$$;
