-- What the shop and the provider of the model keep. Nothing here keeps anything from happening twice: that each token is
-- paid for once, and each refund made once, is durable's doing, and audit.sql checks it.
drop schema if exists demo_support, demo_model cascade;

create schema demo_support;
create table demo_support.tickets (
  workflow_id uuid primary key,
  question text not null,
  disturbed boolean not null
);
create table demo_support.refunds (
  workflow_id uuid not null references demo_support.tickets,
  order_id text not null,
  amount numeric not null check (amount > 0)
);

-- The model is another program, of another company: it knows nothing of the shop and of durable. It bills a row of its
-- meter for each token that it generates; what it has generated for a request it sends again for nothing.
create schema demo_model;
create table demo_model.meter (
  request_id text not null,
  place integer not null,
  token text not null
);
create index on demo_model.meter (request_id);
create table demo_model.requests (
  request_id text not null,
  sent_again integer not null,
  received_at timestamptz not null default clock_timestamp()
);
