-- What others do while worker.sh works: a customer orders and pays, and somebody decides.
\pset footer off

\echo '\nAn order comes in. It and its workflow are one transaction.'
begin;
insert into demo_psql.orders values
  ('A-7', 'chair', 12500, durable.enqueue('deliver', '{"order_id": "A-7", "sku": "chair"}', queue => 'demo_psql'));
commit;
select workflow_id from demo_psql.orders where order_id = 'A-7' \gset

\echo '\nA while later it waits for the payment: one row, and nobody holds it.'
call demo_psql.wait_until(
  format('select status = ''waiting'' from durable.workflows where workflow_id = %L', :'workflow_id'));
select w.name, w.status, w.worker, s.step_name, s.waits_for, s.wait_until
from durable.workflows w join durable.workflow_steps s using (workflow_id)
where w.workflow_id = :'workflow_id' and s.waits_for is not null;

\echo 'The customer pays; with the key the payment arrives once, however often it is sent.'
select durable.send(:'workflow_id', 'payment', '{"cents": 12500}', key => 'payment-1') as sent,
  durable.send(:'workflow_id', 'payment', '{"cents": 12500}', key => 'payment-1') as sent_again;

\echo 'Somebody in sales is asked. What waits for them is rows.'
call demo_psql.wait_until(format(
  'select exists (select from durable.approvals where workflow_id = %L and state = ''pending'')', :'workflow_id'));
select approval_id, subject, form, expires_at
from durable.approvals where assignee = 'sales' and state = 'pending' order by approval_id;
select durable.decide(approval_id, 'approved', by => 'ada', comment => 'a good customer') as decided
from durable.approvals where workflow_id = :'workflow_id' and state = 'pending';

call demo_psql.wait_until(
  format('select completed_at is not null from durable.workflows where workflow_id = %L', :'workflow_id'));
\echo 'What happened:'
select s.step_name, s.status, left(s.output::text, 80) as output from durable.history(:'workflow_id') s;
select w.name, w.status, w.output
from durable.workflows w where :'workflow_id' in (w.workflow_id, w.parent_id) order by w.workflow_id;
