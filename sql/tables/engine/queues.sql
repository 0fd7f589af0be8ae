-- The fencing token and the place in line are one number: a workflow takes a new one each time it becomes ready, and
-- a claim turns it into the lease. CACHE 1 keeps the numbers in the order in which they were handed out.
create sequence durable.ready_seq as bigint cache 1;
comment on sequence durable.ready_seq is
  'Places in line. A claim turns the place of a workflow into its lease, so that a lease is never given twice.';

create table durable.queues (
  queue text not null,
  created_at timestamptz not null default durable._now(),
  constraint queues_pkey primary key (queue),
  constraint queues_name_length check (char_length(queue) between 1 and 200)
);
comment on table durable.queues is
  'One row for each queue. A queue that is not known is added, without limits, by the first enqueue that names it.';
comment on column durable.queues.queue is 'The name, 1 to 200 characters.';
comment on column durable.queues.created_at is 'When it was first used.';

-- A lane is the line of one priority in one queue. Claims go through the lanes of a queue in order. Not unique: with a
-- constraint, the first enqueue into a lane would keep all others waiting until its transaction is over. Whoever does not
-- see the lane adds it, and the tick removes what is double.
create table durable.lanes (
  queue text not null,
  priority smallint not null,
  is_new boolean not null default true
);
alter table durable.lanes replica identity full;
create index lanes_idx on durable.lanes (queue, priority);
create index lanes_new_idx on durable.lanes (queue, priority) where is_new;
-- Most use this one; there at once, so that nobody's first enqueue has to wait for another's transaction.
insert into durable.queues (queue) values ('default');
insert into durable.lanes (queue, priority, is_new) values ('default', 0, false);

comment on table durable.lanes is 'Every priority that was used in a queue; added by the first enqueue that names it.';
comment on column durable.lanes.is_new is 'True until a tick has removed what is double, and made sure that the queue is listed.';

-- The claim cursor. Rows that left the line stay in its index until vacuum may remove them, which a long transaction
-- anywhere prevents; a claim that began at the front each time would wade through all of them. So each lane has a place
-- before which nothing is ready:
--
--   safe_seq   nothing is, nor ever will be, ready at or before it: every transaction that could still commit a place
--              up to it is over.
--   start_seq  where claims begin. Equal to safe_seq, except while a transaction that writes stays open: then it goes
--              on alone after a second, and the sweep looks behind it for what commits late.
--
-- safe_seq may pass seen_seq when all transactions with an xid before seen_xid are over; that xid was assigned after
-- seen_seq had been read, and whoever takes a place has an xid before. Unlogged: after a crash claims begin at the front.
--
-- Two lines have no queue: in line 0 stands what has a wake_at, in line 1 what has a deadline. Their places are times, in
-- microseconds since 1970, and the clock takes the part of the sequence: whoever sets one has an xid before it reads the
-- clock, and sets it later than that.
create unlogged table durable.lane_marks (
  queue text not null,
  priority smallint not null,
  safe_seq bigint not null default 0,
  start_seq bigint not null default 0,
  seen_seq bigint not null,
  seen_xid xid8 not null,
  next_seq bigint not null,
  next_at timestamptz not null,
  advanced_at timestamptz not null,
  sweep_at timestamptz not null,
  constraint lane_marks_pkey primary key (queue, priority),
  constraint lane_marks_order check (safe_seq <= start_seq)
) with (
  -- Few rows, and each changes up to ten times a second: room for their new versions, and vacuum after a count of them.
  fillfactor = 20,
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 200
);
comment on table durable.lane_marks is 'How far the claims of each lane have come; see the comment in sql/tables/engine/queues.sql.';
