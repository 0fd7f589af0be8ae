-- How long the history of one queue or one workflow name is kept, where it is not the setting retention.
create table durable.retention_rules (
  queue text,
  workflow text,
  keep interval not null,
  constraint retention_rules_key unique nulls not distinct (queue, workflow),
  constraint retention_rules_is_for_one check ((queue is null) <> (workflow is null)),
  constraint retention_rules_keep check (keep >= interval '0')
);
-- It has no primary key, and a publication would refuse every change.
alter table durable.retention_rules replica identity full;
comment on table durable.retention_rules is
  'Exceptions from the setting retention, for one queue or one workflow name; the name counts for more. Set by durable.retain().';

-- Dropping a partition needs a lock that nobody else's may be held beside, and whoever waits for it holds up everyone who
-- comes later. So a tick first looks who is there, and only a later tick that finds all of them gone asks for the lock.
-- Unlogged: after a crash all of them are gone.
create unlogged table durable.history_users (
  seen_at timestamptz not null,
  transactions text[] not null
);
comment on table durable.history_users is
  'The transactions that used the history when a partition was last to be dropped; empty or one row.';

-- How far ticks have come in looking through the days for something to remove. Unlogged: after a crash they begin again.
create unlogged table durable.history_marks (
  only_one boolean not null default true,
  dropped_day date not null default '-infinity',
  expired_day date not null default '-infinity',
  expired_name text not null default '',
  expired_until timestamptz not null default '-infinity',
  constraint history_marks_pkey primary key (only_one),
  constraint history_marks_is_one check (only_one)
) with (fillfactor = 20);
comment on table durable.history_marks is
  'The day that ticks last looked at to drop it, and where they go on deleting rows: with this day, this workflow name, and what '
  'ended after this time; empty or one row.';

-- Dropping a day removes its workflows and steps. What else belonged to the workflows is in tables for all days, and ticks
-- delete it afterwards.
create table durable.dropped_days (
  day date not null,
  looked_up_to uuid,
  constraint dropped_days_pkey primary key (day)
);
comment on table durable.dropped_days is
  'Days that were dropped from the history, until everything that belonged to their workflows is deleted: keys, messages, approvals, published state.';
comment on column durable.dropped_days.looked_up_to is 'The workflow up to which ticks have looked; null at first.';
