-- Workflows are stored by temperature.
--
-- live_workflows holds one narrow row for each workflow that is not finished. Its life:
--
--     enqueue --> pending --claim--> running --complete--> (moves to finished_workflows)
--                    ^                  | |----fail, attempts left--> pending, due later
--                    |--lease released--| |----fail, none left------> (moves, failed)
--                    |--worker died-----+ +----wait----> sleeping, waiting
--                    +--its time, or what it waits for---------+    cancel, timeout: (moves) from any state
--
-- A row that is ready has a ready_seq, its place in line; a row that must wait has a wake_at instead, and gets a
-- ready_seq when that has come. Claiming turns ready_seq into lease, so a row is either in line, or owned, or neither,
-- and no lease is ever given twice. Constraints hold each of these but the last, which decision 0020 is about.
--
-- A paused row keeps its status, and is neither in line nor owned. What would wake it still does, but gives it no ready_seq:
-- it becomes pending without a place in line or a time, and takes its place when it is resumed. So whoever puts rows in line
-- that nobody owns writes: ready_seq = case when paused_at is null then nextval('durable.ready_seq') end.
--
-- finished_workflows is append-only and partitioned by day of creation, which a UUIDv7 carries. Partitions are made by
-- durable._provision_partitions(), ahead of time by the tick and on demand by the call that misses one; there is no
-- default partition, for it would have to be scanned each time that a partition is added.
--
-- Lock order, for every function: schedules, then workers, then live_workflows by workflow_id, then all else.

create table durable.live_workflows (
  workflow_id uuid not null,
  parent_id uuid,
  lease bigint,
  ready_seq bigint,
  wake_at timestamptz,
  deadline timestamptz,
  created_at timestamptz not null,
  started_at timestamptz,
  worker_id integer,
  failed_lease bigint,
  parked_lease bigint,
  line_id bigint not null,
  paused_at timestamptz,
  paused_lease bigint,
  attempt integer not null default 1,
  failures integer not null default 0,
  crashes integer not null default 0,
  max_attempts integer not null default 1,
  priority smallint not null default 0,
  suspicions smallint not null default 0,
  replay boolean not null default false,
  lets_in boolean,
  timeout interval,
  status text not null,
  name text not null,
  queue text not null,
  key text,
  tags jsonb not null default '{}',
  input jsonb,
  error jsonb,
  pause_reason text,
  warning text,
  forked_from uuid,
  forked_at_step text,
  continued_from uuid,
  constraint live_workflows_pkey primary key (workflow_id),
  constraint live_workflows_name_length check (char_length(name) between 1 and 200),
  constraint live_workflows_queue_length check (char_length(queue) between 1 and 200),
  constraint live_workflows_is_unfinished check (status in ('pending', 'running', 'sleeping', 'waiting')),
  constraint live_workflows_running_is_leased check ((status = 'running') = (lease is not null)),
  constraint live_workflows_lease_has_worker check ((lease is null) = (worker_id is null)),
  constraint live_workflows_ready_is_pending check (ready_seq is null or status = 'pending'),
  constraint live_workflows_pending_is_ready_or_due check (
    status <> 'pending' or (ready_seq is null) <> (wake_at is null) or wake_at is null and paused_at is not null),
  constraint live_workflows_paused_is_idle check (paused_at is null or ready_seq is null and lease is null),
  constraint live_workflows_reason_is_of_pause check (paused_at is not null or pause_reason is null and paused_lease is null),
  constraint live_workflows_sleeping_has_end check (status <> 'sleeping' or wake_at is not null),
  constraint live_workflows_running_started check (lease is null or started_at is not null),
  constraint live_workflows_counts check (attempt >= 1 and failures >= 0 and crashes >= 0 and suspicions >= 0 and max_attempts >= 1),
  constraint live_workflows_tags_is_object check (jsonb_typeof(tags) = 'object')
) with (
  -- Room for the new version of a row on its own page; a claim is never a HOT update, but its page is already dirty.
  fillfactor = 80,
  -- Payloads over a few hundred bytes live outside the row, so that updates of the row do not copy them.
  toast_tuple_target = 256,
  -- Every row here dies young. Vacuum early and by count, for the share of dead rows says nothing about a small table.
  autovacuum_vacuum_scale_factor = 0.02,
  autovacuum_vacuum_threshold = 2000,
  autovacuum_vacuum_insert_threshold = -1,
  autovacuum_vacuum_cost_delay = 0
);
-- Claims read a line of this index from its start; it has the rows in line and no others.
create index live_workflows_ready_idx on durable.live_workflows (line_id, ready_seq) where ready_seq is not null;
-- Recovery reads what a dead worker holds.
create index live_workflows_held_idx on durable.live_workflows (worker_id) where worker_id is not null;
create index live_workflows_wake_idx on durable.live_workflows (wake_at) where wake_at is not null;
-- Cancellation reads the children of a workflow.
create index live_workflows_parent_idx on durable.live_workflows (parent_id) where parent_id is not null;
create index live_workflows_deadline_idx on durable.live_workflows (deadline) where deadline is not null;

comment on column durable.live_workflows.status is
  'pending (ready, or due later), running (leased by a worker), sleeping (until a time), or waiting (for a message, event, '
  'child or approval).';
comment on table durable.live_workflows is 'One row for each workflow that is not finished. Read it through durable.workflows.';
comment on column durable.live_workflows.parent_id is 'The workflow that started it and is told of its end; null for most.';
comment on column durable.live_workflows.lets_in is
  'True for a child whose end lets in a sibling that max_parallel holds back; one that is held back has a wake_at of infinity.';
comment on column durable.live_workflows.lease is 'Fencing token of the worker that runs it; every later call of that worker carries it.';
comment on column durable.live_workflows.ready_seq is 'Place in its line; null when it is not ready.';
comment on column durable.live_workflows.line_id is
  'The line that it stands in when it is ready; the claim makes it that of the started ones. See sql/tables/engine/lines.sql.';
comment on column durable.live_workflows.wake_at is 'When it becomes ready: delayed start, retry, sleep or the end of a wait.';
comment on column durable.live_workflows.deadline is 'When its timeout ends it; set by the first claim.';
comment on column durable.live_workflows.attempt is 'Which attempt this is, from 1; each failure, each death of its worker and each retry adds one.';
comment on column durable.live_workflows.failures is 'Attempts that ended in an error; compared with max_attempts.';
comment on column durable.live_workflows.crashes is
  'How often, since its last checkpoint, its worker died while it was the suspect; compared with the setting max_crashes.';
comment on column durable.live_workflows.suspicions is
  'How often, since its last checkpoint, its worker died with no suspect to blame; with the second it is a suspect.';
comment on column durable.live_workflows.replay is 'True when it ran before, so that a claim hands over the stored steps.';
comment on column durable.live_workflows.failed_lease is
  'Lease under which the last attempt was reported as failed, so that the same report sent again is recognised.';
comment on column durable.live_workflows.parked_lease is
  'Lease under which it last began to wait, so that the same call sent again is recognised.';
comment on column durable.live_workflows.paused_at is 'When it was paused; null while it is not.';
comment on column durable.live_workflows.paused_lease is
  'Lease that the pause took from a worker, so that a pause that this worker reports again is recognised.';
comment on column durable.live_workflows.pause_reason is 'Why it is paused, as the caller or the worker said.';
comment on column durable.live_workflows.warning is 'What its worker wants somebody to know about it; see durable.warn().';
comment on column durable.live_workflows.forked_from is 'The workflow that it is a fork of.';
comment on column durable.live_workflows.forked_at_step is 'The step of that one from which it runs by itself; null for the first.';
comment on column durable.live_workflows.continued_from is 'The run before it, which ended with durable.continue_as_new().';
comment on column durable.live_workflows.error is 'What ended the last attempt, if it failed.';

create table durable.finished_workflows (
  workflow_id uuid not null,
  parent_id uuid,
  lease bigint,
  created_at timestamptz not null,
  started_at timestamptz,
  completed_at timestamptz not null,
  deadline timestamptz,
  worker_id integer,
  attempt integer not null,
  failures integer not null,
  crashes integer not null,
  max_attempts integer not null,
  priority smallint not null,
  timeout interval,
  status text not null,
  name text not null,
  queue text not null,
  key text,
  tags jsonb not null,
  input jsonb,
  output jsonb,
  error jsonb,
  warning text,
  forked_from uuid,
  forked_at_step text,
  continued_from uuid,
  continued_as uuid,
  constraint finished_workflows_is_final check (status in ('completed', 'failed', 'cancelled')),
  constraint finished_workflows_error_iff_not_completed check ((status = 'completed') = (error is null)),
  constraint finished_workflows_output_if_completed check (output is null or status = 'completed')
) partition by range (workflow_id);
-- The shape of each partition. The indexes are here and not on the parent, where they would be made a second time when
-- pg_dump's script attaches a partition that it has already given its own.
create table durable.finished_workflows_shape (
  like durable.finished_workflows including all,
  constraint finished_workflows_shape_pkey primary key (workflow_id)
);
-- What people ask of history: by status and time, by name, by queue, by key, by tag; decision 0011 has their price. What a
-- worker reports together ends at one time, so that entries of the first three are mostly equal and stored once.
create index finished_workflows_shape_status_idx on durable.finished_workflows_shape (status, completed_at);
create index finished_workflows_shape_name_idx on durable.finished_workflows_shape (name, completed_at);
create index finished_workflows_shape_queue_idx on durable.finished_workflows_shape (queue, completed_at);
create index finished_workflows_shape_key_idx on durable.finished_workflows_shape (key) where key is not null;
-- Not only where there are tags: that tags @> '...' means that there are some is more than the planner knows. New entries wait
-- in a list, and whoever makes it too long sorts it in; a short one makes that a short wait.
create index finished_workflows_shape_tags_idx on durable.finished_workflows_shape using gin (tags jsonb_path_ops)
  with (gin_pending_list_limit = 1024);
-- "What did it start, and how did it end?" Nothing without a parent is in it.
create index finished_workflows_shape_parent_idx on durable.finished_workflows_shape (parent_id) where parent_id is not null;
comment on table durable.finished_workflows_shape is 'Always empty: what a new partition of durable.finished_workflows looks like.';

comment on table durable.finished_workflows is 'Workflows that ended, one partition per day of creation. Read it through durable.workflows.';
comment on column durable.finished_workflows.status is 'completed, failed or cancelled.';
comment on column durable.finished_workflows.lease is
  'Lease under which it ended, so that the same report sent again is recognised; null when no worker ended it.';
comment on column durable.finished_workflows.continued_as is
  'The run after it, when it ended with durable.continue_as_new(); the result of that one is its result.';

-- A key belongs to the workflow that used it first, for as long as that workflow is stored.
create table durable.workflow_keys (
  key text not null,
  name text not null,
  workflow_id uuid not null,
  constraint workflow_keys_pkey primary key (key),
  constraint workflow_keys_length check (char_length(key) between 1 and 500)
) with (
  -- Rows are inserted and, a day's worth at a time, deleted: vacuum before they are a fifth of a month.
  autovacuum_vacuum_scale_factor = 0.02,
  autovacuum_vacuum_threshold = 10000
);
-- Retention finds the keys of a day that is gone.
create index workflow_keys_workflow_idx on durable.workflow_keys (workflow_id);
comment on table durable.workflow_keys is 'Idempotency keys: the primary key makes one workflow out of many enqueues.';
