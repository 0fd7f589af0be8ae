-- The workflow "pack", a child of deliver. Without a step of its own it has nothing to look up, and ends.
select durable.complete(:'workflow_id', :'lease',
  jsonb_build_object('box', 'box of ' || (:'input'::jsonb ->> 'order_id'), 'grams', 4200));
