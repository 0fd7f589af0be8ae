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

-- The first day after a day that has a partition of workflows or of steps.
create function durable._next_day(after date)
returns date language plpgsql stable as $$
begin
  return least(durable._next_partition('finished_workflows', after), durable._next_partition('checkpoints', after));
end
$$;

-- Whether anything of a day is unfinished or has an unfinished parent, or ended since a time.
create function durable._is_needed(day date, since timestamptz)
returns boolean language plpgsql stable set plan_cache_mode = force_custom_plan as $$
declare
  v_first uuid := durable._first_id(durable._start_of(day));
  v_next uuid := durable._first_id(durable._start_of(day + 1));
begin
  -- The workflows may be detached, to be kept elsewhere: then their steps are next.
  return durable._partition_table('finished_workflows', day) is not null
      and durable._partition('finished_workflows', day) is null
    or exists (select from durable.live_workflows l where l.workflow_id >= v_first and l.workflow_id < v_next)
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
  v_workflows regclass := durable._partition('finished_workflows', day);
  v_parent regclass := case
    when v_workflows is null then 'durable.checkpoints'::regclass else 'durable.finished_workflows'::regclass end;
  v_partition regclass := coalesce(v_workflows, durable._partition('checkpoints', day));
  v_quiet boolean := durable._is_quiet(array[v_parent, v_partition]);
begin
  if v_quiet is not true then
    return v_quiet::integer;
  end if;
  begin
    -- Without ONLY it would be a lock on every day.
    execute format('lock table only %s, only %s in access exclusive mode', v_parent, v_partition);
    -- Once more, for a retry may have brought one of them back to life.
    if durable._is_needed(day, since) then
      -- An error, for only that gives the lock back.
      raise lock_not_available;
    end if;
    if v_workflows is not null then
      insert into durable.dropped_days (day) values (_drop_day.day) on conflict do nothing;
    end if;
    execute format('drop table %s', v_partition);
  exception when lock_not_available then
    return 0;
  end;
  return 1;
end
$$;

-- At most one partition per call; the result is that of durable._drop_day(). Looks at three days, and goes on with the next ones
-- at the next call, so that none holds up the others.
create function durable._drop_history()
returns integer language plpgsql as $$
declare
  v_now timestamptz := durable._now();
  v_keep record;
  v_before timestamptz;
  v_after date;
  v_day date;
  v_done integer := 0;
begin
  -- Where the snapshot is that of the transaction, it does not show what was brought back to life since.
  if current_setting('transaction_isolation') <> 'read committed' then
    return 0;
  end if;
  select * into v_keep from durable._keeps();
  v_before := v_now - v_keep.shortest - interval '1 day';
  v_after := coalesce((select m.dropped_day from durable.history_marks m), '-infinity');
  v_day := v_after;
  for i in 1 .. 3 loop
    v_day := durable._next_day(v_day);
    if v_day is null or durable._start_of(v_day) >= v_before then
      v_day := '-infinity';
      exit;
    end if;
    if not durable._is_needed(v_day, v_now - v_keep.longest) then
      v_done := durable._drop_day(v_day, v_now - v_keep.longest);
      if v_done is null then
        -- The next call comes back to it.
        v_day := v_day - 1;
      end if;
      exit;
    end if;
  end loop;
  if v_day <> v_after then
    insert into durable.history_marks (dropped_day) values (v_day)
    on conflict on constraint history_marks_pkey do update set dropped_day = excluded.dropped_day;
  end if;
  return v_done;
end
$$;

-- Until when the rows of a rule must have ended to be deleted one by one; never for those of a day that will soon be dropped.
create function durable._cutoff(keep interval, longest interval, day date, at timestamptz)
returns timestamptz language sql stable as $$
  select case when keep = longest and keep >= interval '1 day' and durable._start_of(day) > at - keep - interval '2 days'
    then '-infinity' else at - keep end
$$;

-- Deletes the rows of one name and one day that ended before their time: of those in a queue with a rule, that of the queue; of
-- all others, or of all where the name has a rule, v_cutoff. At most max_workflows, or fewer when they have many steps.
create function durable._expire_name(
  name text, day date, cutoff timestamptz, queues text[], cutoffs timestamptz[], max_workflows integer
)
returns integer language plpgsql set plan_cache_mode = force_custom_plan as $$
#variable_conflict use_column
declare
  v_first uuid := durable._first_id(durable._start_of(_expire_name.day));
  v_next uuid := durable._first_id(durable._start_of(_expire_name.day + 1));
  v_ids uuid[];
begin
  with expired as materialized (
    select f.workflow_id, f.completed_at from durable.finished_workflows f
    where f.workflow_id >= v_first and f.workflow_id < v_next
      and f.name = _expire_name.name and f.completed_at < greatest(_expire_name.cutoff, (select max(c) from unnest(cutoffs) as c))
      and f.completed_at < coalesce(cutoffs[array_position(queues, f.queue)], _expire_name.cutoff)
      and (f.parent_id is null
        or not exists (select from durable.live_workflows l where l.workflow_id = f.parent_id))
    order by f.completed_at limit max_workflows for update skip locked
  ), counted as (
    select e.workflow_id, sum(s.steps) over (order by e.completed_at, e.workflow_id) - s.steps as steps_before
    from expired e, lateral (
      select count(*) as steps from durable.checkpoints c
      where c.workflow_id = e.workflow_id and c.workflow_id >= v_first and c.workflow_id < v_next) s
  )
  select array_agg(c.workflow_id) into v_ids from counted c where c.steps_before < 10 * max_workflows;
  v_ids := durable._forget(v_ids);
  delete from durable.finished_workflows f
  where f.workflow_id >= v_first and f.workflow_id < v_next and f.workflow_id = any(v_ids);
  delete from durable.checkpoints c
  where c.workflow_id >= v_first and c.workflow_id < v_next and c.workflow_id = any(v_ids);
  return cardinality(v_ids);
end
$$;

-- Goes through the names of one day, from the first one after p_after, and deletes what is past its time. By name, so that each
-- rule finds its own rows and none that it must leave. Returns how many names there were, the last one that is done with, and
-- whether the day is.
create function durable._expire_day(
  p_day date, p_after text, p_at timestamptz, p_longest interval, p_names integer, p_workflows integer,
  out names integer, out last_name text, out is_done boolean, out expired integer
)
language plpgsql set plan_cache_mode = force_custom_plan set enable_sort = off as $$
declare
  v_first uuid := durable._first_id(durable._start_of(p_day));
  v_next uuid := durable._first_id(durable._start_of(p_day + 1));
  v_default timestamptz := durable._cutoff(durable._setting('retention')::interval, p_longest, p_day, p_at);
  v_queues text[];
  v_cutoffs timestamptz[];
  v_name record;
begin
  names := 0;
  last_name := p_after;
  is_done := false;
  expired := 0;
  select array_agg(r.queue), array_agg(durable._cutoff(r.keep, p_longest, p_day, p_at)) into v_queues, v_cutoffs
  from durable.retention_rules r where r.queue is not null;
  for v_name in
    with recursive name as (
      -- In the order of an index, and not min() or EXISTS: for these the planner reads all of the day when its statistics
      -- are old.
      select (select f.name from durable.finished_workflows f
              where f.workflow_id >= v_first and f.workflow_id < v_next and f.name > p_after
              order by f.name limit 1) as name
      union all
      select (select f.name from durable.finished_workflows f
              where f.workflow_id >= v_first and f.workflow_id < v_next and f.name > n.name
              order by f.name limit 1)
      from name n where n.name is not null
    ), page as materialized (
      select n.name from name n where n.name is not null limit p_names
    ), ruled as materialized (
      select n.name, r.workflow is not null as has_rule,
        case when r.workflow is null then v_default else durable._cutoff(r.keep, p_longest, p_day, p_at) end as cutoff
      from page n left join durable.retention_rules r on r.workflow = n.name
    )
    select r.name, r.has_rule, r.cutoff, (
        select true from durable.finished_workflows f
        where f.workflow_id >= v_first and f.workflow_id < v_next and f.name = r.name and f.completed_at < case
          when r.has_rule then r.cutoff else greatest(r.cutoff, (select max(c) from unnest(v_cutoffs) as c)) end
        order by f.completed_at limit 1) as is_past
    from ruled r order by r.name
  loop
    names := names + 1;
    if v_name.is_past then
      expired := expired + durable._expire_name(v_name.name, p_day, v_name.cutoff,
        case when not v_name.has_rule then v_queues end, case when not v_name.has_rule then v_cutoffs end,
        p_workflows - expired);
      -- There may be more of it.
      if expired >= p_workflows then
        return;
      end if;
    end if;
    last_name := v_name.name;
  end loop;
  is_done := names < p_names;
end
$$;

-- Deletes rows that are past their time, at most max_workflows, and goes on from there at the next call. A call looks at 500 names
-- of workflows, where a day counts for 100: it has a partition to open and ten relations to lock.
create function durable._expire_rows(max_workflows integer)
returns integer language plpgsql as $$
declare
  v_now timestamptz := durable._now();
  v_keep record;
  v_begin record;
  v_mark record;
  v_day date;
  v_name text;
  v_done record;
  v_left integer := 500;
  v_count integer := 0;
begin
  select * into v_keep from durable._keeps();
  -- All days up to this one are done with; with a name, of this day only the names up to it.
  select coalesce(min(m.expired_day), '-infinity') as day, coalesce(min(m.expired_name), '') as name into v_begin
  from durable.history_marks m;
  v_mark := v_begin;
  v_name := v_begin.name;
  v_day := case when v_name = '' then durable._next_day(v_begin.day) else v_begin.day end;
  if v_day is null or durable._start_of(v_day) >= v_now - v_keep.shortest then
    v_day := durable._next_day('-infinity');
    v_name := '';
  end if;
  while v_left > 0 and v_count < max_workflows and durable._start_of(v_day) < v_now - v_keep.shortest loop
    select * into v_done from durable._expire_day(v_day, v_name, v_now, v_keep.longest, v_left, max_workflows - v_count);
    v_count := v_count + v_done.expired;
    v_left := v_left - 100 - v_done.names;
    if v_done.is_done then
      v_mark.day := v_day;
      v_mark.name := '';
    else
      if v_done.last_name <> '' then
        v_mark.day := v_day;
        v_mark.name := v_done.last_name;
      end if;
      exit;
    end if;
    v_name := '';
    v_day := durable._next_day(v_day);
  end loop;
  if v_mark is distinct from v_begin then
    insert into durable.history_marks (expired_day, expired_name) values (v_mark.day, v_mark.name)
    on conflict on constraint history_marks_pkey do update
      set expired_day = excluded.expired_day, expired_name = excluded.expired_name;
  end if;
  return v_count;
end
$$;
