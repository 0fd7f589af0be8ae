-- What was promised against what is stored. Every line with an expected number must show that number.
with reply as (
  -- The id of a request is the idempotency key of its step: the id of the workflow, and the name of the step.
  select t.disturbed, split_part(m.request_id, '/', 2) as step_name, count(*) as tokens, count(distinct m.place) as places
  from demo_support.tickets t join demo_model.meter m on m.request_id like t.workflow_id || '/%'
  group by t.disturbed, m.request_id
), request as (
  select t.disturbed, r.sent_again
  from demo_support.tickets t join demo_model.requests r on r.request_id like t.workflow_id || '/%'
), refund as (
  select t.workflow_id, count(r.*) as refunds,
    count(r.*) filter (where exists (
      select from durable.approvals a where a.workflow_id = t.workflow_id and a.decision = 'approved'
        and a.form = jsonb_build_object('order_id', r.order_id, 'amount', r.amount::text))) as approved
  from demo_support.tickets t left join demo_support.refunds r using (workflow_id)
  group by t.workflow_id
)
select line.finding, line.found, line.expected
from (select count(*) as tickets from demo_support.tickets) t, lateral (values
  ('tickets answered',
    (select count(*) from demo_support.tickets join durable.workflows w using (workflow_id) where w.status = 'completed'),
    t.tickets),
  ('tokens paid for in the undisturbed run', (select sum(tokens) from reply where not disturbed), null),
  ('tokens paid for in the run that was killed', (select sum(tokens) from reply where disturbed),
    (select sum(tokens) from reply where not disturbed)),
  ('replies with another number of tokens than in the undisturbed run',
    (select count(*) from reply d full join (select * from reply where not disturbed) u using (step_name)
     where d.disturbed and d.tokens is distinct from u.tokens), 0),
  ('tokens paid for twice', (select sum(tokens - places) from reply), 0),
  ('times the run lost its worker and went on',
    (select sum(w.attempt - 1 - w.failures) from demo_support.tickets join durable.workflows w using (workflow_id)), null),
  ('requests to the model in the undisturbed run', (select count(*) from request where not disturbed), null),
  ('requests to the model in the other run', (select count(*) from request where disturbed), null),
  ('tokens that were sent again after a crash, for nothing', (select sum(sent_again) from request), null),
  ('tickets with exactly one refund', (select count(*) from refund where refunds = 1), t.tickets),
  ('refunds that nobody approved', (select sum(refunds - approved) from refund), 0)
) as line (finding, found, expected);
