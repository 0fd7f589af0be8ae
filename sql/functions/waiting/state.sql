-- What the worker of a workflow tells the world about it, beside its steps.

create function durable.publish(workflow_id uuid, lease bigint, key text, value jsonb default null)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_column
begin
  perform durable._require(char_length(publish.key) between 1 and 200,
    format('workflow %s: the key of a published value must have 1 to 200 characters', publish.workflow_id), 'Shorten the key.');
  if durable._is_too_large(publish.value, durable._max_payload()) then
    perform durable._raise_outcome('WF006', publish.workflow_id, publish.lease);
  end if;
  insert into durable.workflow_state as s (workflow_id, lease, published_at, key, value)
  select l.workflow_id, l.lease, durable._now(), publish.key, publish.value
  from durable.live_workflows l where l.workflow_id = publish.workflow_id and l.lease = publish.lease
  on conflict on constraint workflow_state_pkey do update
    set lease = excluded.lease, published_at = excluded.published_at, value = excluded.value
    where s.lease <= excluded.lease;
  if not found then
    perform durable._raise_outcome(durable._why_lost(publish.workflow_id, publish.lease), publish.workflow_id, publish.lease);
  end if;
end
$$;
comment on function durable.publish(uuid, bigint, text, jsonb) is
  'Publishes a value of a running workflow under a key of 1 to 200 characters, in place of the one before: progress, a partial '
  'result. Whoever may read the workflow reads it with durable.state(), also after the end, until retention removes both. It is '
  'no step: a replay publishes again. Sending it again is harmless. '
  'Errors: WF001, WF002 lease lost, WF004 cancelled, WF005 invalid key, WF006 value too large.';

create function durable.state(workflow_id uuid)
returns jsonb language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
begin
  perform durable.status(workflow_id);
  return (
    select coalesce(jsonb_object_agg(s.key, s.value), '{}') from durable.workflow_state s
    where s.workflow_id = state.workflow_id);
end
$$;
comment on function durable.state(uuid) is
  'What a workflow has published with durable.publish(), as a JSON object of the latest value of each key; {} when it is nothing. '
  'Errors: WF001 workflow not found.';

create function durable.warn(workflow_id uuid, lease bigint, warning text)
returns void language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_variable
begin
  update durable.live_workflows l set warning = left(warn.warning, 10000)
  where l.workflow_id = warn.workflow_id and l.lease = warn.lease;
  if not found then
    perform durable._raise_outcome(durable._why_lost(workflow_id, lease), workflow_id, lease);
  end if;
end
$$;
comment on function durable.warn(uuid, bigint, text) is
  'Puts a warning on a running workflow, in place of the one before, for whoever reads durable.workflows; null takes it back. The '
  'Python client does so when a run passes 10,000 steps. Sending it again is harmless. Errors: WF001, WF002 lease lost, WF004 cancelled.';
