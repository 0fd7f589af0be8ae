-- The run that a workflow has come to by continuing as new ones; itself, when it has not.
create function durable._last_run(workflow_id uuid)
returns uuid language plpgsql stable as $$
declare
  v_last uuid := workflow_id;
  v_next uuid := workflow_id;
begin
  while v_next is not null loop
    v_last := v_next;
    v_next := (select e.continued_as from durable._ended(array[v_last]) e);
  end loop;
  return v_last;
end
$$;

-- Notes with a run that has ended which one goes on, and returns what that one takes over.
create function durable._link_runs(workflow_id uuid, next_id uuid)
returns durable.finished_workflows language plpgsql set plan_cache_mode = force_custom_plan as $$
declare
  v_row durable.finished_workflows;
begin
  update durable.finished_workflows f set continued_as = next_id where f.workflow_id = _link_runs.workflow_id
  returning f.max_attempts, f.priority, f.timeout, f.name, f.queue, f.key, f.tags
    into v_row.max_attempts, v_row.priority, v_row.timeout, v_row.name, v_row.queue, v_row.key, v_row.tags;
  return v_row;
end
$$;

create function durable.continue_as_new(workflow_id uuid, lease bigint, input jsonb default null)
returns uuid language plpgsql security definer
set search_path = pg_catalog, pg_temp set enable_seqscan = off set enable_bitmapscan = off set enable_nestloop = off
set jit = off as $$
#variable_conflict use_variable
declare
  v_outcome text;
  v_next uuid;
  v_line_id bigint;
  v_row durable.finished_workflows;
begin
  if durable._is_too_large(input, durable._max_payload()) then
    perform durable._raise_outcome('WF006', workflow_id, lease);
  end if;
  perform durable._require(not exists (
      select from durable.live_workflows l where l.workflow_id = continue_as_new.workflow_id and l.parent_id is not null),
    format('workflow %s is a child and cannot continue as new: its parent waits for the end of this run', workflow_id),
    'Return to the parent, which can start the next one, or start it with durable.enqueue() instead of as a child.');
  if durable._finish(array[workflow_id], array[lease], 'completed', array[null::jsonb], null) is null then
    v_outcome := durable._why_lost(workflow_id, lease, 'completed');
    if v_outcome = 'ok' then
      v_next := (select e.continued_as from durable._ended(array[workflow_id]) e);
      if v_next is not null then
        return v_next;
      end if;
    end if;
    perform durable._raise_outcome(case v_outcome when 'ok' then 'WF002' else v_outcome end, workflow_id, lease);
  end if;
  perform durable._let_ring();
  v_next := durable._new_id();
  v_row := durable._link_runs(workflow_id, v_next);
  perform pg_current_xact_id();
  -- It goes on, and so it does not stand behind those that have not begun.
  v_line_id := durable._started_line(durable._line_id(v_row.queue, v_row.priority, v_row.name));
  insert into durable.live_workflows (workflow_id, line_id, ready_seq, created_at, max_attempts, priority, status, timeout, name, queue,
    key, tags, input, continued_from)
  values (v_next, v_line_id, nextval('durable.ready_seq'), durable._now(), v_row.max_attempts, v_row.priority, 'pending', v_row.timeout,
    v_row.name, v_row.queue, v_row.key, v_row.tags, input, workflow_id);
  -- The key stands for what runs: were it left behind, retention would free it while the workflow goes on.
  update durable.workflow_keys k set workflow_id = v_next
  where k.key = v_row.key and k.workflow_id = continue_as_new.workflow_id;
  -- What was sent and not received is for the next run. The tick brings what is committed after this has looked: it may see that
  -- before it sees that this run has ended, so it has to come back.
  update durable.messages m set workflow_id = v_next, xid = pg_current_xact_id()
  where m.workflow_id = continue_as_new.workflow_id and m.received_by is null;
  insert into durable.late_wakes (workflow_id) values (workflow_id);
  perform durable._line_up(array[row(v_line_id, v_row.priority, v_row.queue, v_row.name)::durable.place]);
  return v_next;
end
$$;
comment on function durable.continue_as_new(uuid, bigint, jsonb) is
  'Ends a run as completed and starts the next one with another input and no steps, both or neither, so that a workflow without '
  'an end does not gather steps without end. Name, queue, priority, tags, attempts and timeout are those of this run, and the '
  'key and the messages that were not received go over to the next; what is asked of people is withdrawn. Returns its id; continued_from and continued_as in durable.workflows link the two, and '
  'durable.result() of this run is the result of the last one, which durable.send(), cancel(), pause() and resume() go to, too. Sending it again is harmless. '
  'Errors: WF001 workflow not found, WF002 lease lost, WF004 cancelled, WF005 it is a child, WF006 input too large.';
