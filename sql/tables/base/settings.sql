-- Defaults are part of the schema and replaced by upgrades; what an operator changed is data and survives them.

create table durable.setting_defaults (
  name text not null,
  value text not null,
  type regtype not null,
  description text not null,
  constraint setting_defaults_pkey primary key (name)
);
comment on table durable.setting_defaults is 'Every setting there is, with its default. Belongs to the schema; do not edit.';

create table durable.setting_overrides (
  name text not null,
  value text not null,
  constraint setting_overrides_pkey primary key (name)
);
comment on table durable.setting_overrides is 'What durable.configure() changed.';

insert into durable.setting_defaults (name, value, type, description) values
  ('lease', '30 seconds', 'interval',
   'How long a worker keeps its workflows without a heartbeat. Workers send one every third of it.'),
  ('session_grace', '250 milliseconds', 'interval',
   'How long the session lock of a worker may be gone before its workflows are taken from it.'),
  ('restart_grace', '2 seconds', 'interval',
   'How long after a start of Postgres nobody is declared dead, so that workers can connect, lock and renew their leases again.'),
  ('max_crashes', '10', 'integer',
   'How often in a row a suspect may lose its worker; with one more it is given up as failed (WF009).'),
  ('max_payload_bytes', '134217728', 'bigint',
   'The largest input, output, step result or error that is accepted, in bytes of jsonb.'),
  ('retry_initial', '1 second', 'interval', 'The wait before the second attempt of a workflow.'),
  ('retry_backoff', '2', 'double precision', 'The factor by which that wait grows with each further attempt.'),
  ('retry_max', '5 minutes', 'interval', 'The longest wait between two attempts of a workflow.'),
  ('retention', '30 days', 'interval',
   'How long finished workflows are kept, with their steps and keys, where durable.retain() says nothing else.'),
  ('dead_worker_retention', '1 day', 'interval', 'How long a dead worker stays listed.'),
  ('schedule_grace', '1 minute', 'interval',
   'How late a schedule may fire in any case; later, a due time is missed unless the schedule catches up.'),
  ('firing_retention', '30 days', 'interval', 'How long the firings of schedules stay listed.'),
  ('event_retention', '30 days', 'interval', 'How long an emitted event is kept.');
