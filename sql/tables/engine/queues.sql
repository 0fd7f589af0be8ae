-- The fencing token and the place in line are one number: a workflow takes a new one each time it becomes ready, and
-- a claim turns it into the lease. CACHE 1 keeps the numbers in the order in which they were handed out.
create sequence durable.ready_seq as bigint cache 1;
comment on sequence durable.ready_seq is
  'Places in line. A claim turns the place of a workflow into its lease, so that a lease is never given twice.';

create table durable.known_queues (
  queue text not null,
  created_at timestamptz not null default durable._now(),
  constraint known_queues_pkey primary key (queue),
  constraint known_queues_name_length check (char_length(queue) between 1 and 200)
);
-- Most use this one; there at once, so that nobody's first enqueue has to wait for another's transaction.
insert into durable.known_queues (queue) values ('default');
comment on table durable.known_queues is
  'One row for each queue. One that is not known is added by the first enqueue that names it, or by a tick. Read it through '
  'durable.queues.';
comment on column durable.known_queues.queue is 'The name, 1 to 200 characters.';
comment on column durable.known_queues.created_at is 'When it was first used.';
