-- Messages and events, and how they wake; the rules stand in sql/tables/waiting/waits.sql.

-- Of these workflows, those of whose waits somebody has locked a row by hand. Whoever wakes them has to remove that row. To lock each
-- would take longer, so only those are that have an xmax; without any, nothing is locked.
create function durable._with_held_waits(workflow_ids uuid[])
returns uuid[] language plpgsql as $$
begin
  return array(
    select w.workflow_id from durable.waits w
    where w.workflow_id = any(_with_held_waits.workflow_ids) and w.xmax <> '0'::xid and w.ctid <> all(array(
      select o.ctid from durable.waits o
      where o.workflow_id = any(_with_held_waits.workflow_ids) and o.xmax <> '0'::xid for update skip locked)));
end
$$;

-- The same for all that is kept of workflows under way: waits, open steps and mail that is not received.
create function durable._with_held_rows(workflow_ids uuid[])
returns uuid[] language plpgsql as $$
begin
  return durable._with_held_waits(workflow_ids)
    || array(
      select s.workflow_id from durable.open_steps s
      where s.workflow_id = any(_with_held_rows.workflow_ids) and s.xmax <> '0'::xid and s.ctid <> all(array(
        select o.ctid from durable.open_steps o
        where o.workflow_id = any(_with_held_rows.workflow_ids) and o.xmax <> '0'::xid for update skip locked)))
    || array(
      select m.workflow_id from durable.messages m
      where m.workflow_id = any(_with_held_rows.workflow_ids) and m.received_by is null and m.xmax <> '0'::xid and m.ctid <> all(array(
        select o.ctid from durable.messages o
        where o.workflow_id = any(_with_held_rows.workflow_ids) and o.received_by is null and o.xmax <> '0'::xid
        for update skip locked)));
end
$$;

-- Puts waiting workflows back in line and returns which. Others may hold a row of one: it is passed over.
create function durable._wake(workflow_ids uuid[])
returns uuid[] language plpgsql as $$
#variable_conflict use_column
declare
  v_held uuid[];
  v_woken uuid[];
  v_places durable.place[];
begin
  if coalesce(cardinality(workflow_ids), 0) = 0 then
    return '{}'::uuid[];
  end if;
  v_held := durable._with_held_waits(workflow_ids);
  perform pg_current_xact_id();
  with woken as (
    update durable.live_workflows l
    set status = 'pending', wake_at = null, ready_seq = case when l.paused_at is null then nextval('durable.ready_seq') end
    where l.workflow_id = any(array(
      select w.workflow_id from durable.live_workflows w
      where w.workflow_id = any(_wake.workflow_ids) and w.workflow_id <> all(v_held) and w.status = 'waiting'
      order by w.workflow_id for update skip locked))
    returning l.workflow_id, l.ready_seq, row(l.line_id, l.priority, l.queue, l.name)::durable.place as place
  )
  select coalesce(array_agg(w.workflow_id), '{}'), array_agg(w.place) filter (where w.ready_seq is not null)
    into v_woken, v_places from woken w;
  delete from durable.waits w where w.workflow_id = any(v_woken);
  perform durable._line_up(v_places);
  return v_woken;
end
$$;

-- Where it does not see what was committed since, who waits by now cannot be seen, and rows that changed since would fail it: then the
-- next tick wakes.
create function durable._wake_receiver()
returns trigger language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
begin
  if durable._sees_commits() and exists (
      select from durable.waits w where w.workflow_id = new.workflow_id and w.kind = 'message' and w.subject = new.topic) then
    perform durable._wake(array[new.workflow_id]);
  end if;
  return null;
end
$$;

create function durable._wake_waiters()
returns trigger language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
begin
  if durable._sees_commits() and exists (
      select from durable.waits w where w.kind = 'event' and w.subject = new.event) then
    -- More than that are for the ticks.
    perform durable._wake(array(
      select w.workflow_id from durable.waits w where w.kind = 'event' and w.subject = new.event limit 10000));
  end if;
  return null;
end
$$;

-- Whether what a workflow waits for has come.
create function durable._has_come(kind text, subject text, workflow_id uuid)
returns boolean language plpgsql stable as $$
#variable_conflict use_variable
begin
  if kind = 'event' then
    return exists (select from durable.events e where e.event = subject);
  elsif kind = 'children' then
    return durable._unfinished_child(subject::uuid) is null;
  elsif kind = 'approval' then
    return exists (
      select from durable.approval_requests r
      where r.workflow_id = _has_come.workflow_id and r.step_name = subject and (r.decision is not null or r.expired));
  end if;
  return exists (
    select from durable.messages m
    where m.workflow_id = _has_come.workflow_id and m.topic = subject and m.received_by is null);
end
$$;

-- Takes what was sent to a run while it was being continued on to the last one; the next tick wakes that. Returns the receivers whose
-- mail it could not take on, because somebody is in the way.
create function durable._forward(p_receivers uuid[])
returns uuid[] language plpgsql as $$
declare
  v_ended uuid;
  v_last uuid;
  v_kept uuid[] := '{}'::uuid[];
begin
  for v_ended in
    select r.id from unnest(p_receivers) as r(id)
    -- Not exists(), which may be planned by reading all mail, or all workflows.
    where (select true from durable.messages m where m.workflow_id = r.id and m.received_by is null limit 1)
      and (select true from durable.live_workflows l where l.workflow_id = r.id) is null
    -- Each one of those that are kept may take as long as a lock is waited for; a few at a time, and not always the same.
    order by random()
  loop
    v_last := durable._last_run(v_ended);
    if v_last = v_ended then
      continue;
    elsif cardinality(v_kept) >= 3 then
      v_kept := v_kept || v_ended;
      continue;
    end if;
    begin
      update durable.messages m set workflow_id = v_last, xid = pg_current_xact_id()
      where m.workflow_id = v_ended and m.received_by is null and (m.key is null or not exists (
        select from durable.messages d where d.workflow_id = v_last and d.key = m.key));
    exception when lock_not_available or unique_violation then
      -- Somebody is about to send the same, or has locked one of them.
      v_kept := v_kept || v_ended;
    end;
  end loop;
  return v_kept;
end
$$;

-- What a snapshot sees, without what this transaction has done and is yet to do: its own xid counts as running, which a snapshot leaves
-- out.
create function durable._of_others(p_seen pg_snapshot)
returns pg_snapshot language plpgsql stable as $$
declare
  v_own constant xid8 := pg_current_xact_id_if_assigned();
begin
  if v_own < pg_snapshot_xmax(p_seen) then
    return format('%s:%s:%s', least(pg_snapshot_xmin(p_seen), v_own), pg_snapshot_xmax(p_seen), (
      select string_agg(r.xid::text, ',' order by r.xid)
      from (select x as xid from pg_snapshot_xip(p_seen) as x union select v_own) r))::pg_snapshot;
  end if;
  return p_seen;
end
$$;

-- Notes what a tick has seen. Another tick may be about to do the same, in a transaction that stays open; then the next one sees all
-- of it again.
create function durable._note_seen(p_seen pg_snapshot)
returns void language plpgsql as $$
begin
  if exists (select from durable.wake_marks) then
    update durable.wake_marks m set seen = p_seen
    where m.ctid = any(array(select o.ctid from durable.wake_marks o for update skip locked));
  elsif pg_try_advisory_xact_lock(hashtext('durable.wake_marks')) then
    insert into durable.wake_marks (seen) values (p_seen) on conflict on constraint wake_marks_pkey do nothing;
  end if;
end
$$;

-- Looks at the waits and the facts that this tick sees and the last one did not.
create function durable._wake_missed(max_workflows integer)
returns integer language plpgsql as $$
declare
  -- It takes mail on itself, and may be called in the transaction of somebody who sends.
  v_now pg_snapshot := durable._of_others(pg_current_snapshot());
  v_last pg_snapshot := (select m.seen from durable.wake_marks m);
  -- Without a last one, at everything: also at what came with a dump from another server, whose xids may be higher.
  v_from xid8 := coalesce(pg_snapshot_xmax(v_last), '0');
  v_until xid8 := case when v_last is null then '18446744073709551615' else pg_snapshot_xmax(v_now) end;
  v_running xid8[] := array(select x from pg_snapshot_xip(v_last) as x);
  v_receivers uuid[];
  v_events text[];
  v_askers uuid[];
  v_ended_xids xid8[];
  v_ended_seqs bigint[];
  v_parents uuid[];
  v_ids uuid[];
  v_late uuid[];
  v_kept uuid[];
  v_woken uuid[];
begin
  -- At the first tick of a server, which may have been a logical replica. If it was ticked before, its workers give it away.
  if v_last is null and exists (select from durable._sequences_behind())
    or random() < 0.01 and exists (
      select from durable.workers w
      where w.worker_id > coalesce(pg_sequence_last_value('durable.workers_worker_id_seq'), 0)) then
    perform durable.repair_sequences();
  end if;
  if v_last::text = v_now::text and not exists (select from durable.late_wakes)
    and not exists (select from durable.ended_children) then
    return 0;
  end if;
  v_receivers := array(
    select m.workflow_id from durable.messages m where m.xid >= v_from and m.xid < v_until
    union
    select m.workflow_id from durable.messages m where m.xid = any(v_running) and m.xid < v_from);
  v_events := array(
    select e.event from durable.events e where e.xid >= v_from and e.xid < v_until
    union all
    select e.event from durable.events e where e.xid = any(v_running) and e.xid < v_from);
  -- Others may hold these for long: not always the same, where there are many.
  v_late := array(select i.workflow_id from durable.late_wakes i order by random() limit max_workflows);
  v_kept := durable._forward(v_receivers || v_late);
  v_askers := array(
    select r.workflow_id from durable.approval_requests r where r.xid >= v_from and r.xid < v_until
    union all
    select r.workflow_id from durable.approval_requests r where r.xid = any(v_running) and r.xid < v_from);
  select array_agg(e.xid), array_agg(e.seq), array_agg(distinct e.parent_id) into v_ended_xids, v_ended_seqs, v_parents
  from (select * from durable.ended_children c order by c.xid, c.seq limit 10 * max_workflows for update skip locked) e;
  -- Arrays and no joins, which might be made by reading all waits.
  v_ids := array(
    select w.workflow_id from durable.waits w
    where w.xid >= v_from and w.xid < v_until and durable._has_come(w.kind, w.subject, w.workflow_id)
    union
    select w.workflow_id from durable.waits w
    where w.xid = any(v_running) and w.xid < v_from and durable._has_come(w.kind, w.subject, w.workflow_id)
    union
    select w.workflow_id from durable.waits w
    where w.workflow_id = any(v_receivers) and w.kind = 'message' and durable._has_come('message', w.subject, w.workflow_id)
    union
    select w.workflow_id from durable.waits w where w.kind = 'event' and w.subject = any(v_events)
    union
    select w.workflow_id from durable.waits w
    where w.workflow_id = any(v_askers) and w.kind = 'approval' and durable._has_come('approval', w.subject, w.workflow_id)
    union
    select w.workflow_id from durable.waits w
    where w.workflow_id = any(v_parents) and w.kind = 'children' and durable._has_come('children', w.subject, w.workflow_id)
    limit max_workflows);
  v_woken := durable._wake(v_ids || v_late);

  insert into durable.late_wakes (workflow_id)
  select l.workflow_id from durable.live_workflows l
  where l.workflow_id = any(v_ids) and l.status = 'waiting' and l.workflow_id <> all(v_woken)
    -- Not exists(), as above.
    and (select true from durable.late_wakes i where i.workflow_id = l.workflow_id limit 1) is null
  union all
  select k.id from unnest(v_kept) as k(id) where (select true from durable.late_wakes i where i.workflow_id = k.id limit 1) is null;
  delete from durable.late_wakes i
  where i.ctid = any(array(
    select o.ctid from durable.late_wakes o
    where o.workflow_id = any(v_late) and o.workflow_id <> all(v_kept) and (o.workflow_id = any(v_woken) or (
      select true from durable.live_workflows l where l.workflow_id = o.workflow_id and l.status = 'waiting') is null)
    for update skip locked));

  if v_ended_seqs is not null then
    perform durable._let_in(v_ended_xids, v_ended_seqs);
  end if;
  if cardinality(v_ids) < max_workflows then
    -- What is left to be let in stays for the next tick.
    delete from durable.ended_children e where e.xid = any(v_ended_xids) and e.seq = any(v_ended_seqs) and e.slots = 0;
    perform durable._note_seen(v_now);
  end if;
  return cardinality(v_woken);
end
$$;

-- Removes events that have aged out, and the mail of workflows that are completed or not stored any more. One that failed
-- keeps its mail: durable.retry() may let it go on. That of a completed one stays for an hour, for a sender that repeats; of one that
-- was continued, what was not received goes on to the last run first.
create function durable._age_signals(max_rows integer)
returns integer language plpgsql as $$
declare
  v_now timestamptz := durable._now();
  v_mark durable.wake_marks;
  v_ids uuid[];
  v_seqs bigint[];
  v_kept uuid[];
  v_ended uuid[];
  v_done integer;
  v_removed integer;
  -- The mail is read bit by bit, whether there is anything to remove or not.
  v_batch integer := greatest(1, max_rows / 4);
begin
  delete from durable.events e
  where e.event = any(array(
    select a.event from durable.events a where a.emitted_at < v_now - durable._setting('event_retention')::interval
    order by a.emitted_at limit max_rows for update skip locked));
  get diagnostics v_removed = row_count;

  -- Another tick that notes what it has seen, or sweeps, has it; then the next one sweeps.
  select * into v_mark from durable.wake_marks m where (m.sweep_at > v_now) is not true for update skip locked;
  if not found then
    return v_removed;
  end if;
  select array_agg(b.workflow_id order by b.workflow_id, b.seq), array_agg(b.seq order by b.workflow_id, b.seq) into v_ids, v_seqs
  from (
    select m.workflow_id, m.seq from durable.messages m
    -- One condition, with which the index begins at the mark in a generic plan, too.
    where (m.workflow_id, m.seq)
      > (coalesce(v_mark.swept_id, '00000000-0000-0000-0000-000000000000'), coalesce(v_mark.swept_seq, 0))
    order by m.workflow_id, m.seq limit v_batch) b;
  v_done := coalesce(cardinality(v_ids), 0);
  v_kept := array(
    select l.workflow_id from durable.live_workflows l where l.workflow_id = any(v_ids)
    union all
    select e.workflow_id from durable._ended(array(select distinct i.id from unnest(v_ids) as i(id))) e
    where e.status <> 'completed' or e.completed_at > v_now - interval '1 hour');
  v_ended := array(select distinct e.id from unnest(v_ids) as e(id) where e.id <> all(v_kept));
  v_kept := durable._forward(v_ended);
  if cardinality(v_kept) > 0 then
    v_ended := array(select e.id from unnest(v_ended) as e(id) where e.id <> all(v_kept));
  end if;
  if cardinality(v_ended) > 0 then
    delete from durable.messages m
    where m.ctid = any(array(
      select o.ctid from durable.messages o
      where o.workflow_id = any(v_ended) and (o.workflow_id, o.seq) <= (v_ids[v_done], v_seqs[v_done]) for update skip locked));
    get diagnostics v_done = row_count;
    v_removed := v_removed + v_done;
    v_done := cardinality(v_ids);
  end if;
  update durable.wake_marks m
  set swept_id = case when v_done = v_batch then v_ids[v_done] end,
    swept_seq = case when v_done = v_batch then v_seqs[v_done] end,
    sweep_at = case when v_done = v_batch then v_now else v_now + interval '1 minute' end;
  return v_removed;
end
$$;

create function durable._check_payload(what text, payload jsonb)
returns void language plpgsql as $$
declare
  -- It is stored once more as the output of the step that waits for it, with a little around it; and jsonb holds 256 MB.
  v_limit bigint := least(durable._max_payload(), 268435455) - 100;
begin
  if durable._is_too_large(payload, v_limit) then
    perform durable._raise('WF006', format('%s has %s bytes', what, pg_column_size(payload #> '{}'::text[])),
      format('The limit is %s bytes of jsonb (100 less than the setting max_payload_bytes), and %s of text. Nothing was stored.',
        v_limit, durable._max_text()),
      'Store the data elsewhere and pass a reference, or raise the limit with durable.configure().');
  end if;
end
$$;

create function durable.send(workflow_id uuid, topic text, payload jsonb default null, key text default null)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_column
declare
  v_last uuid;
begin
  perform durable._require(char_length(topic) between 1 and 200,
    format('workflow %s: the topic of a message must have 1 to 200 characters', workflow_id),
    'Pass the topic that the workflow receives.');
  perform durable._require((char_length(key) between 1 and 500) is not false,
    format('workflow %s: the key of a message must have 1 to 500 characters', workflow_id), 'Use NULL for no key.');
  perform durable._check_payload(format('workflow %s: the message', workflow_id), payload);
  if not exists (select from durable.live_workflows l where l.workflow_id = send.workflow_id) then
    v_last := durable._last_run(workflow_id);
    -- Sent before the workflow ended, and again by a sender that did not hear of it.
    if exists (select from durable.messages m where m.workflow_id = send.workflow_id and m.key = send.key) then
      return false;
    elsif v_last <> workflow_id then
      return durable.send(v_last, topic, payload, key);
    end if;
    perform durable._raise('WF013',
      format('workflow %s has ended (%s) and receives no messages', workflow_id, durable.status(workflow_id)),
      'Nothing was sent.', 'Send it to a workflow that runs; one that failed receives again after durable.retry().');
  end if;
  insert into durable.messages (workflow_id, topic, key, payload, sent_at)
  values (workflow_id, topic, key, payload, durable._now())
  -- Only for a key that is taken. A message whose number is taken must fail, see durable.repair_sequences().
  on conflict (workflow_id, key) where key is not null do nothing;
  return found;
end
$$;
comment on function durable.send(uuid, text, jsonb, text) is
  'Sends a message to one workflow, which need not have started, in the caller''s transaction. Messages of one topic are '
  'received in the order in which they were sent, each by one durable.wait(). A key that this workflow was sent before sends '
  'nothing and returns false, also when that message was received long ago. For a workflow that was continued as a new run it '
  'goes to the last run. '
  'Errors: WF001 workflow not found, WF005 topic or key not of the length they must have, WF006 payload too large, WF013 the '
  'workflow has ended.';

create function durable.emit(event text, payload jsonb default null)
returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
#variable_conflict use_variable
begin
  perform durable._require(char_length(event) between 1 and 400,
    'the name of an event must have 1 to 400 characters', 'For example ''order-7 paid''.');
  perform durable._check_payload(format('event %L: the payload', event), payload);
  insert into durable.events (event, payload, emitted_at) values (event, payload, durable._now())
  on conflict on constraint events_pkey do nothing;
  return found;
end
$$;
comment on function durable.emit(text, jsonb) is
  'Tells of an event by its name, in the caller''s transaction: all workflows that wait for it go on, and those that wait for it '
  'later do so at once, until it ages out (setting event_retention). The first emit of a name stands; a later one changes nothing '
  'and returns false. Errors: WF005 name not of 1 to 400 characters, WF006 payload too large.';
