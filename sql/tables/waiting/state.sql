-- What workflows publish while they run: the latest value of each key, readable until the workflow is removed from the
-- history. Nothing is stored, looked up or removed for a workflow that publishes nothing.
--
-- Leases only grow. So a value of a worker that has lost its lease never replaces one of a later owner, and no row of
-- live_workflows has to be locked for that.

create table durable.workflow_state (
  workflow_id uuid not null,
  lease bigint not null,
  published_at timestamptz not null,
  key text not null,
  value jsonb,
  constraint workflow_state_pkey primary key (workflow_id, key),
  constraint workflow_state_key_length check (char_length(key) between 1 and 200)
) with (
  -- A value that is published again goes beside the one before, and changes no indexed column.
  fillfactor = 70,
  toast_tuple_target = 256,
  autovacuum_vacuum_scale_factor = 0.02,
  autovacuum_vacuum_threshold = 1000
);
comment on table durable.workflow_state is
  'What workflows published, by key: progress, partial results. durable.state() reads those of one workflow.';
comment on column durable.workflow_state.lease is 'Lease of the worker that published it.';
comment on column durable.workflow_state.published_at is 'When this value was published.';
comment on column durable.workflow_state.value is 'The latest value.';
