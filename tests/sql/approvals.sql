-- Approvals: the states that cannot be stored, and a life in plain SQL.
\set ECHO none
\set QUIET 1
\pset format unaligned
\pset tuples_only true
-- What went well is not worth a line.
\o | grep -E '^(not ok|#|1[.][.])'
begin;
select no_plan();

select durable.enqueue('refund', '{"order": 7}');
create temp table held as select * from durable.claim('worker');
create temp table asked as
  select durable.request_approval(workflow_id, lease, 'ask', 'refund 120 EUR for order 7', 'finance', '{"cents": 12000}', '2 days')
    as approval_id
  from held;

create function pg_temp.refused(change text, rule text, description text)
returns text language plpgsql as $$
declare
  v_rule text := 'nothing';
begin
  begin
    execute 'update durable.approval_requests set ' || change;
  exception when others then
    get stacked diagnostics v_rule = constraint_name;
  end;
  return is(v_rule, rule, description);
end
$$;

select pg_temp.refused('decision = ''approved''', 'approval_requests_decision_is_whole', 'a decision is made by somebody, at a time');
select pg_temp.refused('decided_by = ''ada''', 'approval_requests_decision_is_whole', 'nobody decided what is not decided');
select pg_temp.refused('comment = ''fine''', 'approval_requests_decision_is_whole', 'a comment is on a decision');
select pg_temp.refused('data = ''1''', 'approval_requests_decision_is_whole', 'data comes with a decision');
select pg_temp.refused($$ decision = 'approved', decided_by = 'ada', xid = '1', decided_at = expires_at $$,
  'approval_requests_decided_in_time', 'nothing is decided after its time');
select pg_temp.refused($$ decision = 'approved', decided_by = 'ada', xid = '1', decided_at = now(), expired = true $$,
  'approval_requests_expired_or_decided', 'nothing is decided and expired');
select pg_temp.refused('expired = true, expires_at = null', 'approval_requests_expired_or_decided', 'what has no end does not expire');
select pg_temp.refused($$ expires_at = requested_at - interval '1 s' $$, 'approval_requests_expires_later', 'nothing expires before it is there');
select pg_temp.refused('subject = ''''', 'approval_requests_subject_length', 'a request has a subject');
select pg_temp.refused('assignee = ''''', 'approval_requests_assignee_length', 'an assignee has a name');
select pg_temp.refused('step_name = ''''', 'approval_requests_step_name_length', 'a request has a step');
select pg_temp.refused($$ decision = '', decided_by = 'ada', xid = '1', decided_at = now() $$,
  'approval_requests_decision_length', 'a decision says something');
select pg_temp.refused($$ decision = 'approved', decided_by = '', xid = '1', decided_at = now() $$,
  'approval_requests_decided_by_length', 'whoever decides has a name');
select pg_temp.refused($$ decision = 'approved', decided_by = 'ada', xid = '1', decided_at = now(), comment = repeat('x', 10001) $$,
  'approval_requests_comment_length', 'a comment is not a book');
select throws_ok(
  $$ insert into durable.approval_requests (approval_id, workflow_id, requested_at, workflow, step_name, subject)
     select gen_random_uuid(), workflow_id, now(), 'refund', 'ask', 'again' from held $$,
  '23505', null, 'a step asks once');

select results_eq(
  $$ select workflow, subject, assignee, form, expires_at - requested_at, state::text from durable.approvals $$,
  $$ values ('refund', 'refund 120 EUR for order 7', 'finance', '{"cents": 12000}'::jsonb, interval '2 days', 'pending') $$,
  'what is asked is listed');
select results_eq(
  $$ select outcome from held, durable.wait(workflow_id, lease, 'ask', '[{"approval": "ask"}]') $$, $$ values ('parked') $$,
  'and its workflow waits');
select ok(durable.decide(approval_id, 'rejected', by => 'ada', comment => 'not ours'), 'somebody decides') from asked;
select ok(not durable.decide(approval_id, 'rejected', by => 'ada', comment => 'not ours'), 'and again, unheard') from asked;
set constraints all immediate;
update held set lease = c.lease from durable.claim('worker') c;
select results_eq(
  $$ select outcome, output #>> '{value,decision}', output #>> '{value,by}', output #>> '{value,comment}', output #> '{value,expired}'
     from held, durable.wait(workflow_id, lease, 'ask', '[{"approval": "ask"}]') $$,
  $$ values ('ok', 'rejected', 'ada', 'not ours', 'false'::jsonb) $$, 'and the workflow goes on with that');
select durable.complete(workflow_id, lease) from held;
select results_eq(
  $$ select state::text, decision, decided_by, comment, decided_at between requested_at and clock_timestamp() from durable.approvals $$,
  $$ values ('decided', 'rejected', 'ada', 'not ours', true) $$, 'and what was decided stays');

select finish();
rollback;
