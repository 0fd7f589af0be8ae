-- The two lines that have no queue: 0, of what has a wake_at, and 1, of what has a deadline. See sql/tables/engine/lines.sql.

create function durable._timer_place(at timestamptz)
returns bigint language sql immutable strict as $$ select (extract(epoch from at) * 1000000)::bigint $$;

create function durable._timer_time(place bigint)
returns timestamptz language sql immutable strict as $$ select to_timestamp(0) + place * interval '1 microsecond' $$;

-- The latest time that the marks of the timers know of.
create function durable._time_of(mark durable.line_marks)
returns timestamptz language sql immutable as $$ select greatest(mark.moved_at, durable._timer_time(mark.seen_seq)) $$;

create function durable._first_timer(p_timer bigint, p_after timestamptz, p_until timestamptz)
returns bigint language plpgsql stable as $$
begin
  return durable._timer_place(case p_timer
    when 0 then (
      select l.wake_at from durable.live_workflows l
      where l.wake_at > p_after and l.wake_at <= p_until order by l.wake_at limit 1)
    else (
      select l.deadline from durable.live_workflows l
      where l.deadline > p_after and l.deadline <= p_until order by l.deadline limit 1)
    end);
end
$$;

-- Where to begin. Three seconds earlier than the mark says: when the clock was set back by less than passes between two ticks, no
-- tick sees that, and what was set meanwhile is due before the mark.
create function durable._timers_after(p_timer bigint)
returns timestamptz language plpgsql stable as $$
begin
  return coalesce((
    -- A stretch of five seconds that may still get rows is read each time.
    select durable._timer_time(durable._start_in(m.safe_seqs[t.n], m.start_seqs[t.n], 5000000) - 3000000)
    from durable._newest_mark('') m, array_position(m.line_ids, p_timer) as t(n) where t.n is not null), '-infinity');
end
$$;

-- Moves the beginning of both lines up to p_at, a time that was read when the transaction had no xid. The tick calls it
-- with how many it has done: only then, and now and then, has it left anything there that is worth passing.
create function durable._move_timers(p_at timestamptz, p_done integer)
returns void language plpgsql as $$
declare
  v_mark durable.line_marks := durable._newest_mark('');
  v_place bigint := durable._timer_place(p_at);
begin
  if durable._is_ahead(durable._time_of(v_mark), p_at) then
    -- The clock was set back, and not all that waits for it is put right yet: see durable._set_back().
    return;
  end if;
  if p_done = 0 and v_mark.seen_seq > v_place - 10000000 then
    v_place := v_mark.seen_seq;
  end if;
  if durable._is_due(v_mark, v_place, p_at) then
    perform durable._move_marks('', '{0,1}', v_place, pg_current_xact_id(), p_at);
  end if;
end
$$;
