-- At the commit, and not before: a transaction of a user may stay open for long, and must not hold the rows of the
-- workflows that it wakes all that time.
create constraint trigger messages_wake after insert on durable.messages
  deferrable initially deferred for each row execute function durable._wake_receiver();
create constraint trigger ended_children_wake after insert on durable.ended_children
  deferrable initially deferred for each row execute function durable._wake_parents();
create constraint trigger approval_requests_wake after update on durable.approval_requests
  deferrable initially deferred for each row when (old.decision is null and new.decision is not null)
  execute function durable._wake_asker();
create constraint trigger events_wake after insert on durable.events
  deferrable initially deferred for each row execute function durable._wake_waiters();
