-- A NOTIFY takes a lock of the whole cluster at commit, so one is sent only when a worker has said that it is idle.
-- It saves waiting, nothing more: workers poll all the same, each tick rings for what is ready while somebody is idle, and a
-- lost one costs no more than that. So nothing waits for it, and nothing fails because of it.

-- Whether this transaction may ring. One that has sent a NOTIFY cannot be prepared: where that is possible, and where the
-- session does not want it, only the calls of workers and the ticks do. And a commit fails when the queue of the server is full,
-- so that nobody rings any more when it is half full.
create function durable._may_ring()
returns boolean language plpgsql volatile as $$
begin
  return (current_setting('durable.rings', true) = 'on'
      or current_setting('max_prepared_transactions') = '0'
        and lower(coalesce(current_setting('durable.ring', true), '')) not in ('off', 'false', 'no', '0'))
    and pg_notification_queue_usage() < 0.5;
end
$$;

-- For the calls of workers, and ticks: this transaction may ring.
create function durable._let_ring()
returns void language plpgsql volatile as $$ begin perform set_config('durable.rings', 'on', true); end $$;

-- Sends something to these workers, if this transaction may.
create function durable._tell(worker_ids integer[], payload text)
returns void language plpgsql as $$
begin
  if cardinality(worker_ids) > 0 and durable._may_ring() then
    perform pg_notify('durable_worker_' || d.worker_id, payload)
    from (select distinct t.worker_id from unnest(worker_ids) as t(worker_id) where t.worker_id is not null) d;
  end if;
end
$$;

-- Wakes as many idle workers of a queue as there are workflows of this name for them.
create function durable._ring(queue text, workflow text, workflows integer)
returns void language plpgsql as $$
begin
  perform durable._tell(array(
    select w.worker_id from durable.idle_workers w
    where w.queue = _ring.queue and (w.workflows is null or _ring.workflow = any(w.workflows))
    order by random() limit least(_ring.workflows, 100)), '');
end
$$;

-- Rings for what is ready while somebody who may claim it is idle: it was put in line by a transaction that may not ring, or
-- at the moment when the worker lay down. Looks at a hundred queues at the most, and each time at others.
create function durable._ring_again()
returns integer language plpgsql as $$
declare
  v_queue text;
  v_mark durable.line_marks;
  v_line record;
  v_rung integer := 0;
  v_now timestamptz := durable._now();
begin
  for v_queue in select q.queue from (select distinct w.queue from durable.idle_workers w) q order by random() limit 100 loop
    v_mark := durable._newest_mark(v_queue);
    for v_line in
      select n.name, (
          select count(*)::integer from (
            select from durable.live_workflows r
            where r.line_id = n.line_id and r.ready_seq > durable._start_in(m.safe_seq, m.start_seq, durable._short(v_mark, v_now))
            order by r.ready_seq limit 100) r) as ready
      from (
        select distinct o.line_id, o.name from durable.lines o
        -- A suspect may have to wait for another one, idle workers or not.
        where o.queue = v_queue and not durable._is_suspect_line(o.line_id) limit 1000) n
      left join unnest(v_mark.line_ids, v_mark.safe_seqs, v_mark.start_seqs) as m(line_id, safe_seq, start_seq)
        on m.line_id = n.line_id
    loop
      if v_line.ready > 0 then
        perform durable._ring(v_queue, v_line.name, v_line.ready);
        v_rung := v_rung + 1;
      end if;
    end loop;
  end loop;
  return v_rung;
end
$$;

create function durable.idle(worker text, queues text[] default '{default}', workflows text[] default null)
returns text language plpgsql security definer set search_path = pg_catalog, pg_temp set lock_timeout = '50ms' as $$
#variable_conflict use_column
declare
  v_worker_id integer := durable._worker_id(idle.worker, idle.queues);
begin
  insert into durable.idle_workers (queue, worker_id, workflows)
  select q, v_worker_id, idle.workflows from unnest(idle.queues) as q
  on conflict on constraint idle_workers_pkey do nothing;
  return 'durable_worker_' || v_worker_id;
exception when lock_not_available then
  return null;
end
$$;
comment on function durable.idle(text, text[], text[]) is
  'Says that a worker found nothing to claim and returns the channel on which it is woken (LISTEN "..."), for workflows of these '
  'names, or all of them. Claim once more '
  'after this call is committed, then wait: what was enqueued in between rang for nobody. What is about to be committed at that '
  'moment may ring for nobody, too, until a tick does; so look again after 50 milliseconds, and now and then. A claim that returns '
  'something ends the idleness. Returns null, and nothing is said, while another transaction holds what it writes; '
  'call it again soon. Errors: WF005 for an invalid worker or queue name.';
