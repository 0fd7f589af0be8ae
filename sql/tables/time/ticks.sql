-- Parts of the tick that fail, for as long as they do. Unlogged, and not unique: a tick waits for nobody.
create unlogged table durable.tick_troubles (
  part text not null,
  since timestamptz not null,
  last_at timestamptz not null,
  code text not null,
  error text not null
);
comment on table durable.tick_troubles is
  'Parts of the tick that failed, or that a lock kept from their work, in the last tick that tried them. Read it through durable.health().';
