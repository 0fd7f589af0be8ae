-- Nothing here keeps a file from being added twice: that each is added exactly once is durable's doing, and audit.sql checks
-- it against the lines of the files themselves.
drop schema if exists demo_sales cascade;

create schema demo_sales;
create table demo_sales.totals (
  article text primary key,
  quantity bigint not null default 0,
  cents bigint not null default 0
);
create table demo_sales.imports (
  file text not null,
  lines integer not null,
  imported_at timestamptz not null default now()
);
create table demo_sales.rejected (
  file text not null,
  reason text not null
);

-- For the audit: the files as they are, line by line.
create table demo_sales.source (
  file text not null,
  line text not null
);
