-- What is ready stands in a line, one for each kind of work that a worker can or cannot do: (queue, priority, name), and
-- whether it is new, started, or a suspect. A claim reads the lines that its worker has code for, and no others.
--
-- The id of a line is a hash of its kind, made from the UTF-8 bytes, so that any two who add a line add the same number. The
-- last two bits say what stands in it:
--
--   ...00  new        nobody has claimed it before
--   ...01  started    it woke, is tried again, or came back from a worker. It goes first: else each sleep and each retry in a
--                   busy queue would wait behind the whole backlog. Of every four that are claimed, one is new all the same.
--   ...11  suspect    its worker died twice with no other suspect beside it, see sql/functions/engine/recover.sql. A worker
--                   holds at most one of them.
--
-- Two kinds may have the same number. So whoever reads a line compares queue, priority and name as well: a collision takes
-- time and mixes nothing up.
--
-- The registry is not unique: with a constraint, the first enqueue into a line would keep all others waiting until its
-- transaction is over. Whoever puts something in line and does not see the line adds it, and the tick removes what is
-- double. Empty lines leave in steps. A tick marks one that it finds empty. A later tick, which sees the mark, notes its xid.
-- When every transaction before that xid is over, the line is still empty, and nobody has added it again, it is deleted.
-- Whoever sees a line that is leaving adds it anew. For that, whoever puts something in line has its xid before it looks for
-- the line. A snapshot from before the xid (repeatable read) may miss the mark; then the next tick finds what stands in a
-- line that is not registered.
create table durable.lines (
  line_id bigint not null,
  priority smallint not null,
  queue text not null,
  name text not null,
  leaving boolean not null default false,
  leaving_xid xid8,
  look_at timestamptz not null default durable._now() + interval '5 seconds',
  patience interval not null default '5 seconds'
);
alter table durable.lines replica identity full;
create index lines_id_idx on durable.lines (line_id);
create index lines_queue_idx on durable.lines (queue, name, priority);
create index lines_look_idx on durable.lines (look_at);
comment on table durable.lines is
  'Every line that something stands in, or did a moment ago; added by whoever puts something in it. Not unique, see the comment '
  'in sql/tables/engine/lines.sql.';
comment on column durable.lines.line_id is 'Hash of queue, priority and name, with two bits for what is new, started or a suspect.';
comment on column durable.lines.leaving is 'True from when a tick found it empty; whoever uses it then adds it again.';
comment on column durable.lines.leaving_xid is 'The transaction of a tick that saw it leaving.';
comment on column durable.lines.look_at is 'When a tick looks whether it is empty, or goes on with removing it.';
comment on column durable.lines.patience is
  'The time from one look to the next, 5 seconds to 10 minutes; doubled each time that the line turns out to be in use.';

-- One that is put in line: its line, with all that the line stands for.
create type durable.place as (line_id bigint, priority smallint, queue text, name text);
comment on type durable.place is 'The line of a workflow, and what that line stands for.';

-- Unlogged: an empty one means at once.
create unlogged table durable.line_sweeps (
  sweep_at timestamptz not null
);
comment on table durable.line_sweeps is
  'When a tick may look again for lines that are not registered, after a look that took long; empty while none did.';

-- What a claim knows of a line that has something in it: where it began to look, and what it found first.
create type durable.line_head as (line_id bigint, priority smallint, queue text, name text, start_seq bigint, head_seq bigint);
comment on type durable.line_head is 'A line as a claim sees it: where it began to read, and the first place that it found.';

-- The claim cursors. Rows that left a line stay in its index until vacuum may remove them, which a long transaction anywhere
-- prevents; a claim that began at the front each time would wade through all of them. So each line has a place before which
-- nothing is ready:
--
--   safe_seq   nothing is, nor ever will be, ready at or before it: every transaction that could still commit a place
--              up to it is over.
--   start_seq  where claims begin. Equal to safe_seq, except while a transaction that writes stays open: then it goes
--              on alone after a second, and the sweep looks behind it for what commits late.
--
-- safe_seq may pass seen_seq when all transactions with an xid before seen_xid are over; that xid was assigned after
-- seen_seq had been read, and whoever takes a place has an xid before. Unlogged: after a crash claims begin at the front.
--
-- One row for a queue, with parallel arrays for its lines: read with one look-up, and moved in one statement. A row that
-- changes often is itself a heap of dead versions while somebody holds a snapshot. So the row has a version, last in the
-- key, which rises with every 64th change, and the newest one is read first: whoever looks meets 64 dead ones at the most.
--
-- Two lines have no queue: in line 0 stands what has a wake_at, in line 1 what has a deadline. Their places are times, in
-- microseconds since 1970, and the clock takes the part of the sequence: whoever sets one has an xid before it reads the
-- clock, and sets it later than that. The clock may be set back, which a sequence never is. Then the tick forgets the marks of these
-- two lines, see sql/functions/time/set_back.sql. A step that is too small to be seen is made up for by a sweep each ten seconds,
-- and by beginning three seconds before the mark.
create unlogged table durable.line_marks (
  queue text not null,
  version bigint not null,
  changes bigint not null default 0,
  seen_seq bigint not null,
  seen_xid xid8 not null,
  next_seq bigint not null,
  next_at timestamptz not null,
  moved_at timestamptz not null,
  sweep_at timestamptz not null,
  lowest_seq bigint default 0,
  line_ids bigint[] not null default '{}',
  safe_seqs bigint[] not null default '{}',
  start_seqs bigint[] not null default '{}',
  constraint line_marks_pkey primary key (queue, version)
) with (
  -- Few rows, and each changes many times a second: room for their new versions, and vacuum after a count of them.
  fillfactor = 20,
  toast_tuple_target = 8160,
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 200
);
-- As they are: each write would compress them anew.
alter table durable.line_marks alter line_ids set storage external, alter safe_seqs set storage external,
  alter start_seqs set storage external;
comment on column durable.line_marks.lowest_seq is
  'The lowest safe_seq of the lines that may be moved further although no place has been taken since; null for none.';
comment on table durable.line_marks is
  'How far the claims of each queue have come in its lines; see the comment in sql/tables/engine/lines.sql.';

-- Where started and new workflows are ready, every fourth that is claimed is new. Versions as above.
create unlogged table durable.claim_turns (
  claim bigint not null,
  version bigint not null default 0,
  changes bigint not null default 0,
  claimed integer not null,
  claimed_at timestamptz not null,
  constraint claim_turns_pkey primary key (claim, version)
) with (
  fillfactor = 20,
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 200
);
comment on table durable.claim_turns is 'Whose turn it is where started and new workflows are ready; forgotten after an hour.';
comment on column durable.claim_turns.claim is 'Hash of the queue, the priority and the names that are asked for.';
comment on column durable.claim_turns.claimed is 'How many were claimed since the last turn of a new one, 0 to 3.';
