-- One turn of the worker: takes a workflow, and runs the file of its name.

-- \gset makes variables of a row; a null unsets its variable. The empty left side makes nulls of no row at all.
-- First what the worker holds already: the connection was lost in the middle of a turn, or the answer to a claim was.
select r.* from (select) as turn left join durable.reclaim(:'worker') as r on true limit 1 \gset
\if :{?workflow_id}
\else
  -- workflows names those that this worker has code for; it is given no others.
  select c.*
  from (select) as turn
  left join durable.claim(:'worker', '{demo_psql}', max_workflows => 1, workflows => '{deliver,pack}') as c on true
  \gset
\endif

\if :{?workflow_id}
  -- The outputs that are stored, by step: what is among them must not run again. steps is null on a first run.
  \if :{?steps}
    select coalesce(jsonb_object_agg(step ->> 'step_name', step -> 'output'), '{}') as stored
    from jsonb_array_elements(:'steps') as step where step ->> 'status' = 'completed' \gset
  \else
    \set stored {}
  \endif
  \ir :name.sql
\endif
