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
    'Pass queue or workflow; durable.configure(''retention'', ...) is for all others.');
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

-- The shortest and the longest time that anything is kept for. By what they come to now: compared as intervals, ten years
-- would be 3,600 days.
create function durable._keeps(at timestamptz, out shortest interval, out longest interval) language plpgsql stable as $$
begin
  select (array_agg(k.keep order by at - k.keep desc))[1], (array_agg(k.keep order by at - k.keep))[1] into shortest, longest
  from (select durable._setting('retention')::interval as keep union all select r.keep from durable.retention_rules r) k;
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
      insert into durable.dropped_days (day) values (_drop_day.day)
      on conflict on constraint dropped_days_pkey do update set looked_up_to = null;
    end if;
    execute format('drop table %s', v_partition);
  exception
    when lock_not_available then
      return 0;
    -- A view of somebody's may need it, or it may have another owner. Its rows are deleted one by one, and other days go.
    when others then
      raise warning 'partition % cannot be dropped: %', v_partition, sqlerrm;
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
  -- Where it does not see what was brought back to life since.
  if not durable._sees_commits() then
    return 0;
  end if;
  select * into v_keep from durable._keeps(v_now);
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
  select case when at - keep = at - longest and keep >= interval '1 day' and durable._start_of(day) > at - keep - interval '2 days'
    then '-infinity' else at - keep end
$$;

-- Deletes rows of one name and one day that ended after p_after, and before their time: of those in a queue with a rule, that
-- of the queue; of all others, or of all where the name has a rule, p_cutoff. Looks at p_rows, or a few more that ended at one
-- time, and deletes at most p_workflows, or fewer when they have many steps. Returns how many it looked at, where it is to go on
-- (the same place when there was too much to delete), null when it is done with the name, and how many it deleted.
create function durable._expire_name(
  p_name text, p_day date, p_after timestamptz, p_cutoff timestamptz, p_has_rule boolean, p_at timestamptz, p_longest interval,
  p_rows integer, p_workflows integer, out looked_at integer, out go_on_after timestamptz, out expired integer
)
language plpgsql set plan_cache_mode = force_custom_plan as $$
declare
  v_first uuid := durable._first_id(durable._start_of(p_day));
  v_next uuid := durable._first_id(durable._start_of(p_day + 1));
  v_until timestamptz := case when p_has_rule then p_cutoff else durable._latest_cutoff(p_cutoff, p_day, p_at, p_longest) end;
  v_past uuid[];
  v_ids uuid[];
  v_touched uuid[];
begin
  with near as materialized (
    select f.workflow_id, f.completed_at, f.queue, f.parent_id from durable.finished_workflows f
    where f.workflow_id >= v_first and f.workflow_id < v_next
      and f.name = p_name and f.completed_at > p_after and f.completed_at < v_until
    order by f.completed_at fetch first p_rows rows with ties
  ), queue as materialized (
    select n.queue, case when r.keep is null or p_has_rule then p_cutoff else durable._cutoff(r.keep, p_longest, p_day, p_at) end
      as cutoff
    from (select distinct e.queue from near e) n left join durable.retention_rules r on r.queue = n.queue
  )
  select count(*)::integer, max(e.completed_at), array_agg(e.workflow_id order by e.completed_at) filter (
      where e.completed_at < q.cutoff and (e.parent_id is null
        or not exists (select from durable.live_workflows l where l.workflow_id = e.parent_id)))
    into looked_at, go_on_after, v_past
  from near e join queue q on q.queue = e.queue;

  with expired as materialized (
    select f.workflow_id, f.completed_at from durable.finished_workflows f
    where f.workflow_id >= v_first and f.workflow_id < v_next and f.workflow_id = any(v_past)
    order by f.completed_at limit p_workflows for update skip locked
  ), counted as (
    select e.workflow_id, s.touched, sum(s.steps) over (order by e.completed_at, e.workflow_id) - s.steps as steps_before
    from expired e, lateral (
      select count(*) as steps, bool_or(c.xmax <> '0'::xid) as touched from durable.checkpoints c
      where c.workflow_id = e.workflow_id and c.workflow_id >= v_first and c.workflow_id < v_next) s
  )
  select array_agg(c.workflow_id), array_agg(c.workflow_id) filter (where c.touched) into v_ids, v_touched
  from counted c where c.steps_before < 10 * p_workflows;
  if v_touched is not null then
    -- Somebody may have locked a step by hand.
    v_ids := array(
      select i.id from unnest(v_ids) as i(id)
      except
      select c.workflow_id from durable.checkpoints c
      where c.workflow_id >= v_first and c.workflow_id < v_next and c.workflow_id = any(v_touched) and c.xmax <> '0'::xid
        and c.ctid <> all(array(
          select o.ctid from durable.checkpoints o
          where o.workflow_id >= v_first and o.workflow_id < v_next and o.workflow_id = any(v_touched) and o.xmax <> '0'::xid
          for update skip locked)));
  end if;
  v_ids := durable._forget(v_ids);
  delete from durable.finished_workflows f
  where f.workflow_id >= v_first and f.workflow_id < v_next and f.workflow_id = any(v_ids);
  delete from durable.checkpoints c
  where c.workflow_id >= v_first and c.workflow_id < v_next and c.workflow_id = any(v_ids);
  expired := coalesce(cardinality(v_ids), 0);
  -- Not those that somebody has locked: they are for the next round.
  if cardinality(v_past) > p_workflows or expired > 0 and expired < cardinality(v_past) then
    go_on_after := p_after;
  elsif looked_at < p_rows then
    go_on_after := null;
  end if;
end
$$;

-- Before when a row must have ended to be past its time by any rule for a queue, or by p_cutoff.
create function durable._latest_cutoff(p_cutoff timestamptz, p_day date, p_at timestamptz, p_longest interval)
returns timestamptz language plpgsql stable as $$
begin
  return greatest(p_cutoff, durable._cutoff((
    select r.keep from durable.retention_rules r where r.queue is not null order by p_at - r.keep desc limit 1),
    p_longest, p_day, p_at));
end
$$;

-- Goes through the names of one day, from p_name on, of which it is done with all that ended up to p_after, and deletes what is
-- past its time. By name, so that each rule for a name finds its own rows. Returns the budget that is left of p_left, where a
-- name counts 1, one of which something is looked at 10 more, and each ten rows too; the name and the time to go on from, or null for the name when it is done with the day.
create function durable._expire_day(
  p_day date, p_name text, p_after timestamptz, p_at timestamptz, p_longest interval, p_left integer, p_workflows integer,
  out budget integer, out name text, out after timestamptz, out expired integer
)
language plpgsql set plan_cache_mode = force_custom_plan set enable_sort = off as $$
declare
  v_first uuid := durable._first_id(durable._start_of(p_day));
  v_next uuid := durable._first_id(durable._start_of(p_day + 1));
  v_default timestamptz := durable._cutoff(durable._setting('retention')::interval, p_longest, p_day, p_at);
  v_latest timestamptz := durable._latest_cutoff(v_default, p_day, p_at, p_longest);
  v_name record;
  v_done record;
begin
  budget := p_left;
  expired := 0;
  for v_name in
    with recursive found as (
      -- In the order of an index, and not min() or EXISTS: for these the planner reads all of the day when its statistics
      -- are old.
      select (select f.name from durable.finished_workflows f
              where f.workflow_id >= v_first and f.workflow_id < v_next and f.name >= p_name
              order by f.name limit 1) as name
      union all
      select (select f.name from durable.finished_workflows f
              where f.workflow_id >= v_first and f.workflow_id < v_next and f.name > n.name
              order by f.name limit 1)
      from found n where n.name is not null
    ), page as materialized (
      -- One more, to go on from.
      select n.name from found n where n.name is not null limit p_left + 1
    ), ruled as materialized (
      select n.name, r.workflow is not null as has_rule,
        case when r.workflow is null then v_default else durable._cutoff(r.keep, p_longest, p_day, p_at) end as cutoff
      from page n left join durable.retention_rules r on r.workflow = n.name
    )
    select r.name, r.has_rule, r.cutoff, (
        select true from durable.finished_workflows f
        where f.workflow_id >= v_first and f.workflow_id < v_next and f.name = r.name
          and f.completed_at < case when r.has_rule then r.cutoff else v_latest end
        order by f.completed_at limit 1) as is_past
    from ruled r order by r.name
  loop
    name := v_name.name;
    after := case when v_name.name = p_name then p_after else '-infinity' end;
    if budget <= 0 then
      return;
    end if;
    budget := budget - 1;
    if v_name.is_past then
      select * into v_done from durable._expire_name(v_name.name, p_day, after, v_name.cutoff, v_name.has_rule, p_at, p_longest,
        10 * (budget + 1), p_workflows - expired);
      expired := expired + v_done.expired;
      budget := budget - 10 - v_done.looked_at / 10;
      -- There is more of it.
      if v_done.go_on_after is not null then
        after := v_done.go_on_after;
        return;
      end if;
    end if;
  end loop;
  name := null;
end
$$;

-- Deletes rows that are past their time, at most max_workflows, and goes on from there at the next call. A call looks at 500 names
-- of workflows, where a day counts for 100, for it has a partition to open and ten relations to lock, and each row for a tenth.
create function durable._expire_rows(max_workflows integer)
returns integer language plpgsql as $$
declare
  v_now timestamptz := durable._now();
  v_keep record;
  v_begin record;
  v_day date;
  v_name text;
  v_after timestamptz;
  v_done record;
  v_left integer := 500;
  v_count integer := 0;
begin
  select * into v_keep from durable._keeps(v_now);
  -- All days before this one are done with, and of it all names before this one, and of that all up to this time.
  select coalesce(min(m.expired_day), '-infinity') as day, coalesce(min(m.expired_name), '') as name,
      coalesce(min(m.expired_until), '-infinity') as after
    into v_begin
  from durable.history_marks m;
  v_day := durable._next_day(v_begin.day - 1);
  if v_day is null or durable._start_of(v_day) >= v_now - v_keep.shortest then
    v_day := durable._next_day('-infinity');
  end if;
  if v_day = v_begin.day then
    v_name := v_begin.name;
    v_after := v_begin.after;
  else
    v_name := '';
    v_after := '-infinity';
  end if;
  while v_left > 0 and v_count < max_workflows and durable._start_of(v_day) < v_now - v_keep.shortest loop
    select * into v_done
    from durable._expire_day(v_day, v_name, v_after, v_now, v_keep.longest, v_left, max_workflows - v_count);
    v_count := v_count + v_done.expired;
    v_left := v_done.budget;
    v_name := v_done.name;
    v_after := v_done.after;
    exit when v_name is not null;
    v_left := v_left - 100;
    v_name := '';
    v_after := '-infinity';
    v_day := durable._next_day(v_day);
  end loop;
  if v_day is null then
    v_day := '-infinity';
  end if;
  if (v_day, v_name, v_after) is distinct from (v_begin.day, v_begin.name, v_begin.after) then
    insert into durable.history_marks (expired_day, expired_name, expired_until) values (v_day, v_name, v_after)
    on conflict on constraint history_marks_pkey do update
      set expired_day = excluded.expired_day, expired_name = excluded.expired_name, expired_until = excluded.expired_until;
  end if;
  return v_count;
end
$$;
