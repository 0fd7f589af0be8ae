-- All errors of durable are of SQLSTATE class WF. docs/errors.md lists them; the Python client maps them one to one.

create function durable._raise(code text, message text, detail text default null, hint text default null)
returns void language plpgsql as $$
begin
  raise exception using
    errcode = code, message = message, detail = coalesce(detail, ''), hint = coalesce(hint, '');
end
$$;

create function durable._raise_not_found(workflow_id uuid)
returns void language plpgsql as $$
begin
  perform durable._raise('WF001', format('workflow %s not found', coalesce(workflow_id::text, 'NULL')),
    'No workflow with this id is stored, neither unfinished nor in the history.',
    'Check the id and the database. Finished workflows are removed in time: see the setting retention, and durable.retain().');
end
$$;

-- The exception for an outcome that a batch call reports as a code.
create function durable._raise_outcome(code text, workflow_id uuid, lease bigint, step_name text default null)
returns void language plpgsql as $$
declare
  v_what text := format('workflow %s', workflow_id) || coalesce(', step ' || quote_literal(step_name), '');
begin
  case code
    when 'WF001' then
      perform durable._raise_not_found(workflow_id);
    when 'WF002' then
      perform durable._raise('WF002', format('%s: lease %s is lost', v_what, coalesce(lease::text, 'NULL')),
        'The workflow was taken over by another worker, given back, paused, or ended in the meantime. Nothing was changed.',
        'Stop working on it. If this happens to a healthy worker, its heartbeats come too late: see the setting lease.');
    when 'WF004' then
      perform durable._raise('WF004', format('%s: the workflow was cancelled', v_what),
        'Nothing was changed.', 'Stop working on it.');
    when 'WF006' then
      perform durable._raise('WF006', format('%s: the payload is too large', v_what),
        format('The limit is %s bytes of jsonb (setting max_payload_bytes), and %s of text.', durable._max_payload(),
          durable._max_text()),
        'Store the data elsewhere and pass a reference, or raise the limit with durable.configure().');
    when 'busy' then
      perform durable._raise('55P03', format('%s: another transaction holds it', v_what),
        'Nothing was changed.', 'Send the call again.');
    else
      perform durable._raise('WF005', format('%s: invalid argument', v_what),
        'The step name is null, empty or longer than 500 characters, or the error is null.', 'Correct the call.');
  end case;
end
$$;

-- What is no fault of an item: deadlocks, lock timeouts, a full disk, a server that shuts down.
create function durable._is_passing(code text)
returns boolean language sql immutable as $$ select left(code, 2) in ('40', '53', '55', '57', '58') $$;

-- The longest time that any argument or setting may span.
create function durable._longest()
returns interval language sql immutable parallel safe as $$ select interval '100 years' $$;

create function durable._require(ok boolean, message text, hint text)
returns void language plpgsql as $$
begin
  if ok is not true then
    perform durable._raise('WF005', message, 'Nothing was changed.', hint);
  end if;
end
$$;

-- Postgres refuses writes on a standby with the same code. But a function that first reads an unlogged table fails with another
-- code there (0A000), and a claim that finds nothing to do succeeds. So these functions check: if pg_is_in_recovery() then ...
create function durable._refuse_standby()
returns void language plpgsql as $$
begin
  perform durable._raise('25006', 'this server is a standby: it answers queries and changes nothing', 'Nothing was changed.',
    'Connect to the primary. During a failover, retry until this server is promoted.');
end
$$;
