drop schema if exists demo_node cascade;
create schema demo_node;
create table demo_node.stock (sku text primary key, available integer not null check (available >= 0));
insert into demo_node.stock values ('chair', 3);
create table demo_node.orders (
  order_id text primary key, sku text not null references demo_node.stock, cents integer not null,
  workflow_id uuid not null
);
-- The carrier's.
create table demo_node.requests (key text not null, pid integer not null);
create table demo_node.parcels (
  key text primary key, number integer not null generated always as identity (start with 1001), grams integer not null
);
