-- What the shop and the payment service keep. Nothing here but the primary keys keeps anything from happening twice:
-- that each order is charged, taken from stock and receipted exactly once is durable's doing, and audit.sql checks it.
drop schema if exists demo_shop, demo_payments cascade;

create schema demo_shop;
create table demo_shop.stock (
  sku text primary key,
  delivered integer not null,
  available integer not null check (available >= 0)
);
create table demo_shop.orders (
  order_id text primary key,
  customer text not null,
  sku text not null references demo_shop.stock,
  quantity integer not null check (quantity > 0),
  cents integer not null check (cents > 0),
  workflow_id uuid not null
);
create table demo_shop.receipts (
  order_id text not null references demo_shop.orders,
  charge_id text not null,
  tracking_number text not null
);

-- The payment service is another program, of another company: it knows nothing of the shop and of durable. A request
-- with a key that it has seen before is answered with the charge of that time; with another key, the card is charged.
create schema demo_payments;
create table demo_payments.charges (
  charge_id text primary key default 'ch_' || replace(gen_random_uuid()::text, '-', ''),
  idempotency_key text not null unique,
  reference text not null,
  cents integer not null
);
create table demo_payments.requests (
  request_id bigint generated always as identity primary key,
  idempotency_key text not null,
  charge_id text not null references demo_payments.charges,
  received_at timestamptz not null default clock_timestamp()
);
