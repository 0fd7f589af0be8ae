-- Approvals: what a workflow asks people. How they are stored stands in sql/tables/waiting/approvals.sql.

create view durable.approvals as
  -- In parts, each with its state as a constant, so that a question for some states reads nothing of the others.
  select r.approval_id, r.workflow_id, r.workflow, r.step_name, r.subject, r.assignee, r.form, r.requested_at, r.expires_at,
    case when r.expires_at <= durable._now_in_view() then 'expired'
      -- Not EXISTS, which may be answered by reading all workflows once.
      when (select true from durable.live_workflows l where l.workflow_id = r.workflow_id) then 'pending'
      else 'withdrawn' end as state,
    r.decision, r.data, r.decided_by, r.comment, r.decided_at
  from durable.approval_requests r where r.decision is null and not r.expired
  union all
  select r.approval_id, r.workflow_id, r.workflow, r.step_name, r.subject, r.assignee, r.form, r.requested_at, r.expires_at,
    'decided', r.decision, r.data, r.decided_by, r.comment, r.decided_at
  from durable.approval_requests r where r.decision is not null
  union all
  select r.approval_id, r.workflow_id, r.workflow, r.step_name, r.subject, r.assignee, r.form, r.requested_at, r.expires_at,
    'expired', r.decision, r.data, r.decided_by, r.comment, r.decided_at
  from durable.approval_requests r where r.expired;
comment on view durable.approvals is
  'What workflows ask people, and what was decided. state is pending (somebody may decide it), decided, expired (nobody did in '
  'time), or withdrawn (its workflow has ended; a retry of the workflow makes it pending again). subject is the question, '
  'assignee who is asked (null for anyone), form what the workflow gave for it; decision is what durable.decide() was told, '
  'with data, decided_by, comment and decided_at. They are ordered in time by approval_id.';

-- What a workflow is told of a request: a decision, or that there was none in time. The time in a form that every language
-- reads, whatever the session's time zone.
create function durable._decision(request durable.approval_requests)
returns jsonb language sql stable as $$
  select jsonb_build_object('approval_id', request.approval_id, 'decision', request.decision, 'data', request.data,
    'by', request.decided_by, 'comment', request.comment, 'expired', request.expired,
    'decided_at', to_char(request.decided_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"+00:00"'))
$$;

-- What a workflow sees of its request. When its time has passed, it is expired from here on, unless a decision is under way,
-- which may still come first.
create function durable._look_at_request(p_workflow_id uuid, p_step_name text, p_at timestamptz)
returns durable.approval_requests language plpgsql as $$
declare
  v_locked durable.approval_requests;
  v_request durable.approval_requests;
begin
  select * into v_request from durable.approval_requests r
  where r.workflow_id = p_workflow_id and r.step_name = p_step_name;
  if v_request.decision is null and not v_request.expired and v_request.expires_at <= p_at then
    select * into v_locked from durable.approval_requests r where r.approval_id = v_request.approval_id for update skip locked;
    if not found then
      return v_request;
    end if;
    v_request := v_locked;
    if v_request.decision is null then
      update durable.approval_requests r set expired = true where r.approval_id = v_request.approval_id;
      v_request.expired := true;
    end if;
  end if;
  return v_request;
end
$$;

create function durable.request_approval(
  workflow_id uuid, lease bigint, step_name text, subject text, assignee text default null, form jsonb default null,
  expires interval default null
)
returns uuid language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_variable
declare
  v_now timestamptz := durable._now();
  v_id uuid;
begin
  perform durable._hold_lease(workflow_id, lease, step_name);
  perform durable._require(char_length(subject) between 1 and 1000,
    format('workflow %s, step %L: the subject of an approval must have 1 to 1000 characters', workflow_id, step_name),
    'Say in one line what is to be decided, and put the rest into the form.');
  perform durable._require((char_length(assignee) between 1 and 200) is not false,
    format('workflow %s, step %L: the assignee of an approval must have 1 to 200 characters', workflow_id, step_name),
    'Use NULL when anyone may decide.');
  perform durable._require((expires between interval '0' and durable._longest()) is not false,
    format('workflow %s, step %L: an approval cannot expire in %s', workflow_id, step_name, expires),
    'Pass 0 to 100 years, or NULL for never.');
  perform durable._check_payload(format('workflow %s, step %L: the form', workflow_id, step_name), form);
  insert into durable.approval_requests (approval_id, workflow_id, requested_at, expires_at, workflow, step_name, subject,
    assignee, form)
  select durable._new_id(), workflow_id, v_now, v_now + expires, l.name, step_name, subject, assignee, form
  from durable.live_workflows l where l.workflow_id = request_approval.workflow_id
  on conflict on constraint approval_requests_step_key do nothing
  returning approval_id into v_id;
  if v_id is null then
    select r.approval_id into v_id from durable.approval_requests r
    where r.workflow_id = request_approval.workflow_id and r.step_name = request_approval.step_name;
  end if;
  return v_id;
end
$$;
comment on function durable.request_approval(uuid, bigint, text, text, text, jsonb, interval) is
  'Asks people for a decision, as a step of a workflow, and returns the id of the approval: the same one however often it is '
  'called, and what the first call said stands. subject is the question in one line, assignee who is asked (a person, a team; null '
  'for anyone), form any JSON that helps to decide. expires counts from the first call, by the database''s clock; null for never. '
  'durable.approvals lists it, durable.decide() answers it. Wait for that with durable.wait() and the condition {"approval": step_name}. '
  'Errors: WF001 workflow not found, WF002 lease lost, WF004 cancelled, WF005 invalid argument, WF006 form too large.';

create function durable.decide(
  approval_id uuid, decision text, by text default null, comment text default null, data jsonb default null
)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_variable
declare
  v_request durable.approval_requests;
  v_why text;
begin
  perform durable._require(char_length(decision) between 1 and 200
      -- What reads like the usual answers and is none would be taken for a rejection.
      and (decision in ('approved', 'rejected') or lower(decision) not in ('approve', 'approved', 'reject', 'rejected')),
    format('approval %s: %L is not a decision', approval_id, decision),
    'Use approved, rejected, or another word of up to 200 characters that its workflow knows.');
  perform durable._require((char_length(by) between 1 and 200) is not false,
    format('approval %s: by must have 1 to 200 characters', approval_id), 'Leave it out for the name of the session''s role.');
  perform durable._require((char_length(comment) <= 10000) is not false,
    format('approval %s: the comment is longer than 10000 characters', approval_id), 'Put the rest into data.');
  select * into v_request from durable.approval_requests r where r.approval_id = decide.approval_id for update;
  if not found then
    perform durable._raise('WF001', format('approval %s not found', coalesce(approval_id::text, 'NULL')),
      'No approval with this id is stored.',
      'Check the id and the database. Approvals are removed with the history of their workflow: see the setting retention.');
  elsif v_request.decision = decision and (data is null or v_request.data is not distinct from data) then
    return false;
  end if;
  v_request.decided_at := durable._now();
  v_why := case
    when v_request.decision is not null then format('is decided: %s, by %s', v_request.decision, v_request.decided_by)
    when v_request.expired or v_request.expires_at <= v_request.decided_at then 'has expired'
    when not exists (select from durable.live_workflows l where l.workflow_id = v_request.workflow_id) then
      format('is withdrawn: workflow %s has ended (%s)', v_request.workflow_id, durable.status(v_request.workflow_id)) end;
  if v_why is not null then
    perform durable._raise('WF015', format('approval %s %s', approval_id, v_why), 'Nothing was changed.', case
      when v_request.decision is not null then 'The first decision stands; the same one again must come with the same data, or none.'
      when v_why = 'has expired' then 'What comes after an expiry is the workflow''s to say.'
      else 'durable.retry() of a failed or cancelled workflow opens what it withdrew.' end);
  end if;
  v_request.decision := decision;
  v_request.decided_by := coalesce(by, session_user);
  v_request.comment := comment;
  v_request.data := data;
  perform durable._check_payload(format('approval %s: the decision', approval_id), durable._decision(v_request));
  update durable.approval_requests r
  set decision = v_request.decision, decided_by = v_request.decided_by, comment = v_request.comment, data = v_request.data,
    decided_at = v_request.decided_at, xid = pg_current_xact_id()
  where r.approval_id = decide.approval_id;
  return true;
end
$$;
comment on function durable.decide(uuid, text, text, text, jsonb) is
  'Decides an approval, in the caller''s transaction, and its workflow goes on: approved, rejected, or another word that the '
  'workflow knows. by is who decides (null for the name of the session''s role), data what the decision comes with, the values of a '
  'form for example. The first decision stands. The same one again, by whomever, without data or with the same, changes nothing and returns false. '
  'Errors: WF001 approval not found, WF005 invalid argument, WF006 data too large, WF015 decided otherwise, expired or withdrawn.';

create function durable._wake_asker()
returns trigger language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
begin
  if durable._sees_commits() and exists (
      select from durable.waits w
      where w.workflow_id = new.workflow_id and w.kind = 'approval' and w.subject = new.step_name) then
    perform durable._wake(array[new.workflow_id]);
  end if;
  return null;
end
$$;
