create table durable.queues (
  queue text not null,
  created_at timestamptz not null default now(),
  constraint queues_pkey primary key (queue),
  constraint queues_name_length check (char_length(queue) between 1 and 200)
);
comment on table durable.queues is
  'One row for each queue. A queue that is not known is added, without limits, by the first enqueue that names it.';
comment on column durable.queues.queue is 'The name, 1 to 200 characters.';
comment on column durable.queues.created_at is 'When it was first used.';
