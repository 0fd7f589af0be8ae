-- The end of history. A day is dropped as a whole when nothing in it is needed any more, which costs the same for a thousand
-- workflows as for ten million. Rows are deleted one by one, in bounded batches, where a day cannot be dropped: because a
-- rule keeps some of it longer than the rest, because an unfinished workflow still writes into it, or because its partitions
-- are in use all the time. What is unfinished is never touched, and neither are the children of what is unfinished: their
-- results are the outcome of its waits.
--
-- The partition of the workflows goes first, in one transaction, and that of their steps in another. In between there are
-- steps without a workflow, which do no harm; a workflow without its steps would run them again when it is retried. One
-- transaction cannot have both locks: a completion takes the one and then the other, and a flush the other way round.

create function durable.retain(keep interval, queue text default null, workflow text default null)
returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
  perform durable._require((retain.queue is null) <> (retain.workflow is null),
    'a rule is for one queue or for one workflow name',
    'Pass queue or workflow; durable.configure(''retention'', …) is for all others.');
  perform durable._require(
    (retain.keep between interval '0' and durable._longest()) is not false,
    format('history cannot be kept for %s', retain.keep),
    'Pass 0 to 100 years, or NULL to take the rule back.');
  delete from durable.retention_rules r
  where r.queue is not distinct from retain.queue and r.workflow is not distinct from retain.workflow;
  if retain.keep is not null then
    insert into durable.retention_rules (queue, workflow, keep) values (retain.queue, retain.workflow, retain.keep)
    on conflict on constraint retention_rules_key do update set keep = excluded.keep;
  end if;
end
$$;
comment on function durable.retain(interval, text, text) is
  'Sets how long finished workflows of one queue, or of one workflow name, are kept after they ended, with their steps and keys; '
  'null takes the rule back. A rule for a name counts for more than one for a queue, and both for more than the setting '
  'retention. Unfinished workflows are never removed. Errors: WF005 invalid argument.';

-- The shortest and the longest time that anything is kept for.
create function durable._keeps(out shortest interval, out longest interval) language plpgsql stable as $$
declare
  v_default interval := durable._setting('retention')::interval;
begin
  select least(v_default, min(r.keep)), greatest(v_default, max(r.keep)) into shortest, longest
  from durable.retention_rules r;
end
$$;

create function durable._start_of(day date)
returns timestamptz language sql immutable parallel safe as $$ select day::timestamp at time zone 'UTC' $$;

-- Some days that have partitions and began before a time; another choice at each call, so that none holds up the others.
create function durable._old_days(before timestamptz)
returns setof date language plpgsql volatile as $$
begin
  return query
  select d.day from (
    select distinct to_date(right(c.relname, 8), 'YYYYMMDD') as day
    from pg_inherits i join pg_class c on c.oid = i.inhrelid
    where i.inhparent in ('durable.finished_workflows'::regclass, 'durable.checkpoints'::regclass)) d
  where durable._start_of(d.day) < before
  order by random() limit 3;
end
$$;

-- Whether anything of a day is unfinished or has an unfinished parent, or ended since a time.
create function durable._is_needed(day date, since timestamptz)
returns boolean language plpgsql stable set plan_cache_mode = force_custom_plan as $$
declare
  v_first uuid := durable._first_id(durable._start_of(day));
  v_next uuid := durable._first_id(durable._start_of(day + 1));
begin
  return exists (select from durable.live_workflows l where l.workflow_id >= v_first and l.workflow_id < v_next)
    -- From the few that are older than the end of that day.
    or exists (
      select from durable.live_workflows l
      where l.workflow_id < v_next and exists (
        select from durable.finished_workflows f
        where f.workflow_id >= v_first and f.workflow_id < v_next and f.parent_id = l.workflow_id))
    -- All there are, so that the index on status and time serves it.
    or exists (
      select from durable.finished_workflows f
      where f.workflow_id >= v_first and f.workflow_id < v_next
        and f.status in ('completed', 'failed', 'cancelled') and f.completed_at >= since);
end
$$;

-- Whether all transactions that used these relations at the last look are over; null when there was none lately.
create function durable._is_quiet(relations regclass[])
returns boolean language plpgsql as $$
declare
  v_now timestamptz := durable._now();
  v_before text[];
  v_using text[] := array(
    select distinct k.virtualtransaction from pg_locks k
    where k.locktype = 'relation' and k.relation = any(relations::oid[]) and k.pid is distinct from pg_backend_pid()
      and k.database = (select d.oid from pg_database d where d.datname = current_database()));
begin
  select u.transactions into v_before from durable.history_users u where u.seen_at > v_now - interval '5 minutes';
  delete from durable.history_users;
  insert into durable.history_users (seen_at, transactions) values (v_now, v_using);
  return not v_before && v_using;
end
$$;

-- Drops one of the partitions of a day: its workflows, or, when these are gone, their steps. Returns 1, or 0 when something
-- in it is needed after all or it is in use, or null when the next tick can tell. The lock lasts until the end of the
-- transaction, so nothing may follow in it.
create function durable._drop_day(day date, since timestamptz)
returns integer language plpgsql set lock_timeout = '100ms' as $$
declare
  v_parent text;
  v_partition text;
  v_quiet boolean;
begin
  foreach v_parent in array '{finished_workflows,checkpoints}'::text[] loop
    v_partition := v_parent || to_char(day, '_YYYYMMDD');
    exit when to_regclass('durable.' || v_partition) is not null;
  end loop;
  v_quiet := durable._is_quiet(array['durable.' || v_parent, 'durable.' || v_partition]::regclass[]);
  if v_quiet is not true then
    return v_quiet::integer;
  end if;
  begin
    -- Without ONLY it would be a lock on every day.
    execute format('lock table only durable.%I, only durable.%I in access exclusive mode', v_parent, v_partition);
    -- Once more, for a retry may have brought one of them back to life.
    if durable._is_needed(day, since) then
      -- An error, for only that gives the lock back.
      raise lock_not_available;
    end if;
    delete from durable.open_steps o
    where o.workflow_id >= durable._first_id(durable._start_of(day))
      and o.workflow_id < durable._first_id(durable._start_of(day + 1));
    execute format('drop table durable.%I', v_partition);
  exception when lock_not_available then
    return 0;
  end;
  return 1;
end
$$;

-- At most one partition per call; the result is that of durable._drop_day().
create function durable._drop_history()
returns integer language plpgsql as $$
declare
  v_now timestamptz := durable._now();
  v_keep record;
  v_day date;
begin
  -- Where the snapshot is that of the transaction, it does not show what was brought back to life since.
  if current_setting('transaction_isolation') <> 'read committed' then
    return 0;
  end if;
  select * into v_keep from durable._keeps();
  for v_day in select d from durable._old_days(v_now - v_keep.shortest - interval '1 day') as d loop
    if not durable._is_needed(v_day, v_now - v_keep.longest) then
      return durable._drop_day(v_day, v_now - v_keep.longest);
    end if;
  end loop;
  return 0;
end
$$;

-- Until when the rows of a rule must have ended to be deleted one by one; never for those of a day that will soon be dropped.
create function durable._cutoff(keep interval, longest interval, day date, at timestamptz)
returns timestamptz language sql stable as $$
  select case when keep = longest and keep >= interval '1 day' and durable._start_of(day) > at - keep - interval '2 days'
    then '-infinity' else at - keep end
$$;

-- Deletes what of a day is past by its rule: at most max_workflows, or fewer when they have many steps.
create function durable._expire_day(day date, longest interval, at timestamptz, max_workflows integer)
returns integer language plpgsql set plan_cache_mode = force_custom_plan as $$
declare
  v_first uuid := durable._first_id(durable._start_of(day));
  v_next uuid := durable._first_id(durable._start_of(day + 1));
  v_default timestamptz := durable._cutoff(durable._setting('retention')::interval, longest, day, at);
  v_queues text[];
  v_cutoffs timestamptz[];
  v_name text := '';
  v_of_name timestamptz;
  v_newest timestamptz;
  v_ids uuid[];
  v_keys text[];
  v_count integer := 0;
begin
  select array_agg(r.queue), array_agg(durable._cutoff(r.keep, longest, day, at)) into v_queues, v_cutoffs
  from durable.retention_rules r where r.queue is not null;
  -- By name, where each rule finds its own rows and none that it must leave.
  loop
    select min(f.name) into v_name from durable.finished_workflows f
    where f.workflow_id >= v_first and f.workflow_id < v_next and f.name > v_name;
    exit when v_name is null;
    v_of_name := (select durable._cutoff(r.keep, longest, day, at) from durable.retention_rules r where r.workflow = v_name);
    v_newest := coalesce(v_of_name, greatest(v_default, (select max(c) from unnest(v_cutoffs) as c)));
    continue when v_newest <= durable._start_of(day);
    with expired as materialized (
      select f.workflow_id, f.completed_at from durable.finished_workflows f
      where f.workflow_id >= v_first and f.workflow_id < v_next
        and f.name = v_name and f.completed_at < v_newest
        and (v_of_name is not null
          or f.completed_at < coalesce(v_cutoffs[array_position(v_queues, f.queue)], v_default))
        and (f.parent_id is null
          or not exists (select from durable.live_workflows l where l.workflow_id = f.parent_id))
      order by f.completed_at limit max_workflows - v_count for update skip locked
    ), counted as (
      select e.workflow_id, sum(s.steps) over (order by e.completed_at, e.workflow_id) - s.steps as steps_before
      from expired e, lateral (
        select count(*) as steps from durable.checkpoints c
        where c.workflow_id = e.workflow_id and c.workflow_id >= v_first and c.workflow_id < v_next) s
    )
    select array_agg(c.workflow_id) into v_ids from counted c where c.steps_before < 10 * max_workflows;
    continue when v_ids is null;

    with gone as (
      delete from durable.finished_workflows f
      where f.workflow_id >= v_first and f.workflow_id < v_next and f.workflow_id = any(v_ids)
      returning f.key
    )
    select array_agg(g.key) into v_keys from gone g where g.key is not null;
    delete from durable.checkpoints c
    where c.workflow_id >= v_first and c.workflow_id < v_next and c.workflow_id = any(v_ids);
    delete from durable.open_steps o where o.workflow_id = any(v_ids);
    delete from durable.workflow_state s where s.workflow_id = any(v_ids);
    delete from durable.approval_requests r where r.workflow_id = any(v_ids);
    delete from durable.workflow_keys k where k.key = any(v_keys) and k.workflow_id = any(v_ids);
    v_count := v_count + cardinality(v_ids);
    exit when v_count >= max_workflows;
  end loop;
  return v_count;
end
$$;

create function durable._expire_rows(max_workflows integer)
returns integer language plpgsql as $$
declare
  v_now timestamptz := durable._now();
  v_keep record;
  v_day date;
  v_count integer := 0;
begin
  select * into v_keep from durable._keeps();
  for v_day in select d from durable._old_days(v_now - v_keep.shortest) as d loop
    v_count := v_count + durable._expire_day(v_day, v_keep.longest, v_now, max_workflows - v_count);
    exit when v_count >= max_workflows;
  end loop;
  return v_count;
end
$$;

-- Deletes keys whose workflows went with their day. They are free before that, see durable._take_keys().
create function durable._free_keys(max_keys integer)
returns integer language plpgsql as $$
declare
  v_until uuid := durable._first_id(greatest(durable._now() - (durable._keeps()).shortest, 'epoch'));
  v_id uuid := durable._first_id('epoch');
  v_day date;
  v_next uuid;
  v_count integer := 0;
begin
  while v_count = 0 loop
    select k.workflow_id into v_id from durable.workflow_keys k
    where k.workflow_id >= v_id and k.workflow_id < v_until order by k.workflow_id limit 1;
    exit when not found;
    v_day := (durable._id_time(v_id) at time zone 'UTC')::date;
    v_next := durable._first_id(durable._start_of(v_day + 1));
    if to_regclass('durable.finished_workflows' || to_char(v_day, '_YYYYMMDD')) is null then
      delete from durable.workflow_keys k
      where k.key = any(array(
        select o.key from durable.workflow_keys o
        where o.workflow_id >= v_id and o.workflow_id < v_next
          and not exists (select from durable.live_workflows l where l.workflow_id = o.workflow_id)
        order by o.workflow_id limit max_keys for update skip locked));
      get diagnostics v_count = row_count;
    end if;
    v_id := v_next;
  end loop;
  return v_count;
end
$$;

-- Deletes what was published by workflows that went with their day.
create function durable._clear_state(max_rows integer)
returns integer language plpgsql as $$
declare
  v_until uuid := durable._first_id(greatest(durable._now() - (durable._keeps()).shortest, 'epoch'));
  v_id uuid := durable._first_id('epoch');
  v_day date;
  v_next uuid;
  v_count integer := 0;
begin
  while v_count = 0 loop
    select s.workflow_id into v_id from durable.workflow_state s
    where s.workflow_id >= v_id and s.workflow_id < v_until order by s.workflow_id limit 1;
    exit when not found;
    v_day := (durable._id_time(v_id) at time zone 'UTC')::date;
    v_next := durable._first_id(durable._start_of(v_day + 1));
    if to_regclass('durable.finished_workflows' || to_char(v_day, '_YYYYMMDD')) is null then
      delete from durable.workflow_state s
      where s.ctid = any(array(
        select o.ctid from durable.workflow_state o
        where o.workflow_id >= v_id and o.workflow_id < v_next
          and not exists (select from durable.live_workflows l where l.workflow_id = o.workflow_id)
        order by o.workflow_id limit max_rows for update skip locked));
      get diagnostics v_count = row_count;
    end if;
    v_id := v_next;
  end loop;
  return v_count;
end
$$;

-- Deletes the approvals of workflows that went with their day.
create function durable._clear_approvals(max_rows integer)
returns integer language plpgsql as $$
declare
  v_until uuid := durable._first_id(greatest(durable._now() - (durable._keeps()).shortest, 'epoch'));
  v_id uuid := durable._first_id('epoch');
  v_day date;
  v_next uuid;
  v_count integer := 0;
begin
  while v_count = 0 loop
    select r.workflow_id into v_id from durable.approval_requests r
    where r.workflow_id >= v_id and r.workflow_id < v_until order by r.workflow_id limit 1;
    exit when not found;
    v_day := (durable._id_time(v_id) at time zone 'UTC')::date;
    v_next := durable._first_id(durable._start_of(v_day + 1));
    if to_regclass('durable.finished_workflows' || to_char(v_day, '_YYYYMMDD')) is null then
      delete from durable.approval_requests r
      where r.approval_id = any(array(
        select o.approval_id from durable.approval_requests o
        where o.workflow_id >= v_id and o.workflow_id < v_next
          and not exists (select from durable.live_workflows l where l.workflow_id = o.workflow_id)
        order by o.workflow_id limit max_rows for update skip locked));
      get diagnostics v_count = row_count;
    end if;
    v_id := v_next;
  end loop;
  return v_count;
end
$$;
