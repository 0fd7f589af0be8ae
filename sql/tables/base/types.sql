-- What a workflow and a step can be. The values are in the order of a life.

create type durable.workflow_status as enum (
  'pending', 'running', 'sleeping', 'waiting', 'completed', 'failed', 'cancelled'
);
comment on type durable.workflow_status is
  'Where a workflow is: pending (ready, or due later), running (leased by a worker), sleeping (until a time), '
  'waiting (for an event, message or child), completed, failed, cancelled. The last three are final.';

create type durable.step_status as enum ('running', 'completed', 'error');
comment on type durable.step_status is
  'Where a step is: running (begun or between two attempts), completed (its output is stored), error (it failed for good).';

-- The fencing token and the place in line are one number: a workflow takes a new one each time it becomes ready, and
-- a claim turns it into the lease. CACHE 1 keeps the numbers in the order in which they were handed out.
create sequence durable.ready_seq as bigint cache 1;
comment on sequence durable.ready_seq is
  'Places in line. A claim turns the place of a workflow into its lease, so that a lease is never given twice.';
