-- What was promised against what is stored. Every line with an expected number must show that number.
with workflow as (
  select w.workflow_id, w.status, w.attempt, w.started_at, w.completed_at
  from durable.workflows w where w.workflow_id in (select o.workflow_id from demo_shop.orders o)
), tally as (
  select o.order_id,
    (select count(*) from demo_payments.charges c where c.reference = o.order_id) as charges,
    (select count(*) from demo_shop.receipts r where r.order_id = o.order_id) as receipts,
    (select count(*) from demo_shop.receipts r join demo_payments.charges c using (charge_id)
     where r.order_id = o.order_id and c.reference = o.order_id and c.cents = o.cents) as good_receipts
  from demo_shop.orders o
), sold as (
  select s.sku, s.delivered - s.available as taken,
    (select coalesce(sum(o.quantity), 0) from demo_shop.orders o where o.sku = s.sku) as ordered
  from demo_shop.stock s
), step as (
  select s.status from durable.workflow_steps s where s.workflow_id in (select o.workflow_id from demo_shop.orders o)
)
select line.finding, line.found, line.expected
from (select count(*) as orders from demo_shop.orders) o, lateral (values
  ('orders placed', o.orders, null),
  ('workflows completed', (select count(*) from workflow where status = 'completed'), o.orders),
  ('orders charged exactly once', (select count(*) from tally where charges = 1), o.orders),
  ('orders charged twice or more', (select count(*) from tally where charges > 1), 0),
  ('orders not charged', (select count(*) from tally where charges = 0), 0),
  ('orders with exactly one receipt, for the right charge',
    (select count(*) from tally where receipts = 1 and good_receipts = 1), o.orders),
  ('units taken from stock', (select sum(taken) from sold), (select sum(ordered) from sold)),
  ('articles whose stock does not match the orders', (select count(*) from sold where taken <> ordered), 0),
  ('steps completed, four for each order', (select count(*) from step where status = 'completed'), 4 * o.orders),
  ('times a workflow lost its worker and went on', (select coalesce(sum(attempt - 1), 0) from workflow), null),
  ('requests to the payment service', (select count(*) from demo_payments.requests), null),
  ('of these repeated after a crash, and answered with the first charge',
    (select count(*) from demo_payments.requests) - (select count(*) from demo_payments.charges), null)
) as line (finding, found, expected);
