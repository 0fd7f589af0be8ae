-- What was promised against what is stored. Every line with an expected number must show that number.
with source as (
  select s.file, s.line like '%n/a%' as damaged, split_part(s.line, ',', 1) as article, split_part(s.line, ',', 2) as quantity,
    split_part(s.line, ',', 3) as cents
  from demo_sales.source s
), file as (
  select s.file, bool_or(s.damaged) as damaged, count(*) as lines,
    (select count(*) from demo_sales.imports i where i.file = s.file and i.lines = count(s.*)) as imports,
    (select count(*) from demo_sales.rejected r where r.file = s.file) as rejections
  from source s group by s.file
), sound as (
  select s.article, sum(s.quantity::bigint) as quantity, sum(s.cents::bigint) as cents
  from source s join file f using (file) where not f.damaged group by s.article
), run as (
  select w.workflow_id from durable.workflows w where w.name = 'import_all' order by w.created_at desc limit 1
), workflow as (
  select w.workflow_id, w.status, w.attempt, w.failures from durable.workflows w join run on run.workflow_id in (w.workflow_id, w.parent_id)
), step as (
  select s.* from durable.workflow_steps s join workflow w using (workflow_id) where w.status = 'completed'
)
select line.finding, line.found, line.expected
from (select count(*) as files, count(*) filter (where damaged) as damaged from file) f, lateral (values
  ('files', f.files, null),
  ('files added to the totals exactly once', (select count(*) from file where imports = 1), f.files - f.damaged),
  ('files added twice or more', (select count(*) from file where imports > 1), 0),
  ('damaged files rejected, and not added', (select count(*) from file where damaged and rejections = 1 and imports = 0),
    f.damaged),
  ('lines imported', (select sum(lines) from demo_sales.imports), (select sum(lines) from file where not damaged)),
  ('cents in the totals', (select sum(cents) from demo_sales.totals), (select sum(cents) from sound)),
  ('articles whose totals do not match the files',
    (select count(*) from demo_sales.totals t full join sound s using (article)
     where (t.quantity, t.cents) is distinct from (s.quantity, s.cents)), 0),
  ('chunks read and checkpointed', (select count(*) from step where step_name ~ '^read_chunk'),
    (select sum(jsonb_array_length(output)) from step where step_name = 'split')),
  ('of these at the second attempt', (select count(*) from step where step_name ~ '^read_chunk' and attempt > 1), null),
  ('times a workflow lost its worker and went on', (select sum(attempt - 1 - failures) from workflow), null)
) as line (finding, found, expected);
