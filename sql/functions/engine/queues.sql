-- Lists a queue, unless another transaction is about to list it or another one: then a tick does. The locks last until the end
-- of the transaction, so there are few of them however many queues it adds.
create function durable._add_queue(queue text)
returns boolean language plpgsql as $$
begin
  if not pg_try_advisory_xact_lock(hashtext('durable.queues'), hashtext(_add_queue.queue) & 63) then
    return false;
  end if;
  insert into durable.known_queues (queue) values (_add_queue.queue) on conflict on constraint known_queues_pkey do nothing;
  return true;
end
$$;

create view durable.queues as select k.queue, k.created_at from durable.known_queues k;
comment on view durable.queues is 'Every queue that was used, with the time of its first use.';
