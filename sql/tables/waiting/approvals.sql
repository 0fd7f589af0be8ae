-- What workflows ask people. A request is a row from the moment it is made; the decision is written into it once, and is a
-- fact as a message is one (see sql/tables/waiting/waits.sql). It belongs to a step of its workflow and not to a checkpoint, so that a
-- replay finds it again, and a fork asks anew.
--
-- Who decides locks the row, and so does the workflow that notices the expiry, which passes by while a decision is under way.
-- So one of them comes first, and both know which. Whether a request is still open when its workflow has ended is not
-- stored: durable.approvals looks, and a retry of the workflow opens it again.

create table durable.approval_requests (
  approval_id uuid not null,
  workflow_id uuid not null,
  requested_at timestamptz not null,
  expires_at timestamptz,
  decided_at timestamptz,
  xid xid8,
  expired boolean not null default false,
  workflow text not null,
  step_name text not null,
  subject text not null,
  assignee text,
  decision text,
  decided_by text,
  comment text,
  form jsonb,
  data jsonb,
  constraint approval_requests_pkey primary key (approval_id),
  constraint approval_requests_step_key unique (workflow_id, step_name),
  constraint approval_requests_step_name_length check (char_length(step_name) between 1 and 500),
  constraint approval_requests_subject_length check (char_length(subject) between 1 and 1000),
  constraint approval_requests_assignee_length check (char_length(assignee) between 1 and 200),
  constraint approval_requests_decision_length check (char_length(decision) between 1 and 200),
  constraint approval_requests_decided_by_length check (char_length(decided_by) between 1 and 200),
  constraint approval_requests_comment_length check (char_length(comment) <= 10000),
  constraint approval_requests_expires_later check (expires_at >= requested_at),
  constraint approval_requests_decision_is_whole check (
    num_nulls(decision, decided_by, decided_at, xid) in (0, 4)
    and (decision is not null or comment is null and data is null)),
  constraint approval_requests_decided_in_time check (decided_at < expires_at),
  constraint approval_requests_expired_or_decided check (not expired or expires_at is not null and decision is null)
) with (toast_tuple_target = 256, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
-- What waits for somebody, and what somebody was ever asked.
create index approval_requests_open_idx on durable.approval_requests (assignee) where decision is null and not expired;
create index approval_requests_assignee_idx on durable.approval_requests (assignee);
create index approval_requests_expired_idx on durable.approval_requests (approval_id) where expired;
create index approval_requests_xid_idx on durable.approval_requests (xid) where xid is not null;
comment on table durable.approval_requests is
  'What workflows asked people, one row for each request, with what was decided. Read it through durable.approvals.';
comment on column durable.approval_requests.workflow is 'The name of the workflow.';
comment on column durable.approval_requests.step_name is 'The step that made the request; the workflow waits for it by this name.';
comment on column durable.approval_requests.xid is 'The transaction that decided it; see the comment in sql/tables/waiting/waits.sql.';
comment on column durable.approval_requests.expired is 'True when the workflow has noticed that nobody decided in time.';
comment on column durable.approval_requests.form is 'What whoever decides is shown or asked for, as the workflow gave it.';
comment on column durable.approval_requests.data is 'What the decision came with, the values of the form for example.';
