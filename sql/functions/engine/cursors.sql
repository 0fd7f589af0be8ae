-- Moving the claim cursors; the rules stand with durable.line_marks.

create function durable._newest_mark(p_queue text)
returns durable.line_marks language plpgsql stable as $$
declare
  v_mark durable.line_marks;
begin
  select * into v_mark from durable.line_marks m where m.queue = p_queue order by m.version desc limit 1;
  return v_mark;
end
$$;

-- Where to begin to read a line. A short stretch that may still get rows is cheaper to read than to sweep.
create function durable._start_in(safe_seq bigint, start_seq bigint, short bigint)
returns bigint language sql immutable as $$
  select coalesce(case when start_seq - safe_seq < short then safe_seq else start_seq end, 0)
$$;

-- How long a stretch is short. Any is, while nobody sweeps: whoever moves the marks may be in a transaction that stays open.
create function durable._short(mark durable.line_marks, at timestamptz)
returns bigint language sql stable as $$
  select case when mark.sweep_at < at - interval '1 second' then 9223372036854775807 else 2000 end
$$;

-- Whether a mark (null when there is none yet) may have to move. Where claims read a few places too many it need not: moving
-- takes as long as reading a hundred. Once the clock was set back it must, for its times would keep it where it is until they come
-- again. Stable, as its subtraction is: else it is not inlined.
create function durable._is_due(mark durable.line_marks, seq bigint, at timestamptz)
returns boolean language sql stable as $$
  select mark.queue is null or mark.moved_at < at - interval '20 milliseconds'
    and (mark.sweep_at <= at or mark.seen_seq + 1000 <= seq
      or mark.lowest_seq + 100 <= seq and mark.moved_at < at - interval '100 milliseconds')
    or durable._is_ahead(mark.moved_at, at)
$$;

-- The first place in a line after p_after and up to p_until that is ready, if any. A set, so that it is inlined.
create function durable._first_ready(p_queue text, p_line_id bigint, p_after bigint, p_until bigint)
returns setof bigint language sql stable rows 1 as $$
  (select l.ready_seq from durable.live_workflows l
   where p_queue <> '' and l.line_id = p_line_id and l.ready_seq > p_after and l.ready_seq <= p_until
   order by l.ready_seq limit 1)
  union all
  select t.place from durable._first_timer(p_line_id, durable._timer_time(p_after), durable._timer_time(p_until)) as t(place)
  where p_queue = '' and t.place is not null
$$;

-- Moves the marks of a queue for a claim that found something in these lines; for one claimer at a time.
create function durable._pass_claimed(p_queue text, p_line_ids bigint[])
returns void language plpgsql as $$
declare
  v_now timestamptz := durable._now();
  v_seq bigint;
begin
  -- An xid that was assigned before the place is read proves nothing.
  if pg_current_xact_id_if_assigned() is not null
    or not pg_try_advisory_xact_lock(hashtext('durable.lines'), hashtext(p_queue)) then
    return;
  end if;
  v_seq := coalesce(pg_sequence_last_value('durable.ready_seq'), 0);
  perform durable._move_marks(p_queue, p_line_ids, v_seq, pg_current_xact_id(), v_now);
end
$$;

-- Moves the marks of the lines that a queue has marks for, and of those given.
create function durable._move_marks(p_queue text, p_line_ids bigint[], p_seq bigint, p_xid xid8, p_now timestamptz)
returns void language plpgsql as $$
declare
  v_mark durable.line_marks := durable._newest_mark(p_queue);
  -- A new statement has a new snapshot: whatever ended before it was taken is visible to the look-ups in it.
  v_is_safe boolean := pg_snapshot_xmin(pg_current_snapshot()) >= v_mark.seen_xid;
  v_was_ahead boolean := durable._is_ahead(v_mark.moved_at, p_now);
  v_goes_on boolean := v_was_ahead or v_mark.next_at < p_now - interval '1 second';
  v_sweeps boolean := v_was_ahead or v_mark.sweep_at <= p_now;
  v_new durable.line_marks := v_mark;
  v_had_gap boolean := v_mark.safe_seqs <> v_mark.start_seqs;
  v_has_gap boolean;
  v_done_at timestamptz;
begin
  if v_mark.queue is not null then
    -- Where somebody has locked it, claims begin to read where it is.
    perform from durable.line_marks m where m.queue = p_queue and m.version = v_mark.version for update skip locked;
    if not found then
      return;
    end if;
  end if;
  -- Marks with an xid from the future came with a dump from another server.
  if v_mark.queue is null or v_mark.seen_xid > p_xid then
    delete from durable.line_marks m where m.ctid = any(array(
      select o.ctid from durable.line_marks o where o.queue = p_queue for update skip locked));
    insert into durable.line_marks (queue, version, seen_seq, seen_xid, next_seq, next_at, moved_at, sweep_at)
    values (p_queue, coalesce(v_mark.version, 0) + 1, p_seq, p_xid, p_seq, p_now, p_now, p_now + interval '1 minute')
    on conflict on constraint line_marks_pkey do nothing;
    return;
  end if;
  if v_is_safe then
    v_new.seen_seq := p_seq;
    v_new.seen_xid := p_xid;
  end if;
  if v_goes_on then
    v_new.next_seq := p_seq;
    v_new.next_at := p_now;
  end if;
  with line as materialized (
    select l.*
    from (
      select coalesce(m.line_id, g.line_id) as line_id, coalesce(m.safe_seq, 0) as safe_seq, coalesce(m.start_seq, 0) as start_seq
      from unnest(v_mark.line_ids, v_mark.safe_seqs, v_mark.start_seqs) as m(line_id, safe_seq, start_seq)
      full join unnest(p_line_ids) as g(line_id) on g.line_id = m.line_id) l
    -- The sweep forgets lines that have left.
    where not v_sweeps or p_queue = '' or (select true from durable.lines n where n.line_id = l.line_id limit 1)
  ), begun as materialized (
    -- What committed late behind the start brings it back.
    select l.line_id, case when v_is_safe then coalesce(f.seq - 1, v_mark.seen_seq) else l.safe_seq end as safe_seq,
      case when not v_is_safe then l.start_seq when f.seq is null then greatest(l.start_seq, v_mark.seen_seq)
        else f.seq - 1 end as start_seq
    from line l left join lateral durable._first_ready(
        p_queue, l.line_id, l.safe_seq, case when v_is_safe then v_mark.seen_seq end) as f(seq) on true
  ), gone_on as materialized (
    select b.line_id, b.safe_seq,
      case when v_goes_on then greatest(b.start_seq, coalesce(f.seq - 1, v_mark.next_seq)) else b.start_seq end as start_seq
    from begun b left join lateral durable._first_ready(
        p_queue, b.line_id, b.start_seq, case when v_goes_on then v_mark.next_seq end) as f(seq) on true
  ), swept as materialized (
    select g.line_id, g.safe_seq, coalesce(f.seq - 1, g.start_seq) as start_seq
    from gone_on g left join lateral durable._first_ready(
        p_queue, g.line_id, 0, case when v_sweeps then g.start_seq end) as f(seq) on true
  )
  select coalesce(array_agg(s.line_id), '{}'), coalesce(array_agg(least(s.safe_seq, s.start_seq)), '{}'),
      coalesce(array_agg(s.start_seq), '{}'), min(s.safe_seq) filter (where s.safe_seq < greatest(v_new.seen_seq, s.start_seq))
    into v_new.line_ids, v_new.safe_seqs, v_new.start_seqs, v_new.lowest_seq
  from swept s;
  v_has_gap := v_new.safe_seqs <> v_new.start_seqs;
  if v_sweeps then
    -- The sweep may take a twentieth of the time at the most. But when the clock was set forward meanwhile, it seems to have taken
    -- longer than it did.
    v_done_at := durable._now();
    v_new.sweep_at := v_done_at + least(interval '10 minutes', greatest(20 * (v_done_at - p_now),
      case when v_has_gap then interval '1 second' when p_queue = '' then interval '10 seconds' else interval '1 minute' end));
  elsif v_has_gap and not v_had_gap then
    v_new.sweep_at := least(v_mark.sweep_at, p_now + interval '1 second');
  end if;
  update durable.line_marks m
  set version = m.version + (m.changes % 64 = 63)::integer, changes = m.changes + 1, seen_seq = v_new.seen_seq,
    seen_xid = v_new.seen_xid, next_seq = v_new.next_seq, next_at = v_new.next_at, moved_at = p_now, sweep_at = v_new.sweep_at,
    lowest_seq = v_new.lowest_seq, line_ids = v_new.line_ids, safe_seqs = v_new.safe_seqs, start_seqs = v_new.start_seqs
  where m.queue = p_queue and m.version = v_mark.version;
end
$$;

-- Forgets the marks of lines that have left these queues, for each claim there reads them. Where a claim is about to move them, its
-- sweep does it.
create function durable._forget_marks(p_queues text[], p_line_ids bigint[])
returns void language plpgsql as $$
declare
  v_queue text;
begin
  for v_queue in select distinct q from unnest(p_queues) as q loop
    continue when not pg_try_advisory_xact_lock(hashtext('durable.lines'), hashtext(v_queue));
    update durable.line_marks m
    set (line_ids, safe_seqs, start_seqs) = (
      select coalesce(array_agg(u.line_id), '{}'), coalesce(array_agg(u.safe_seq), '{}'), coalesce(array_agg(u.start_seq), '{}')
      from unnest(m.line_ids, m.safe_seqs, m.start_seqs) as u(line_id, safe_seq, start_seq)
      where u.line_id not in (select g from unnest(p_line_ids) as g))
    where m.ctid = any(array(select o.ctid from durable.line_marks o where o.queue = v_queue for update skip locked));
  end loop;
end
$$;
