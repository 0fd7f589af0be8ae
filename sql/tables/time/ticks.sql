-- When ticks looked. Read by the index from its end, so that a long transaction, which keeps dead versions, makes it no slower.
-- Unlogged, and without a constraint, as the table below: a tick waits for nobody.
create unlogged table durable.tick_marks (
  looked_at timestamptz not null
);
create index tick_marks_time_idx on durable.tick_marks (looked_at);
comment on table durable.tick_marks is 'When the last tick looked; empty before the first one, and after a crash of Postgres.';

-- Parts of the tick that fail, for as long as they do.
create unlogged table durable.tick_troubles (
  part text not null,
  since timestamptz not null,
  last_at timestamptz not null,
  code text not null,
  error text not null
);
comment on table durable.tick_troubles is
  'Parts of the tick that failed, or that a lock kept from their work, in the last tick that tried them. Read it through durable.health().';
