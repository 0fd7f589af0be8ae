-- Sequences that are behind their rows. Logical replication copies rows but no sequences. A subscriber that becomes the primary
-- would hand out numbers that its rows already have: messages are refused or received out of order, and claims overlook
-- workflows that stand in line beyond the sequence.
--
-- The check reads the ends of indexes, and the newest rows where no index helps: some milliseconds, but more while a long
-- transaction keeps vacuum from removing what left these indexes. The repair reads all unfinished workflows and all messages once.

-- The highest place in line of any workflow, in line or as part of a lease. Reads all unfinished workflows, or only those that
-- indexes find quickly.
create function durable._highest_place(p_all boolean)
returns bigint language plpgsql stable set plan_cache_mode = force_custom_plan as $$
declare
  v_day timestamptz := durable._now_in_view() - interval '1 day';
  v_first uuid := durable._first_id(v_day);
  v_highest bigint := greatest(
    -- The last one of each line.
    (select max(e.ready_seq)
     from (select distinct n.line_id as new_line from durable.lines n) n,
       lateral (values (n.new_line), (durable._started_line(n.new_line)), (durable._suspect_line(n.new_line))) as l(line_id),
       lateral (
         select r.ready_seq from durable.live_workflows r
         where r.line_id = l.line_id and r.ready_seq is not null order by r.ready_seq desc limit 1) e),
    (select max(greatest(n.ready_seq, n.lease >> 20, n.failed_lease >> 20, n.parked_lease >> 20, n.paused_lease >> 20))
     from (select l.ready_seq, l.lease, l.failed_lease, l.parked_lease, l.paused_lease from durable.live_workflows l
           order by l.workflow_id desc limit 100) n),
    (select max(f.lease >> 20)
     from (select e.lease from durable.finished_workflows e
           where e.workflow_id >= v_first order by e.workflow_id desc limit 100) f));
begin
  if p_all then
    v_highest := greatest(v_highest,
      (select max(greatest(l.ready_seq, l.lease >> 20, l.failed_lease >> 20, l.parked_lease >> 20, l.paused_lease >> 20))
       from durable.live_workflows l),
      (select max(s.lease >> 20) from durable.workflow_state s),
      (select max(o.lease >> 20) from durable.open_steps o));
  end if;
  return v_highest;
end
$$;

-- The last number of each sequence that a row has; null when there is none.
create function durable._sequence_needs(p_all boolean)
returns table (sequence regclass, needed bigint) language plpgsql stable as $$
begin
  return query values
    ('durable.ready_seq'::regclass, durable._highest_place(p_all)),
    ('durable.workers_worker_id_seq'::regclass, greatest(
      (select w.worker_id from durable.workers w order by w.worker_id desc limit 1),
      case when p_all then (select max(l.worker_id) from durable.live_workflows l) end)::bigint),
    ('durable.schedule_backfills_backfill_id_seq'::regclass, (
      select b.backfill_id from durable.schedule_backfills b order by b.backfill_id desc limit 1)),
    ('durable.messages_seq_seq'::regclass, case when p_all then (select max(m.seq) from durable.messages m)
      else greatest(
        (select max(n.seq) from (select m.seq from durable.messages m order by m.xid desc limit 100) n),
        (select max(n.seq)
         from (select m.seq from durable.messages m order by m.workflow_id desc, m.seq desc limit 100) n)) end),
    ('durable.ended_children_seq_seq'::regclass, case when p_all then (select max(e.seq) from durable.ended_children e)
      else (select max(n.seq)
        from (select e.seq from durable.ended_children e order by e.xid desc, e.seq desc limit 100) n) end);
end
$$;

-- The sequences whose next number is not above all that the rows have.
create function durable._sequences_behind()
returns table (sequence regclass, last_value bigint, needed bigint) language plpgsql stable
set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
begin
  return query
  select n.sequence, coalesce(pg_sequence_last_value(n.sequence), 0), n.needed
  from durable._sequence_needs(false) n
  where n.needed > coalesce(pg_sequence_last_value(n.sequence), 0);
end
$$;

create function durable.repair_sequences()
returns integer language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_bitmapscan = off set jit = off as $$
declare
  v_behind record;
  v_repaired integer := 0;
begin
  if pg_is_in_recovery() then
    perform durable._refuse_standby();
  end if;
  for v_behind in
    select n.sequence, n.needed from durable._sequence_needs(true) n
    where n.needed > coalesce(pg_sequence_last_value(n.sequence), 0)
  loop
    -- Others may take numbers between the check and this call. With so much room the sequence never goes back.
    perform setval(v_behind.sequence, v_behind.needed + 100000);
    raise warning 'sequence % was behind its rows: it goes on after %', v_behind.sequence, v_behind.needed + 100000
      using hint = 'This is normal after a switchover to a logical replica.';
    v_repaired := v_repaired + 1;
  end loop;
  return v_repaired;
end
$$;
comment on function durable.repair_sequences() is
  'Moves every sequence that is behind its rows past them, and returns how many it moved. Call it after a switchover to a '
  'logical replica, which receives rows but no sequences, before workers and programs connect. It reads all unfinished workflows '
  'and messages once. Calling it at any other time is harmless. It takes effect at once, even if the transaction is rolled back.';
