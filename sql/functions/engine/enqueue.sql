-- The checks return true or raise: an assignment is quicker than PERFORM, which starts the executor.
create function durable._check_enqueue(
  workflow text, queue text, priority integer, run_at timestamptz, max_attempts integer, timeout interval, tags jsonb
)
returns boolean language plpgsql as $$
declare
  -- Message and hint of what is wrong; nothing is put together while all is well.
  v_wrong text[] := case
    when (char_length(workflow) between 1 and 200) is not true then array[
      'the workflow name must have 1 to 200 characters', 'Pass the name under which workers registered the workflow.']
    when (char_length(queue) between 1 and 200) is not true then array[
      format('workflow %L: the queue name must have 1 to 200 characters', workflow), 'Leave the queue out to use ''default''.']
    when (priority between -32768 and 32767) is not true then array[
      format('workflow %L: priority %s is out of range', workflow, coalesce(priority::text, 'NULL')),
      'Use -32768 to 32767; lower numbers run first and 0 is the default.']
    when not isfinite(run_at) then array[
      format('workflow %L: run_at must be finite, not %s', workflow, run_at), 'Leave it out to start at once.']
    when (max_attempts >= 1) is not true then array[
      format('workflow %L: max_attempts must be at least 1, not %s', workflow, coalesce(max_attempts::text, 'NULL')),
      'Use 1 for no retry.']
    when timeout <= interval '0' or timeout > durable._longest() then array[
      format('workflow %L: the timeout must be positive and at most 100 years, not %s', workflow, timeout),
      'Leave it out for no timeout.']
    when (jsonb_typeof(tags) = 'object') is not true then array[
      format('workflow %L: tags must be a JSON object', workflow), 'For example ''{"tenant": "acme"}''.']
    when pg_column_size(tags #> '{}'::text[]) > 16384 then array[
      format('workflow %L: the tags have more than 16384 bytes', workflow), 'Put it into the input; tags are what you ask for workflows by.']
    end;
begin
  if v_wrong is not null then
    perform durable._require(false, v_wrong[1], v_wrong[2]);
  end if;
  return true;
end
$$;

create function durable._check_inputs(workflow text, inputs jsonb[], keys text[], max_bytes bigint)
returns boolean language plpgsql as $$
declare
  v_n bigint;
  v_size integer;
begin
  if inputs is null then
    perform durable._require(false, format('workflow %L: the array of inputs is NULL', workflow),
      'Pass one element for each workflow.');
  elsif durable._length(inputs) = -1 or durable._length(keys) = -1 then
    perform durable._require(false,
      format('workflow %L: the arrays of inputs and keys must have one dimension, and indexes from 1', workflow),
      'Pass flat arrays, for example array[...].');
  end if;
  if pg_column_size(inputs) > durable._small_enough(max_bytes) then
    select i.n, pg_column_size(i.input) into v_n, v_size
    from unnest(inputs) with ordinality as i(input, n)
    where pg_column_size(i.input) > durable._small_enough(max_bytes) and durable._is_too_large(i.input, max_bytes) limit 1;
  end if;
  if v_n is not null then
    perform durable._raise('WF006', format('workflow %L: input %s has %s bytes', workflow, v_n, v_size),
      format('The limit is %s bytes of jsonb (setting max_payload_bytes), and %s of text. Nothing was enqueued.', max_bytes,
        durable._max_text()),
      'Store the data elsewhere and pass a reference, or raise the limit with durable.configure().');
  end if;
  if keys is null then
    return true;
  end if;
  perform durable._require(cardinality(keys) = cardinality(inputs),
    format('workflow %L: %s inputs but %s keys', workflow, cardinality(inputs), cardinality(keys)),
    'Pass one key for each input, NULL for none.');
  perform durable._require(not exists (
      select from unnest(keys) as k(key) where char_length(k.key) not between 1 and 500),
    format('workflow %L: a key must have 1 to 500 characters', workflow), 'Use NULL for no key.');
  return true;
end
$$;

-- Takes the keys that are free for the new ids and returns, for each item, the id that owns its key.
create function durable._take_keys(workflow text, keys text[], ids uuid[])
returns uuid[] language plpgsql as $$
declare
  v_owners uuid[];
  v_gone uuid[];
  v_other record;
begin
  loop
    -- In the order of the keys, so that two batches cannot wait for each other.
    insert into durable.workflow_keys (key, name, workflow_id)
    select distinct on (i.key) i.key, workflow, i.id
    from unnest(keys, ids) with ordinality as i(key, id, n)
    where i.key is not null
    order by i.key, i.n
    on conflict on constraint workflow_keys_pkey do nothing;

    select array_agg(case when i.key is null then i.id
                     -- In an old snapshot there may be two: that of now, and one that retention has removed since.
                     else (select o.workflow_id from durable.workflow_keys o where o.key = i.key order by o.workflow_id desc limit 1)
                     end order by i.n)
      into v_owners
    from unnest(keys, ids) with ordinality as i(key, id, n);
    if v_owners = ids then
      return v_owners;
    end if;
    -- A key can go between the two statements, when retention removes its workflow.
    continue when array_position(v_owners, null) is not null;
    -- Retention drops the workflows of a day at once, and their keys later: a key without a workflow is free.
    v_gone := array(
      select o.id from unnest(v_owners) as o(id)
      except select n.id from unnest(ids) as n(id));
    v_gone := array(select g.id from unnest(v_gone) as g(id) except select s.id from unnest(durable._stored(v_gone)) as s(id));
    exit when cardinality(v_gone) = 0;
    delete from durable.workflow_keys k
    where k.key = any(array(
      select o.key from durable.workflow_keys o
      where o.key = any(keys) and o.workflow_id = any(v_gone)
      order by o.key for update));
  end loop;

  select o.key, o.name, o.workflow_id into v_other
  from durable.workflow_keys o where o.key = any(keys) and o.name <> workflow limit 1;
  if found then
    perform durable._raise('WF003', format('key %L belongs to workflow %L, not to %L', v_other.key, v_other.name, workflow),
      format('It was used to enqueue %s. Nothing was enqueued.', v_other.workflow_id),
      'A key names one run of one workflow; put the name of the workflow into it.');
  end if;
  return v_owners;
end
$$;

create function durable._enqueue(
  workflow text, inputs jsonb[], queue text, keys text[], priority integer,
  run_at timestamptz, max_attempts integer, timeout interval, tags jsonb
)
returns uuid[] language plpgsql as $$
#variable_conflict use_column
declare
  v_now timestamptz;
  v_wake_at timestamptz;
  v_ids uuid[];
  v_owners uuid[];
  v_line_id bigint;
  v_idle boolean;
  v_max_bytes bigint;
begin
  if durable._check_enqueue(workflow, queue, priority, run_at, max_attempts, timeout, tags) then
    -- The transaction must have its xid before it takes a place in line: whoever knows that no transaction up to some
    -- xid is open may then conclude that no place taken by one of them is still to come. The same goes for wake_at. And it must
    -- have it before it looks for the line, see sql/tables/engine/lines.sql.
    perform pg_current_xact_id();
    -- One query for all that is looked up: an idle server takes its time to start one.
    select (
          select n.line_id from durable.lines n
          where n.queue = _enqueue.queue and n.name = workflow and n.priority = _enqueue.priority::smallint
            and not n.leaving and not durable._is_started_line(n.line_id) limit 1),
        exists (select from durable.idle_workers w where w.queue = _enqueue.queue),
        (select s.value::bigint from durable.settings s where s.name = 'max_payload_bytes')
      into v_line_id, v_idle, v_max_bytes;
  end if;
  if durable._check_inputs(workflow, inputs, keys, v_max_bytes) and cardinality(inputs) = 1 then
    v_ids := array[durable._new_id()];
  end if;
  if v_line_id is null then
    v_line_id := durable._line_id(queue, priority, workflow);
    perform durable._add_line(v_line_id, _enqueue.priority::smallint, _enqueue.queue, workflow);
  end if;

  if v_ids is null then
    v_ids := durable._new_ids(cardinality(inputs));
  end if;
  v_owners := case when keys is null then v_ids else durable._take_keys(workflow, keys, v_ids) end;

  v_now := durable._now();
  v_wake_at := case when run_at > v_now then run_at end;
  insert into durable.live_workflows (workflow_id, line_id, ready_seq, wake_at, created_at, max_attempts, priority, status,
    timeout, name, queue, key, tags, input)
  select i.id, v_line_id, case when v_wake_at is null then nextval('durable.ready_seq') end, v_wake_at, v_now, _enqueue.max_attempts,
    _enqueue.priority, 'pending', _enqueue.timeout, workflow, _enqueue.queue, i.key, _enqueue.tags, i.input
  from unnest(v_ids, v_owners, inputs, keys) with ordinality as i(id, owner, input, key, n)
  where i.owner = i.id
  order by i.n;

  if found and v_wake_at is null and v_idle then
    perform durable._ring(_enqueue.queue, workflow, cardinality(inputs));
  end if;
  return v_owners;
end
$$;

create function durable.enqueue(
  workflow text, input jsonb default null, queue text default 'default', key text default null,
  priority integer default 0, run_at timestamptz default null, max_attempts integer default 1,
  timeout interval default null, tags jsonb default '{}'
)
returns uuid language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off
set plan_cache_mode = force_generic_plan set jit = off as $$
begin
  return (durable._enqueue(workflow, array[input], queue, case when key is not null then array[key] end,
    priority, run_at, max_attempts, timeout, tags))[1];
end
$$;
comment on function durable.enqueue(text, jsonb, text, text, integer, timestamptz, integer, interval, jsonb) is
  'Enqueues one workflow in the caller''s transaction and returns its id (UUIDv7). Lower priority numbers run first, '
  '-32768 to 32767; of equal ones those that have begun, then first in, first out, but every fourth is new. The same key for the same workflow name returns the same id and starts '
  'nothing. run_at delays the start. max_attempts counts attempts that end in an error; crashes do not count. timeout runs '
  'from the first start. tags is a JSON object for your own queries, of at most 16 KB. '
  'Errors: WF003 key belongs to another workflow, WF005 invalid argument, WF006 input too large.';

create function durable.enqueue_many(
  workflow text, inputs jsonb[], queue text default 'default', keys text[] default null, priority integer default 0,
  run_at timestamptz default null, max_attempts integer default 1, timeout interval default null, tags jsonb default '{}'
)
returns setof uuid language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off
set plan_cache_mode = force_generic_plan set jit = off as $$
begin
  return query select unnest(durable._enqueue(workflow, inputs, queue, keys, priority, run_at, max_attempts, timeout, tags));
end
$$;
comment on function durable.enqueue_many(text, jsonb[], text, text[], integer, timestamptz, integer, interval, jsonb) is
  'Enqueues one workflow for each input and returns their ids in the order of the inputs: all of them, or none. keys, if '
  'given, has one element for each input, NULL for no key. All else as for durable.enqueue, and the same for all. '
  'Errors: WF003, WF005, WF006.';
