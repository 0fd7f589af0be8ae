-- Adds a lane that the caller does not see, without waiting for others who do the same.
create function durable._add_lane(queue text, priority smallint)
returns void language plpgsql as $$
begin
  insert into durable.lanes (queue, priority) values (_add_lane.queue, _add_lane.priority);
  perform durable._add_queue(queue);
end
$$;

-- Lists a queue, unless another transaction is about to list it or another one: then a tick does. The locks last until the end
-- of the transaction, so there are few of them however many queues it adds.
create function durable._add_queue(queue text)
returns boolean language plpgsql as $$
begin
  if not pg_try_advisory_xact_lock(hashtext('durable.queues'), hashtext(_add_queue.queue) & 63) then
    return false;
  end if;
  insert into durable.queues (queue) values (_add_queue.queue) on conflict do nothing;
  return true;
end
$$;

-- Removes new lanes that are there already, and lists the queues that nobody could list without waiting.
create function durable._tidy_lanes(max_lanes integer)
returns integer language plpgsql as $$
declare
  v_lane record;
  v_tidied integer := 0;
begin
  for v_lane in
    select n.queue, n.priority, array_agg(n.ctid order by n.ctid) as places
    from (select o.queue, o.priority, o.ctid from durable.lanes o where o.is_new order by o.queue, o.priority limit max_lanes) n
    group by n.queue, n.priority
  loop
    continue when not durable._add_queue(v_lane.queue);
    if exists (
        select from durable.lanes o where o.queue = v_lane.queue and o.priority = v_lane.priority and not o.is_new) then
      delete from durable.lanes o where o.ctid = any(v_lane.places);
    else
      delete from durable.lanes o where o.ctid = any(v_lane.places[2:]);
      update durable.lanes o set is_new = false where o.ctid = v_lane.places[1];
    end if;
    v_tidied := v_tidied + 1;
  end loop;
  return v_tidied;
end
$$;

-- Moving the claim cursor; the rules stand with durable.lane_marks.

-- Whether a mark (null when there is none yet) may have to move. A lane where claims read a few places too many need not:
-- moving takes as long as reading a hundred. Stable, as its subtraction is: else it is not inlined.
create function durable._is_due(mark durable.lane_marks, seq bigint, at timestamptz)
returns boolean language sql stable as $$
  select mark.queue is null or mark.advanced_at < at - interval '100 milliseconds'
    and (mark.sweep_at <= at or (mark.queue = '' or mark.safe_seq + 100 <= seq)
      and (mark.seen_seq + 1000 <= seq or mark.safe_seq < mark.seen_seq or mark.safe_seq < mark.start_seq))
$$;

-- The places of the lines that have no queue.
create function durable._line_place(at timestamptz)
returns bigint language sql immutable strict as $$ select (extract(epoch from at) * 1000000)::bigint $$;

create function durable._line_time(place bigint)
returns timestamptz language sql immutable strict as $$ select to_timestamp(0) + place * interval '1 microsecond' $$;

create function durable._first_timer(p_line smallint, p_after timestamptz, p_until timestamptz)
returns bigint language plpgsql stable as $$
begin
  return durable._line_place(case p_line
    when 0 then (
      select l.wake_at from durable.live_workflows l
      where l.wake_at > p_after and l.wake_at <= p_until order by l.wake_at limit 1)
    else (
      select l.deadline from durable.live_workflows l
      where l.deadline > p_after and l.deadline <= p_until order by l.deadline limit 1)
    end);
end
$$;

-- Where to begin in a line that has no queue. A short stretch that may still get rows is read each time.
create function durable._timers_after(p_line smallint)
returns timestamptz language plpgsql stable as $$
begin
  return coalesce((
    select durable._line_time(case when m.start_seq - m.safe_seq < 5000000 then m.safe_seq else m.start_seq end)
    from durable.lane_marks m where m.queue = '' and m.priority = p_line), '-infinity');
end
$$;

-- Moves the beginning of both lines up to p_at, a time that was read when the transaction had no xid. The tick calls it
-- with what it has done in each line: only then, and now and then, has it left anything there that is worth passing.
create function durable._advance_timers(p_at timestamptz, p_done integer[])
returns void language plpgsql as $$
declare
  v_mark durable.lane_marks;
  v_place bigint;
begin
  for v_line in 0 .. 1 loop
    select * into v_mark from durable.lane_marks m where m.queue = '' and m.priority = v_line;
    v_place := durable._line_place(p_at);
    if p_done[v_line + 1] = 0 and v_mark.seen_seq > v_place - 10000000 then
      v_place := v_mark.seen_seq;
    end if;
    if durable._is_due(v_mark, v_place, p_at) then
      perform durable._advance_lane('', v_line::smallint, v_place, pg_current_xact_id(), p_at);
    end if;
  end loop;
end
$$;

-- The first place in a lane after p_after and up to p_until that is ready; null when there is none.
create function durable._first_ready(p_queue text, p_priority smallint, p_after bigint, p_until bigint)
returns bigint language plpgsql stable as $$
begin
  if p_queue = '' then
    return durable._first_timer(p_priority, durable._line_time(p_after), durable._line_time(p_until));
  end if;
  return (
    select l.ready_seq from durable.live_workflows l
    where l.queue = p_queue and l.priority = p_priority and l.ready_seq > p_after and l.ready_seq <= p_until
    order by l.ready_seq limit 1);
end
$$;

-- Does something for one claimer at a time, and only when places were taken since the last time. durable.claim() calls
-- it when a lane is due, which is at most every 100 ms.
create function durable._advance_lanes(p_queue text)
returns void language plpgsql as $$
declare
  v_now timestamptz := durable._now();
  v_seq bigint;
  v_lane record;
begin
  -- An xid that was assigned before the place is read proves nothing.
  if pg_current_xact_id_if_assigned() is not null
    or not pg_try_advisory_xact_lock(hashtext('durable.lanes'), hashtext(p_queue)) then
    return;
  end if;
  v_seq := coalesce(pg_sequence_last_value('durable.ready_seq'), 0);
  for v_lane in
    select distinct n.priority from durable.lanes n
    left join durable.lane_marks m on m.queue = n.queue and m.priority = n.priority
    where n.queue = p_queue and durable._is_due(m, v_seq, v_now)
  loop
    perform durable._advance_lane(p_queue, v_lane.priority, v_seq, pg_current_xact_id(), v_now);
  end loop;
end
$$;

create function durable._advance_lane(p_queue text, p_priority smallint, p_seq bigint, p_xid xid8, p_now timestamptz)
returns void language plpgsql as $$
declare
  v_mark durable.lane_marks;
  v_new durable.lane_marks;
  v_first bigint;
  v_done_at timestamptz;
begin
  select * into v_mark from durable.lane_marks m where m.queue = p_queue and m.priority = p_priority;
  -- Marks with an xid from the future came with a dump from another server.
  if not found or v_mark.seen_xid > p_xid then
    insert into durable.lane_marks (queue, priority, seen_seq, seen_xid, next_seq, next_at, advanced_at, sweep_at)
    values (p_queue, p_priority, p_seq, p_xid, p_seq, p_now, p_now, p_now + interval '1 minute')
    on conflict on constraint lane_marks_pkey do update
      set safe_seq = 0, start_seq = 0, seen_seq = excluded.seen_seq, seen_xid = excluded.seen_xid,
        next_seq = excluded.next_seq, next_at = excluded.next_at, advanced_at = excluded.advanced_at,
        sweep_at = excluded.sweep_at;
    return;
  end if;
  v_new := v_mark;
  v_new.advanced_at := p_now;

  -- A new statement has a new snapshot: whatever ended before it was taken is visible to the look-up in it.
  if pg_snapshot_xmin(pg_current_snapshot()) >= v_mark.seen_xid then
    v_first := durable._first_ready(p_queue, p_priority, v_mark.safe_seq, v_mark.seen_seq);
    v_new.safe_seq := coalesce(v_first - 1, v_mark.seen_seq);
    -- What committed late behind the start brings it back.
    v_new.start_seq := case when v_first is null then greatest(v_mark.start_seq, v_mark.seen_seq) else v_first - 1 end;
    v_new.seen_seq := p_seq;
    v_new.seen_xid := p_xid;
  end if;

  if v_mark.next_at < p_now - interval '1 second' then
    v_new.start_seq := greatest(v_new.start_seq,
      coalesce(durable._first_ready(p_queue, p_priority, v_new.start_seq, v_mark.next_seq) - 1, v_mark.next_seq));
    v_new.next_seq := p_seq;
    v_new.next_at := p_now;
  end if;

  if v_mark.sweep_at <= p_now then
    v_first := durable._first_ready(p_queue, p_priority, 0, v_new.start_seq);
    v_new.start_seq := coalesce(v_first - 1, v_new.start_seq);
    v_new.safe_seq := least(v_new.safe_seq, v_new.start_seq);
    -- The sweep may take a twentieth of the time at the most.
    v_done_at := durable._now();
    v_new.sweep_at := v_done_at + greatest(20 * (v_done_at - p_now),
      case when v_new.safe_seq < v_new.start_seq then interval '1 second' else interval '1 minute' end);
  elsif v_mark.safe_seq = v_mark.start_seq and v_new.safe_seq < v_new.start_seq then
    v_new.sweep_at := least(v_mark.sweep_at, p_now + interval '1 second');
  end if;
  update durable.lane_marks m
  set safe_seq = v_new.safe_seq, start_seq = v_new.start_seq, seen_seq = v_new.seen_seq, seen_xid = v_new.seen_xid,
    next_seq = v_new.next_seq, next_at = v_new.next_at, advanced_at = v_new.advanced_at, sweep_at = v_new.sweep_at
  where m.queue = p_queue and m.priority = p_priority;
end
$$;
