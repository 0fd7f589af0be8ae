-- What workflows wait for. A waiting workflow is a row of live_workflows that nobody holds, with one row here for each
-- thing that may wake it, and its wait as an open step, which keeps the time it ends at.
--
-- Facts (messages, events, decisions on approvals) are rows, too. Whoever stores one wakes, at the commit, those who already wait for it; whoever
-- begins to wait first looks whether it is there. Neither takes a lock that the other would have to wait for, so that a
-- transaction of a user, which may stay open for long, never stands in the way of a worker. The price: when both are under
-- way at once, neither sees the other, and nobody is woken. The tick makes up for that. For each pair of a wait and a fact
-- there is a first tick that sees both, and the one before it did not see one of them. So each tick looks at the waits and
-- at the facts that it sees and the last one did not: their xid was running then (pg_snapshot_xip), or came later. It looks
-- at each once, however long other transactions stay open.

create table durable.waits (
  workflow_id uuid not null,
  kind text not null,
  subject text not null,
  xid xid8 not null default pg_current_xact_id(),
  constraint waits_pkey primary key (workflow_id, kind, subject),
  constraint waits_kind check (kind in ('message', 'event', 'children', 'approval'))
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
create index waits_event_idx on durable.waits (subject) where kind = 'event';
create index waits_xid_idx on durable.waits (xid);
comment on table durable.waits is 'What may wake each waiting workflow: one row for each message topic, event, group of children or approval.';
comment on column durable.waits.kind is 'message (subject is the topic), event (subject is its name), children (subject is the id of the first) or '
  'approval (subject is the step that requested it).';
comment on column durable.waits.xid is 'The transaction that began to wait; see the comment in sql/tables/waiting/waits.sql.';

create table durable.messages (
  workflow_id uuid not null,
  seq bigint generated always as identity,
  xid xid8 not null default pg_current_xact_id(),
  sent_at timestamptz not null,
  topic text not null,
  key text,
  received_by text,
  payload jsonb,
  constraint messages_pkey primary key (workflow_id, seq),
  constraint messages_topic_length check (char_length(topic) between 1 and 200),
  constraint messages_key_length check (char_length(key) between 1 and 500)
) with (toast_tuple_target = 256, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
create index messages_unread_idx on durable.messages (workflow_id, topic, seq) where received_by is null;
create unique index messages_key_idx on durable.messages (workflow_id, key) where key is not null;
create index messages_xid_idx on durable.messages (xid);
comment on table durable.messages is
  'Mail to single workflows, by topic in the order of seq. Kept after it was received, so that its key is recognised.';
comment on column durable.messages.xid is 'The transaction that sent it; see the comment in sql/tables/waiting/waits.sql.';
comment on column durable.messages.received_by is 'The step that received it; null while it is unread.';

create table durable.events (
  event text not null,
  xid xid8 not null default pg_current_xact_id(),
  emitted_at timestamptz not null,
  payload jsonb,
  constraint events_pkey primary key (event),
  constraint events_event_length check (char_length(event) between 1 and 400)
) with (toast_tuple_target = 256);
create index events_emitted_idx on durable.events (emitted_at);
create index events_xid_idx on durable.events (xid);
comment on table durable.events is 'What was emitted, by name, until it ages out (setting event_retention). The first emit stands.';
comment on column durable.events.xid is 'The transaction that emitted it; see the comment in sql/tables/waiting/waits.sql.';

-- Unlogged, both: when they are empty, after a crash, the next tick looks at everything once.
create unlogged table durable.wake_marks (
  only_one boolean not null default true,
  seen pg_snapshot,
  swept_id uuid,
  swept_seq bigint,
  sweep_at timestamptz not null default '-infinity',
  constraint wake_marks_pkey primary key (only_one),
  constraint wake_marks_is_one check (only_one)
) with (fillfactor = 20);
comment on table durable.wake_marks is 'One row: what the last tick saw of waits and facts, and how far it looked through the mail of ended workflows.';

-- Not unique: with a constraint a tick would wait for another one that stays open.
create unlogged table durable.late_wakes (
  workflow_id uuid not null
);
comment on table durable.late_wakes is
  'Workflows to which a tick has to come back, for another transaction held something of them: waiting ones that it could not wake, and '
  'runs that were continued, whose mail goes on to the last one.';
create index late_wakes_id_idx on durable.late_wakes (workflow_id);
