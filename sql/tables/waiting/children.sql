-- Children are workflows with a parent_id. Those of one call of durable.start_children() have ids that differ in the
-- last 24 bits only, which count from 0. So the first id names them all, they lie side by side in the primary key, live
-- and finished, in the order of their inputs, and no list of them is stored anywhere.
--
-- The end of a child is a fact as a message is one (see sql/tables/waiting/waits.sql), and meets the wait of the parent by
-- the same rules: whoever ends children writes it down here, once for all children of a group, and at the commit wakes
-- the parent, if no unfinished one is left. Nobody counts, and nobody waits for the row of the parent. When two
-- transactions end the last two children side by side, each sees the other's unfinished, and what they wrote down is
-- left for the tick.

create table durable.ended_children (
  xid xid8 not null default pg_current_xact_id(),
  seq bigint generated always as identity,
  parent_id uuid not null,
  first_id uuid not null,
  slots integer not null,
  constraint ended_children_pkey primary key (xid, seq),
  constraint ended_children_slots check (slots >= 0)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000);
comment on table durable.ended_children is
  'That children have ended, until their parent has been woken or the tick has looked whether to wake it.';
comment on column durable.ended_children.first_id is 'The first child of their group.';
comment on column durable.ended_children.slots is
  'How many of their siblings that max_parallel holds back are still to be let in.';
