-- A UUIDv7 with microseconds in the bits after the version (RFC 9562, method 3): ids sort by time, and the history is
-- partitioned by the time in them.
create function durable._id_at(us bigint)
returns uuid language sql volatile parallel safe as $$
  select (lpad(to_hex(us / 1000), 12, '0') || to_hex(28672 + (us % 1000) * 4096 / 1000)
    || substr(gen_random_uuid()::text, 20))::uuid
$$;

create function durable._new_id()
returns uuid language plpgsql volatile parallel safe as $$
declare
  v_us bigint := (extract(epoch from durable._now()) * 1000000)::bigint;
begin
  return durable._id_at(v_us);
end
$$;

-- Many in their order, a microsecond apart: to read the clock for each takes longer than to make it.
create function durable._new_ids(count integer)
returns uuid[] language plpgsql volatile parallel safe as $$
declare
  v_us bigint := (extract(epoch from durable._now()) * 1000000)::bigint;
begin
  return array(select durable._id_at(v_us + n) from generate_series(0, count - 1) as n);
end
$$;

create function durable._id_time(id uuid)
returns timestamptz language sql immutable strict parallel safe as $$
  select to_timestamp(('x' || translate(substr(id::text, 1, 13), '-', ''))::bit(48)::bigint / 1000.0)
$$;

-- The first id of a time: the bound of a partition. In plpgsql, for it cannot be inlined, as extract() is not immutable, and SQL
-- would be planned anew in each call.
create function durable._first_id(at timestamptz)
returns uuid language plpgsql immutable strict parallel safe as $$
begin
  return rpad(lpad(to_hex(floor(extract(epoch from at) * 1000)::bigint), 12, '0'), 32, '0')::uuid;
end
$$;

-- Days are those of UTC, everywhere: the day that a workflow was created on, and the start of a day.
create function durable._day_of(id uuid)
returns date language sql immutable strict parallel safe as $$ select (durable._id_time(id) at time zone 'UTC')::date $$;

create function durable._start_of(day date)
returns timestamptz language sql immutable strict parallel safe as $$ select day::timestamp at time zone 'UTC' $$;
