-- The workflow "pack", a child of deliver. With no step of its own there is nothing to look up; it ends with its output.
select durable.complete(:'workflow_id', :'lease', jsonb_build_object('box', 'box of ' || (:'input'::jsonb ->> 'order_id'), 'grams', 4200));
