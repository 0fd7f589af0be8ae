-- A NOTIFY takes a lock of the whole cluster at commit, so one is sent only when a worker has said that it is idle.
-- It saves waiting, nothing more: workers poll all the same, and a lost one costs a poll.

-- Wakes as many idle workers of a queue as there are workflows of this name for them.
create function durable._ring(queue text, workflow text, workflows integer)
returns void language plpgsql as $$
begin
  perform pg_notify('durable_worker_' || d.worker_id, '')
  from (select w.worker_id from durable.idle_workers w
        where w.queue = _ring.queue and (w.workflows is null or _ring.workflow = any(w.workflows))
        order by random() limit least(_ring.workflows, 100)) d;
end
$$;

-- Who rings at its commit, and holds no lock that a worker waits for, may have looked for idle workers just before one lies
-- down that does not see yet what is rung for. The two take turns: the ringer until its commit, which is at hand.
create function durable._take_turn_to_ring()
returns void language sql volatile as $$
  select pg_advisory_xact_lock_shared(hashtext('durable.bell'), 0)
$$;

create function durable.idle(worker text, queues text[] default '{default}', workflows text[] default null)
returns text language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_worker_id integer := durable._worker_id(idle.worker, idle.queues);
begin
  perform pg_advisory_xact_lock(hashtext('durable.bell'), 0);
  insert into durable.idle_workers (queue, worker_id, workflows)
  select q, v_worker_id, idle.workflows from unnest(idle.queues) as q
  on conflict do nothing;
  return 'durable_worker_' || v_worker_id;
end
$$;
comment on function durable.idle(text, text[], text[]) is
  'Says that a worker found nothing to claim and returns the channel on which it is woken (LISTEN "..."), for workflows of these '
  'names, or all of them. Claim once more '
  'after this call is committed, then wait: what was enqueued in between rang for nobody. A claim that returns '
  'something ends the idleness. Errors: WF005 for an invalid worker or queue name.';
