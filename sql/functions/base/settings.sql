create view durable.settings as
  select d.name, coalesce(o.value, d.value) as value, d.value as default_value, d.type, d.description
  from durable.setting_defaults d left join durable.setting_overrides o on o.name = d.name;
comment on view durable.settings is 'Every setting: its value now, its default, its type and what it does. Change one with durable.configure().';

-- In plpgsql, which keeps the plan; a SQL function with a FROM is planned at each call.
create function durable._setting(name text)
returns text language plpgsql stable as $$
begin
  return (select s.value from durable.settings s where s.name = _setting.name);
end
$$;

create function durable._lease()
returns interval language plpgsql stable as $$ begin return durable._setting('lease')::interval; end $$;

create function durable._max_payload()
returns bigint language plpgsql stable as $$ begin return durable._setting('max_payload_bytes')::bigint; end $$;

-- The longest text of a payload. The number 1e131071 takes 16 bytes of jsonb, and 131072 of text; and a row of more than 1 GB as
-- text can neither be claimed nor dumped.
create function durable._max_text()
returns bigint language sql immutable parallel safe as $$ select 402653184::bigint $$;

-- A payload of this size or less need not be looked at by _is_too_large(): 8192 times as much is the longest text it can have.
create function durable._small_enough(max_bytes bigint)
returns bigint language sql immutable parallel safe as $$ select least(max_bytes, durable._max_text() / 8192) $$;

create function durable._is_too_large(payload jsonb, max_bytes bigint)
returns boolean language plpgsql immutable as $$
declare
  -- The value itself: what comes from a table may be compressed.
  v_payload jsonb := payload #> '{}'::text[];
  v_size integer := pg_column_size(v_payload);
begin
  if v_size is null or v_size <= durable._small_enough(max_bytes) then
    return false;
  elsif v_size > max_bytes then
    return true;
  end if;
  begin
    return octet_length(v_payload::text) > durable._max_text();
  exception when program_limit_exceeded then
    return true;
  end;
end
$$;

create function durable.configure(name text, value text)
returns void language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
  v_type regtype := (select d.type from durable.setting_defaults d where d.name = configure.name);
  v_seconds numeric;
  v_ok boolean;
begin
  if v_type is null then
    perform durable._raise('WF005', format('there is no setting %L', configure.name),
      format('Settings: %s.', (select string_agg(d.name, ', ' order by d.name) from durable.setting_defaults d)),
      'See select * from durable.settings.');
  end if;
  if configure.value is null then
    delete from durable.setting_overrides o where o.name = configure.name;
    return;
  end if;
  begin
    case v_type
      when 'interval'::regtype then
        v_seconds := extract(epoch from configure.value::interval);
        -- What a minus sign stands for depends on the IntervalStyle of who reads it.
        v_ok := v_seconds >= 0 and position('-' in configure.value) = 0
          and configure.value::interval <= durable._longest() and (configure.name <> 'lease' or v_seconds >= 1);
      when 'double precision'::regtype then
        v_ok := configure.value::double precision between 1 and 1000;
      else
        v_ok := configure.value::bigint between 1 and 1073741823;
    end case;
  exception when data_exception then
    v_ok := false;
  end;
  perform durable._require(v_ok, format('%L is not a value for the setting %L', configure.value, configure.name),
    format('It takes a positive %s%s.', format_type(v_type, null),
      case configure.name when 'lease' then ' of at least one second' else '' end));
  insert into durable.setting_overrides as o (name, value) values (configure.name, configure.value)
  on conflict on constraint setting_overrides_pkey do update set value = excluded.value;
end
$$;
comment on function durable.configure(text, text) is
  'Changes a setting for the whole database; null brings the default back. The settings and their units are in durable.settings. '
  'Errors: WF005 for an unknown name or a value it cannot take.';

-- Whether each statement sees what was committed before it. In the stricter levels of isolation it sees what the first one of
-- the transaction saw, and fails on rows that have changed since.
create function durable._sees_commits()
returns boolean language sql stable as $$
  select current_setting('transaction_isolation') in ('read committed', 'read uncommitted')
$$;
