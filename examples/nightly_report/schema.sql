drop schema if exists demo_reports cascade;
create schema demo_reports;
create table demo_reports.reports (day date not null, cents bigint not null, written_at timestamptz not null default now());
