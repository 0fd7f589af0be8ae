-- Schedules: the states that cannot be stored, and a life in plain SQL.
\set ECHO none
\set QUIET 1
\pset format unaligned
\pset tuples_only true
-- What went well is not worth a line.
\o | grep -E '^(not ok|#|1[.][.])'
begin;
select no_plan();

create function pg_temp.refused(change text, rule text, description text)
returns text language plpgsql as $$
declare
  v_rule text := 'nothing';
begin
  begin
    execute change;
  exception when others then
    get stacked diagnostics v_rule = constraint_name;
    if v_rule = '' then
      v_rule := sqlerrm;
    end if;
  end;
  return is(v_rule, rule, description);
end
$$;

select is(durable.cron_next('30 2 * * mon-fri', '2026-03-06 12:00+00', 'Europe/Berlin'), '2026-03-09 01:30+00', 'a line falls due');
select is(durable.schedule('nightly', '0 2 * * *', 'report', timezone => 'Europe/Berlin', starts_at => '2100-06-01 00:00+00'),
  '2100-06-01 00:00+00', 'a schedule says when it is due first');
select results_eq($$ select * from durable.next_firings('nightly', 2) $$,
  $$ values ('2100-06-01 00:00+00'::timestamptz), ('2100-06-02 00:00+00') $$, 'and when after that');
select is(durable.schedule('nightly', '0 2 * * *', 'report', timezone => 'Europe/Berlin', starts_at => '2100-06-01 00:00+00'),
  '2100-06-01 00:00+00', 'to say it again changes nothing');
select isnt(durable.trigger_schedule('nightly'), null, 'it can be triggered by hand');
select results_eq($$ select name, input ->> 'schedule' from durable.workflows $$, $$ values ('report', 'nightly') $$, 'which starts a workflow');
select results_eq($$ select schedule, outcome::text from durable.schedule_firings $$, $$ values ('nightly', 'triggered') $$, 'and is on record');

-- Schedules
select pg_temp.refused($$ update durable.schedules set name = '' $$, 'schedules_name_length', 'a schedule has a name');
select pg_temp.refused($$ update durable.schedules set overlap = 'x' $$, 'schedules_overlap', 'overlap is one of five');
select pg_temp.refused($$ update durable.schedules set catchup = '-1 s' $$, 'schedules_catchup', 'catchup is not negative');
select pg_temp.refused($$ update durable.schedules set catchup_mode = 'x' $$, 'schedules_catchup', 'catchup_mode is all or last');
select pg_temp.refused($$ update durable.schedules set jitter = '-1 s' $$, 'schedules_jitter', 'jitter is not negative');
select pg_temp.refused($$ update durable.schedules set max_firings = 0 $$, 'schedules_counts', 'it may fire at least once');
select pg_temp.refused($$ update durable.schedules set waiting = -1 $$, 'schedules_counts', 'not less than nothing waits');
select pg_temp.refused($$ update durable.schedules set pause_reason = 'x' $$, 'schedules_reason_if_paused', 'who has a reason is paused');
select pg_temp.refused($$ update durable.schedules set error = 'x' $$, 'schedules_broken_is_not_due', 'what is broken is not due');
select pg_temp.refused($$ insert into durable.schedules select * from durable.schedules $$, 'schedules_pkey', 'a name is taken once');

-- Firings
select pg_temp.refused($$ insert into durable.schedule_firings select * from durable.schedule_firings $$,
  'schedule_firings_pkey', 'a due time fires once');
select pg_temp.refused($$ update durable.schedule_firings set workflow_id = null, open = false $$,
  'schedule_firings_started_has_workflow', 'what fired has a workflow');
select pg_temp.refused($$ update durable.schedule_firings set outcome = 'queued', open = false $$,
  'schedule_firings_started_has_workflow', 'what waits has none');
select pg_temp.refused($$ update durable.schedule_firings set outcome = 'queued', workflow_id = null $$,
  'schedule_firings_open_has_workflow', 'only a workflow can run');
select pg_temp.refused($$ update durable.schedule_firings set open = false, watched = true $$,
  'schedule_firings_watched_is_open', 'nobody waits for the end of what has ended');
select pg_temp.refused($$ update durable.schedule_firings set missed_until = 'infinity' $$,
  'schedule_firings_missed_until', 'only what was missed spans a time');
select pg_temp.refused($$ update durable.schedule_firings set outcome = 'skipped', workflow_id = null, open = false $$,
  'schedule_firings_not_started_has_reason', 'what did not start has a reason');

-- Backfills
select pg_temp.refused($$ insert into durable.schedule_backfills (schedule, from_at, until_at, max_parallel) values ('s', now(), now(), 0) $$,
  'schedule_backfills_parallel', 'a backfill runs something');
select pg_temp.refused($$ insert into durable.schedule_backfills (schedule, from_at, until_at, max_parallel) values ('s', now(), '-infinity', 1) $$,
  'schedule_backfills_range', 'a backfill goes forward');

select is(durable.unschedule('nightly'), true, 'a schedule is removed');
select is(durable.unschedule('nightly'), false, 'once');

select finish();
rollback;
