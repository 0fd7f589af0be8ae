-- The end of an order that is not shipped; deliver.sql has set :because.
select :'stored'::jsonb ? 'put back' as done \gset
\if :done
\else
  begin;
  select durable.begin_step(:'workflow_id', :'lease', 'put back');
  update demo_psql.stock set available = available + 1 where sku = :'sku';
  select durable.checkpoint(:'workflow_id', :'lease', 'put back', 'true');
  commit;
\endif
select durable.complete(:'workflow_id', :'lease', to_jsonb('cancelled: ' || :'because'));
