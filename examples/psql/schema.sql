drop schema if exists demo_psql cascade;
create schema demo_psql;
create table demo_psql.stock (sku text primary key, available integer not null check (available >= 0));
insert into demo_psql.stock values ('chair', 3);
create table demo_psql.orders (
  order_id text primary key, sku text not null references demo_psql.stock, cents integer not null,
  workflow_id uuid not null
);

-- For the story alone: returns when a query returns true.
create procedure demo_psql.wait_until(query text) language plpgsql as $$
declare
  give_up constant timestamptz := clock_timestamp() + interval '1 minute';
  is_so boolean;
begin
  loop
    execute query into is_so;
    -- Each look in a transaction of its own, for now() and for what others wait for.
    commit;
    exit when is_so;
    if clock_timestamp() > give_up then
      raise 'this did not come true within a minute: %', query;
    end if;
    perform pg_sleep(0.05);
  end loop;
end
$$;
