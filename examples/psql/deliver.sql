-- The workflow "deliver". turn.sql has set :workflow_id, :lease, :input and :stored; every call carries the first two.
-- An error ends psql, and failed.sql reports it. \q ends this file alone, at a wait that is not over: the workflow is
-- parked, and claimed again when it is time. Then all of this runs from the top, past what is stored.
select :'input'::jsonb ->> 'order_id' as order_id, :'input'::jsonb ->> 'sku' as sku \gset

-- A step whose work is SQL in this database: begin_step, the work and the checkpoint are one transaction. Exactly once.
select :'stored'::jsonb ? 'reserve' as done \gset
\if :done
\else
  begin;
  select durable.begin_step(:'workflow_id', :'lease', 'reserve');
  update demo_psql.stock set available = available - 1 where sku = :'sku';
  select durable.checkpoint(:'workflow_id', :'lease', 'reserve', 'true');
  commit;
\endif

-- Time to think it over. The first call parks the workflow, a call after that time says that it is over ("ok"), and a
-- later one that it was ("exists"). "waiting" it says while others hold its row; the next turn asks again. The names of
-- steps are yours; these are the ones that the Python client would give.
select outcome in ('parked', 'waiting') as stop
from durable.wait(:'workflow_id', :'lease', 'sleep', timeout => '1 second') \gset
\if :stop \q \endif

-- A message, if it comes in time.
select outcome in ('parked', 'waiting') as stop, coalesce(output ? 'timed_out', false) as unpaid
from durable.wait(:'workflow_id', :'lease', 'receive:payment', '[{"message": "payment"}]', timeout => '7 days') \gset
\if :stop \q \endif
\if :unpaid
  \set because 'not paid'
  \ir put_back.sql
  \q
\endif

-- A child, a workflow of its own: started exactly once, however often this is run, and then waited for.
select durable.start_children(:'workflow_id', :'lease', 'run:pack', 'pack', array[:'input'::jsonb]) as pack \gset
select outcome in ('parked', 'waiting') as stop,
  output #> '{value,outputs,0}' as parcel, output #>> '{value,failed,0,error,message}' as why_not
from durable.wait(:'workflow_id', :'lease', 'run:pack/result',
  jsonb_build_array(jsonb_build_object('children', :'pack'))) \gset
\if :stop \q \endif
\if :{?why_not}
  select durable.fail(:'workflow_id', :'lease',
    jsonb_build_object('type', 'ChildFailed', 'message', :'why_not', 'step', 'run:pack/result'));
  \q
\endif

-- A person. The request is a row of durable.approvals, for whoever decides to find. When nobody has in time, the
-- decision is null, and what comes of that is for this workflow to say: here it is as good as a refusal.
select durable.request_approval(:'workflow_id', :'lease', 'approval', format('Ship order %s?', :'order_id'),
  assignee => 'sales', form => :'parcel', expires => '2 days');
select outcome in ('parked', 'waiting') as stop, output #>> '{value,decision}' is distinct from 'approved' as refused,
  output #>> '{value,by}' as approved_by
from durable.wait(:'workflow_id', :'lease', 'approval', '[{"approval": "approval"}]') \gset
\if :stop \q \endif
\if :refused
  \set because 'not approved'
  \ir put_back.sql
  \q
\endif

-- A step of any other kind, here a program. When the worker dies before the checkpoint it runs again: at least once. So
-- what is outside gets a key that is the same each time, and gives the same answer.
select :'stored'::jsonb ? 'ship' as done, :'stored'::jsonb ->> 'ship' as tracking \gset
\if :done
\else
  \set key :workflow_id /ship
  \set tracking `./carrier.sh :'key'`
  select :'tracking' = '' as silent \gset
  \if :silent
    do $$ begin raise 'the carrier does not answer'; end $$;
  \endif
  -- What is stored counts: it is another worker's, if that one was first.
  select durable.checkpoint(:'workflow_id', :'lease', 'ship', to_jsonb(:'tracking'::text)) #>> '{}' as tracking \gset
\endif

select durable.complete(:'workflow_id', :'lease', jsonb_build_object(
  'tracking', :'tracking', 'parcel', :'parcel'::jsonb, 'approved_by', :'approved_by'));
