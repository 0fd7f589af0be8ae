-- History lives in one partition per UTC day of creation. Made ahead by the tick, and by whoever finds one missing.

create function durable._add_partition(parent text, day date)
returns boolean language plpgsql as $$
declare
  v_name text := parent || to_char(day, '_YYYYMMDD');
begin
  if to_regclass('durable.' || v_name) is not null then
    return false;
  end if;
  perform pg_advisory_xact_lock(hashtext('durable.partitions'));
  if to_regclass('durable.' || v_name) is not null then
    return false;
  end if;
  -- Attaching locks the parent for nobody who reads or writes it; CREATE TABLE … PARTITION OF would lock all out.
  execute format(
    'create table durable.%I (like durable.%I including all) with (toast_tuple_target = 256, autovacuum_freeze_min_age = 0)',
    v_name, parent);
  execute format('alter table durable.%I attach partition durable.%I for values from (%L) to (%L)', parent, v_name,
    durable._first_id(day::timestamp at time zone 'UTC'), durable._first_id((day + 1)::timestamp at time zone 'UTC'));
  return true;
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

-- Makes sure that rows of these workflows can be stored. In the usual case two look-ups in the catalogue's cache.
create function durable._ensure_partitions(workflow_ids uuid[])
returns void language plpgsql as $$
declare
  v_days date[];
begin
  select array[(durable._id_time(min(id::text)::uuid) at time zone 'UTC')::date,
               (durable._id_time(max(id::text)::uuid) at time zone 'UTC')::date]
    into v_days from unnest(workflow_ids) as id;
  if v_days[1] < v_days[2] then
    perform durable._provision_partitions(day, day)
    from (select distinct (durable._id_time(l.workflow_id) at time zone 'UTC')::date as day
          from durable.live_workflows l where l.workflow_id = any(workflow_ids)) d;
  elsif to_regclass(to_char(v_days[1], '"durable.checkpoints_"YYYYMMDD')) is null then
    perform durable._provision_partitions(v_days[1], v_days[1]);
  end if;
end
$$;
