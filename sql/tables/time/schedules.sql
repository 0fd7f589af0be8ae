-- A schedule is a row that says when which workflow is enqueued; a firing is a row that says what became of one due
-- time.
--
--     due --tick--> fired          its workflow is enqueued in the same transaction
--           |       missed         nobody ticked in time, or the schedule was paused
--           |       skipped        the workflow of an earlier due time still ran (overlap)
--           |       failed         its workflow could not be enqueued
--           +-----> queued ------> fired, when the workflow before it has ended
--
-- The primary key makes one firing out of one due time, however many tickers there are; and the tick moves next_at on
-- in the transaction that writes the firing and enqueues the workflow, so that a ticker killed between its statements
-- leaves nothing.
--
-- Nothing is written when the workflow of a firing ends. A firing stays open until the schedule has to know: when the
-- next one is due, while others wait for it, or when its failure pauses the schedule.
--
-- Lock order: the rows of schedules come before everything else, and whoever writes firings holds the lock of their
-- schedule.

create table durable.schedules (
  name text not null,
  cron text not null,
  timezone text not null,
  workflow text not null,
  queue text not null,
  overlap text not null,
  catchup interval not null,
  catchup_mode text not null,
  jitter interval not null,
  starts_at timestamptz,
  ends_at timestamptz,
  max_firings bigint,
  pause_on_failure boolean not null,
  priority smallint not null,
  max_attempts integer not null,
  timeout interval,
  tags jsonb not null,
  input jsonb,
  next_at timestamptz,
  firings bigint not null default 0,
  waiting integer not null default 0,
  paused_at timestamptz,
  pause_reason text,
  error text,
  created_at timestamptz not null default durable._now(),
  changed_at timestamptz not null default durable._now(),
  constraint schedules_pkey primary key (name),
  constraint schedules_name_length check (char_length(name) between 1 and 200),
  constraint schedules_overlap check (overlap in ('skip', 'queue_one', 'queue_all', 'cancel', 'allow')),
  constraint schedules_catchup check (catchup >= '0' and catchup_mode in ('all', 'last')),
  constraint schedules_jitter check (jitter >= '0'),
  constraint schedules_counts check (max_firings >= 1 and firings >= 0 and waiting >= 0),
  constraint schedules_reason_if_paused check (pause_reason is null or paused_at is not null),
  constraint schedules_broken_is_not_due check (error is null or next_at is null)
) with (fillfactor = 80);
-- The tick reads this index from its start.
create index schedules_due_idx on durable.schedules (next_at) where next_at is not null;
create index schedules_waiting_idx on durable.schedules (name) where waiting > 0;

comment on table durable.schedules is
  'One row for each schedule; change it with durable.schedule() and its companions.';
comment on column durable.schedules.catchup is 'How late a due time may be made up for.';
comment on column durable.schedules.catchup_mode is
  'Which of several late due times are made up for: all, or the last.';
comment on column durable.schedules.input is 'The input of each workflow; null for {"schedule", "due_at"}.';
comment on column durable.schedules.next_at is 'When it is due next; null when it will not be, or is broken.';
comment on column durable.schedules.firings is
  'How many due times started a workflow or wait to; compared with max_firings.';
comment on column durable.schedules.waiting is 'How many firings are queued behind a workflow that still runs.';
comment on column durable.schedules.error is 'Why its next due time cannot be told; null when all is well.';

create table durable.schedule_firings (
  schedule text not null,
  due_at timestamptz not null,
  outcome text not null,
  open boolean not null default false,
  watched boolean not null default false,
  handled_at timestamptz not null,
  missed_until timestamptz,
  workflow_id uuid,
  earlier_ids uuid[] not null default '{}',
  backfill_id bigint,
  reason text,
  constraint schedule_firings_pkey primary key (schedule, due_at),
  constraint schedule_firings_outcome check (
    outcome in ('queued', 'fired', 'backfilled', 'triggered', 'skipped', 'missed', 'failed')),
  constraint schedule_firings_started_has_workflow check (
    (outcome in ('fired', 'backfilled', 'triggered')) = (workflow_id is not null)),
  constraint schedule_firings_open_has_workflow check (workflow_id is not null or not open),
  constraint schedule_firings_watched_is_open check (open or not watched),
  constraint schedule_firings_missed_until check (missed_until is null or missed_until > due_at and outcome = 'missed'),
  constraint schedule_firings_not_started_has_reason check (outcome not in ('skipped', 'missed',
    'failed') or reason is not null)
);
create index schedule_firings_open_idx on durable.schedule_firings (schedule) where open;
create index schedule_firings_watched_idx on durable.schedule_firings (schedule) where watched;
create index schedule_firings_queued_idx on durable.schedule_firings (schedule, due_at) where outcome = 'queued';
-- Retention removes the oldest.
create index schedule_firings_handled_idx on durable.schedule_firings (handled_at);

comment on table durable.schedule_firings is 'One row for each due time of a schedule: what became of it, and why.';
comment on column durable.schedule_firings.outcome is
  'What became of the due time: queued (waits for an earlier workflow, or its turn in a backfill), fired, backfilled, triggered (by '
  'hand), skipped (overlap), missed (no tick in time, or paused), failed (its workflow could not be enqueued).';
comment on column durable.schedule_firings.due_at is
  'The time the cron line named; of one triggered by hand, that of the call.';
comment on column durable.schedule_firings.open is 'False once its workflow is known to have ended.';
comment on column durable.schedule_firings.watched is
  'True while the tick waits for its end, because a failure pauses the schedule.';
comment on column durable.schedule_firings.handled_at is 'When the outcome was decided.';
comment on column durable.schedule_firings.missed_until is
  'The last of the due times that this row stands for, when more than a hundred were missed in one go.';
comment on column durable.schedule_firings.earlier_ids is
  'The workflows of this due time from before a backfill ran it again.';
comment on column durable.schedule_firings.reason is 'Why it did not start a workflow, or has to wait.';

create table durable.schedule_backfills (
  backfill_id bigint generated always as identity,
  schedule text not null,
  from_at timestamptz not null,
  until_at timestamptz not null,
  max_parallel integer not null,
  created_at timestamptz not null default durable._now(),
  ended_at timestamptz,
  constraint schedule_backfills_pkey primary key (backfill_id),
  constraint schedule_backfills_parallel check (max_parallel >= 1),
  constraint schedule_backfills_range check (from_at <= until_at)
);
create index schedule_backfills_active_idx on durable.schedule_backfills (backfill_id) where ended_at is null;
comment on table durable.schedule_backfills is
  'One row for each backfill: the range, how many run at once, and when the last one ended.';
