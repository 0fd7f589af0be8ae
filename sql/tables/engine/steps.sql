-- Steps, too, are stored by temperature: checkpoints is append-only and holds outcomes; open_steps holds the few steps
-- whose start had to be written down: at-most-once steps, steps between two attempts, steps that have been running for
-- longer than a heartbeat, and waits. A fast step costs one insert, into checkpoints.

create table durable.checkpoints (
  workflow_id uuid not null,
  started_at timestamptz,
  completed_at timestamptz not null,
  attempt integer not null,
  status text not null,
  step_name text not null,
  output jsonb,
  error jsonb,
  constraint checkpoints_is_outcome check (status in ('completed', 'error')),
  constraint checkpoints_error_iff_error check ((status = 'error') = (error is not null)),
  constraint checkpoints_output_if_completed check (output is null or status = 'completed'),
  constraint checkpoints_attempt check (attempt >= 1),
  constraint checkpoints_step_name_length check (char_length(step_name) between 1 and 500)
) partition by range (workflow_id);
-- The shape of each partition; see durable.finished_workflows_shape.
create table durable.checkpoints_shape (
  like durable.checkpoints including all,
  -- First checkpoint wins: this constraint is what keeps a completed step from running again.
  constraint checkpoints_shape_pkey primary key (workflow_id, step_name)
);
-- "Which steps failed in the last month, newest first."
create index checkpoints_shape_error_idx on durable.checkpoints_shape (completed_at) where status = 'error';
comment on table durable.checkpoints_shape is 'Always empty: what a new partition of durable.checkpoints looks like.';

comment on table durable.checkpoints is 'Outcomes of steps, one partition per day of creation of the workflow. Read it through durable.workflow_steps.';

comment on column durable.checkpoints.status is 'completed (its output is stored) or error (it failed for good).';

create table durable.open_steps (
  workflow_id uuid not null,
  lease bigint not null,
  started_at timestamptz not null,
  retry_at timestamptz,
  attempt integer not null default 1,
  at_most_once boolean not null default false,
  step_name text not null,
  error jsonb,
  wait_until timestamptz,
  waits_for jsonb,
  constraint open_steps_pkey primary key (workflow_id, step_name),
  constraint open_steps_attempt check (attempt >= 1),
  constraint open_steps_retry_has_error check ((retry_at is null) = (error is null)),
  constraint open_steps_once_is_not_retried check (not at_most_once or retry_at is null),
  constraint open_steps_wait_has_conditions check (wait_until is null or waits_for is not null),
  constraint open_steps_step_name_length check (char_length(step_name) between 1 and 500)
) with (
  -- Rows die when their step ends: vacuum early and by count, as durable.live_workflows.
  autovacuum_vacuum_scale_factor = 0.02,
  autovacuum_vacuum_threshold = 1000
);
-- Holds only what heartbeats stored: a tick looks there for steps whose workflow has ended.
create index open_steps_running_idx on durable.open_steps (workflow_id)
  where waits_for is null and retry_at is null and not at_most_once;
comment on table durable.open_steps is 'Steps without an outcome whose start was worth writing down. Read it through durable.workflow_steps.';
comment on column durable.open_steps.lease is 'Lease of the worker that began it.';
comment on column durable.open_steps.attempt is 'The attempt that runs, or that retry_at waits for.';
comment on column durable.open_steps.retry_at is 'When the next attempt may start; null while one runs.';
comment on column durable.open_steps.error is 'Why the attempt before failed.';
comment on column durable.open_steps.wait_until is 'Of a wait: when it times out, set by the first call and never again; null for never.';
comment on column durable.open_steps.waits_for is 'Of a wait: the conditions of the first call, with the times of timers; null for a step that is no wait.';
