-- Liveness is kept per worker, not per workflow: one row is renewed however many workflows the worker runs. A row stays
-- for a while after its worker died, because a claim that was under way at that moment may still commit under its id.

create table durable.workers (
  worker_id integer generated always as identity,
  name text not null,
  queues text[] not null,
  session_lock boolean not null default false,
  registered_at timestamptz not null default durable._now(),
  heartbeat_at timestamptz not null default durable._now(),
  expires_at timestamptz not null,
  lock_lost_at timestamptz,
  died_at timestamptz,
  suspect_id uuid,
  cleared_at timestamptz,
  clock_ahead interval,
  left_by_itself boolean not null default false,
  constraint workers_pkey primary key (worker_id),
  constraint workers_name_length check (char_length(name) between 1 and 200),
  constraint workers_cleared_is_dead check (cleared_at is null or died_at is not null),
  constraint workers_lost_lock_was_held check (lock_lost_at is null or session_lock)
) with (
  -- A heartbeat changes no indexed column: with room on the page the new version goes there, and nothing waits for vacuum.
  fillfactor = 50
);
create unique index workers_live_name_idx on durable.workers (name) where died_at is null;
-- After some deploys the dead outnumber the living by far. Recovery looks for those that may still hold something, and for
-- those to be forgotten.
create index workers_uncleared_idx on durable.workers (worker_id) where died_at is not null and cleared_at is null;
create index workers_died_idx on durable.workers (died_at) where died_at is not null;

comment on table durable.workers is 'One row for each worker: its lease on everything it holds, and its last heartbeat.';
comment on column durable.workers.worker_id is 'Number of this registration; a worker that comes back gets a new one.';
comment on column durable.workers.name is 'The name the worker gave itself, unique among the living.';
comment on column durable.workers.queues is 'The queues it named when it registered.';
comment on column durable.workers.session_lock is
  'True when it promised to hold a session advisory lock: the loss of that lock means the process is gone.';
comment on column durable.workers.expires_at is 'When its lease on everything it holds runs out.';
comment on column durable.workers.lock_lost_at is 'When its session lock was first found free; null while it is held.';
comment on column durable.workers.died_at is 'When recovery declared it dead, or it left; null while it lives.';
comment on column durable.workers.suspect_id is
  'The last workflow that it claimed while that one was a suspect, so that it holds one at the most; after its death the one that is '
  'to blame, null for none.';
comment on column durable.workers.cleared_at is 'When recovery found that it is dead and holds nothing any more.';
comment on column durable.workers.clock_ahead is
  'How far the clock of its machine was ahead of the database''s at its last heartbeat, the way there included; null when it did not say.';
comment on column durable.workers.left_by_itself is 'True when it called durable.leave(): what it could not give back is not to blame.';

-- A row of workers that an open transaction has locked keeps its worker from renewing the lease, too. So when such a lease has
-- run out, the worker gets time to do so from when the row was last found locked.
create unlogged table durable.kept_workers (
  worker_id integer not null,
  seen_at timestamptz not null
);
comment on table durable.kept_workers is
  'Workers whose lease had run out while another transaction held their row, and when a tick last found them so.';

-- Unlogged, so that it is empty after a crash of Postgres: that is how one is noticed, and when.
create unlogged table durable.crash_marks (
  seen_at timestamptz not null,
  started_at timestamptz
);
insert into durable.crash_marks (seen_at) values ('-infinity');
comment on table durable.crash_marks is 'When the last crash of Postgres was noticed; empty until it is.';
comment on column durable.crash_marks.started_at is
  'When Postgres started, if by the clock that is yet to come; seen_at is then when that was noticed.';

-- Who wants to be woken. Enqueues only ever read it, so that a long transaction of a user never stands in the way of
-- a worker. Unlogged: after a crash of Postgres every worker says again that it is idle.
create unlogged table durable.idle_workers (
  queue text not null,
  worker_id integer not null,
  workflows text[],
  constraint idle_workers_pkey primary key (queue, worker_id)
) with (
  -- Read by each enqueue, and a row comes and goes with each pause of a worker: vacuum after a count of them.
  autovacuum_vacuum_scale_factor = 0,
  autovacuum_vacuum_threshold = 200
);
create index idle_workers_worker_idx on durable.idle_workers (worker_id);
comment on table durable.idle_workers is 'Workers that found nothing to claim and wait for the doorbell, per queue.';
comment on column durable.idle_workers.workflows is 'The names that it has code for, and is rung for; null for all.';
