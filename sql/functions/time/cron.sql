-- When a cron line falls due.
--
-- A line is parsed into bit strings, one bit for each value of a field, so that "the next minute that matches" is the
-- position of the next 1. The search runs over the clock on the wall: the first day that matches, then the first time
-- of that day. Only then comes the time zone, and what a change of the clock does to the time that was found.
--
-- Where cron implementations differ, this is what holds here; in brackets what croniter does, where that is something
-- else:
--
-- * Six fields have the seconds first.
-- * When both day fields are restricted, a day matches when either does; * and ? do not restrict, all else does, also
--   */2. [With fri#2 or L5 in the day of the week both must match. */2 does not restrict beside a list of all days.]
-- * A range may wrap around (fri-mon, 22-4), with a step that goes on across the end: 22-4/3 is 22, 1, 4. [The phase is
--   lost at the end.] 5-5 is 5 [all values], and 5/15 is 5-59/15.
-- * L as day of the month is the last one; 5L and L5 are the last Friday, fri#2 the second [not beside other weekdays].
-- * The clock skips a time (it goes from 02:00 to 03:00): what was due in between is due once, when the clock has
--   changed. [02:30 is due at 03:30.]
-- * The clock repeats a time (it goes back from 03:00 to 02:00): what is due then is due the first time. [Both times.]
-- * Lines that match in every hour of the day follow the hours as they pass instead: nothing is made up for a skipped
--   hour, for the next one comes at once, and they are due in both passes of a repeated one. [Only if the hour is *.]
-- * Intervals are counted from an instant (1970-01-01 00:00 UTC where nothing else is said), and the clock on the wall
--   does not matter.

create type durable.cron as (
  every bigint,
  seconds bit varying,
  minutes bit varying,
  hours bit varying,
  days bit varying,
  months bit varying,
  weekdays bit varying,
  last_day boolean,
  nth_weekdays integer[],
  any_day boolean,
  either_day boolean,
  hourly boolean
);
comment on type durable.cron is
  'A parsed cron line. every is an interval in seconds, and all else null; or a bit for each value of each field, '
  'weekdays for six weeks on end. nth_weekdays has 10 * weekday + n for weekday#n, n = 0 for the last one.';

create function durable._raise_cron(cron text, field text, problem text, allowed text)
returns void language plpgsql as $$
begin
  perform durable._raise('WF005', format('cron %L: %s', cron, coalesce('field ' || field || ': ', '') || problem),
    'Nothing was changed.', allowed);
end
$$;

-- The number of a value in a field: a number in range or a name.
create function durable._cron_value(cron text, field text, value text, low integer, high integer, names text[])
returns integer language plpgsql as $$
declare
  v_number integer := case when value ~ '^[0-9]{1,4}$' then value::integer
    else array_position(names, lower(value collate "C")) - 1 + low end;
begin
  if (v_number between low and high + (high = 6)::integer) is not true then
    perform durable._raise_cron(cron, field, format('%L is not one of its values', value),
      format('It takes %s to %s%s, lists such as %s,%s, ranges such as %s-%s, steps such as */2, and * for all.',
        low, high,
        case when names is not null then format(', or names from %s to %s', names[1], names[cardinality(names)]) end,
        low, low + 2, low, low + 2));
  end if;
  return v_number;
end
$$;

-- The bits of one field, the lowest value first. In the day of the week 7 is Sunday, too.
create function durable._cron_field(
  cron text, field text, line text, low integer, high integer, names text[] default null
)
returns bit varying language plpgsql as $$
declare
  v_size integer := high - low + 1;
  v_bits bit varying := substring(B'000000000000000000000000000000000000000000000000000000000000' for v_size)::bit varying;
  v_item text;
  v_part text[];
  v_range text[];
  v_from integer;
  v_to integer;
  v_step integer;
begin
  if line = '*' then
    return (~v_bits)::bit varying;
  elsif line ~ '^[0-9][0-9]?$' and line::integer between low and high then
    return set_bit(v_bits, line::integer - low, 1)::bit varying;
  end if;
  foreach v_item in array string_to_array(line, ',') loop
    -- Cut up without regular expressions, whose captures would take most of the time.
    v_part := string_to_array(v_item, '/');
    v_step := case when cardinality(v_part) = 1 then 1 when v_part[2] ~ '^[0-9]{1,4}$' then v_part[2]::integer end;
    v_range := string_to_array(v_part[1], '-');
    if (v_step > 0 and cardinality(v_part) <= 2 and cardinality(v_range) in (1, 2)
      and (v_range[1] <> '*' or v_range[2] is null))
      is not true then
      perform durable._raise_cron(cron, field, format('%L is not understood', v_item), format(
        'It takes %s to %s, lists such as %s,%s, ranges such as %s-%s, steps from 1 on such as */2, and * for all.',
        low, high, low, low + 2, low, low + 2));
    end if;
    v_from := case when v_range[1] = '*' then low
      else durable._cron_value(cron, field, v_range[1], low, high, names) end;
    v_to := case
      when v_range[2] is not null then durable._cron_value(cron, field, v_range[2], low, high, names)
      when v_range[1] = '*' or v_part[2] is not null then high
      else v_from end;
    if v_from > high and v_range[2] is null then
      v_from := low;
      v_to := case when v_part[2] is not null then high else low end;
    elsif v_to < v_from then
      v_to := v_to + v_size;
    end if;
    while v_from <= v_to loop
      v_bits := set_bit(v_bits, (v_from - low) % v_size, 1)::bit varying;
      v_from := v_from + v_step;
    end loop;
  end loop;
  return v_bits;
end
$$;

create function durable._cron_months()
returns text[] language sql immutable parallel safe as $$
  select '{jan,feb,mar,apr,may,jun,jul,aug,sep,oct,nov,dec}'::text[]
$$;

create function durable._cron_weekdays()
returns text[] language sql immutable parallel safe as $$
  select '{sun,mon,tue,wed,thu,fri,sat}'::text[]
$$;

-- The interval in seconds that stands in place of a cron line.
create function durable._cron_every(cron text)
returns bigint language plpgsql as $$
declare
  v_every interval;
  v_seconds numeric;
begin
  begin
    v_every := cron::interval;
  exception when data_exception then
    perform durable._raise_cron(cron, null, 'this is not an interval',
      'Write for example ''30 seconds'' or ''1 hour 30 minutes''.');
  end;
  v_seconds := extract(epoch from v_every);
  if extract(year from v_every) <> 0 or extract(month from v_every) <> 0 then
    perform durable._raise_cron(cron, null, 'months and years are not of one length',
      'Use a cron line, for example ''0 0 1 * *'' for each month, or an interval of seconds, minutes, hours, days or '
      'weeks.');
  elsif v_seconds < 1 or v_seconds <> floor(v_seconds) then
    perform durable._raise_cron(cron, null, 'an interval must be one or more whole seconds',
      'The shortest is ''1 second''.');
  elsif position('-' in cron) > 0 then
    -- What it stands for depends on the IntervalStyle of who reads it.
    perform durable._raise_cron(cron, null, 'an interval has no minus sign', 'Write for example ''6 hours''.');
  end if;
  return v_seconds::bigint;
end
$$;

create function durable._parse_cron(cron text)
returns durable.cron language plpgsql as $$
declare
  v_fields text[];
  v_item text;
  v_plain text[] := array[]::text[];
  v_part text[];
  v durable.cron;
begin
  v_fields := array_remove(string_to_array(translate(cron, E'\t\n\r', '   '), ' '), '');
  case
    when cardinality(v_fields) in (5, 6) and (v_fields[2] !~ '^[[:alpha:]]' or v_fields[1] = '*') then
      if cardinality(v_fields) = 5 then
        v_fields := '0'::text || v_fields;
      end if;
    when cron ~ '^[[:space:]]*[-+]?[.0-9]+[[:space:]]*[[:alpha:]:]' then
      v.every := durable._cron_every(cron);
      return v;
    else
      v_fields := case when cardinality(v_fields) = 1 then case lower(v_fields[1] collate "C")
        when '@hourly' then '{0,0,*,*,*,*}'
        when '@daily' then '{0,0,0,*,*,*}'
        when '@midnight' then '{0,0,0,*,*,*}'
        when '@weekly' then '{0,0,0,*,*,0}'
        when '@monthly' then '{0,0,0,1,*,*}'
        when '@yearly' then '{0,0,0,1,1,*}'
        when '@annually' then '{0,0,0,1,1,*}' end::text[] end;
      if v_fields is null then
        perform durable._raise_cron(coalesce(cron, 'NULL'), null, 'it has not five or six fields',
          'Write minute, hour, day of month, month and day of week, with seconds before them if need be; or @hourly, '
          '@daily, @weekly, @monthly, @yearly; or an interval such as ''30 seconds''.');
      end if;
  end case;
  v.seconds := durable._cron_field(cron, 'second', v_fields[1], 0, 59);
  v.minutes := durable._cron_field(cron, 'minute', v_fields[2], 0, 59);
  v.hours := durable._cron_field(cron, 'hour', v_fields[3], 0, 23);
  v.hourly := position(B'0' in v.hours) = 0;
  v.months := durable._cron_field(cron, 'month', v_fields[5], 1, 12, durable._cron_months());

  if v_fields[4] in ('*', '?') and v_fields[6] in ('*', '?') then
    v.any_day := position(B'0' in v.months) = 0;
    v.days := B'1111111111111111111111111111111';
    v.weekdays := B'111111111111111111111111111111111111111111';
    return v;
  end if;
  v.any_day := false;
  v.either_day := v_fields[4] not in ('*', '?') and v_fields[6] not in ('*', '?');
  if v_fields[4] = '?' then
    v_fields[4] := '*';
  elsif v_fields[4] ~* '(^|,)l(,|$)' then
    v.last_day := true;
    v_fields[4] := array_to_string(array_remove(string_to_array(lower(v_fields[4] collate "C"), ','), 'l'), ',');
  elsif v_fields[4] ~* '[0-9]w|l-[0-9]' then
    perform durable._raise_cron(cron, 'day of month', format('%L is not understood', v_fields[4]),
      'The nearest weekday (W) and days before the last (L-3) do not exist here. It takes 1 to 31, L for the last '
      'day, lists, ranges and steps.');
  end if;
  v.days := case when v_fields[4] = '' then repeat('0', 31)::bit varying
    else durable._cron_field(cron, 'day of month', v_fields[4], 1, 31) end;

  if v_fields[6] = '?' then
    v_fields[6] := '*';
  elsif v_fields[6] ~* '#|l' then
    foreach v_item in array string_to_array(v_fields[6], ',') loop
      v_part := regexp_match(v_item, '^([[:alnum:]_]+)#([1-5])$');
      if v_part is null and v_item ~* '^([[:alnum:]_]+l|l[0-9])$' then
        v_part := array[regexp_replace(v_item, '^[lL]|[lL]$', ''), '0'];
      end if;
      if v_part is null then
        v_plain := v_plain || v_item;
      else
        v.nth_weekdays := v.nth_weekdays || 10 * (durable._cron_value(cron, 'day of week', v_part[1], 0, 6,
          durable._cron_weekdays()) % 7) + v_part[2]::integer;
      end if;
    end loop;
    v_fields[6] := array_to_string(v_plain, ',');
    if position('#' in v_fields[6]) > 0 then
      perform durable._raise_cron(cron, 'day of week', format('%L is not understood', v_fields[6]),
        'The number behind # is 1 to 5: 2#1 or tue#1 is the first Tuesday of the month.');
    end if;
  end if;
  v.weekdays := repeat(case when v_fields[6] = '' then '0000000'
    else durable._cron_field(cron, 'day of week', v_fields[6], 0, 6, durable._cron_weekdays())::text
    end, 6)::bit varying;
  return v;
end
$$;

-- The first day from p_from on that a line matches; null when there is none in 400 years, after which the calendar
-- repeats.
create function durable._cron_day(p_cron durable.cron, p_from date)
returns date language plpgsql immutable as $$
declare
  v_year integer := extract(year from p_from)::integer;
  v_month integer := extract(month from p_from)::integer;
  v_day integer := extract(day from p_from)::integer;
  v_last_year integer := v_year + 400;
  v_first date;
  v_length integer;
  v_weekday integer;
  v_bits bit varying;
  v_weekday_bits bit varying;
  v_nth integer;
  v_at integer;
begin
  if p_cron.any_day then
    return p_from;
  end if;
  while v_year <= v_last_year loop
    if get_bit(p_cron.months, v_month - 1) = 1 then
      v_first := make_date(v_year, v_month, 1);
      v_length := (v_first + interval '1 month')::date - v_first;
      v_weekday := extract(dow from v_first)::integer;
      v_bits := substring(p_cron.days from 1 for v_length);
      if p_cron.last_day then
        v_bits := set_bit(v_bits, v_length - 1, 1);
      end if;
      v_weekday_bits := substring(p_cron.weekdays from v_weekday + 1 for v_length);
      if p_cron.nth_weekdays is not null then
        foreach v_nth in array p_cron.nth_weekdays loop
          v_at := (v_nth / 10 - v_weekday + 7) % 7;
          v_at := v_at + 7 * case when v_nth % 10 = 0 then (v_length - 1 - v_at) / 7 else v_nth % 10 - 1 end;
          if v_at < v_length then
            v_weekday_bits := set_bit(v_weekday_bits, v_at, 1);
          end if;
        end loop;
      end if;
      v_bits := case when p_cron.either_day then v_bits | v_weekday_bits else v_bits & v_weekday_bits end;
      v_at := position(B'1' in substring(v_bits from v_day));
      if v_at > 0 then
        return v_first + (v_day + v_at - 2);
      end if;
    end if;
    v_day := 1;
    v_at := position(B'1' in substring(p_cron.months from v_month + 1));
    if v_at > 0 then
      v_month := v_month + v_at;
    else
      v_year := v_year + 1;
      v_month := position(B'1' in p_cron.months);
    end if;
  end loop;
  return null;
end
$$;

-- The first time on the wall, in whole seconds, from p_from on that a line matches; null when it never does.
create function durable._cron_wall(p_cron durable.cron, p_from timestamp)
returns timestamp language plpgsql immutable as $$
declare
  v_day date := durable._cron_day(p_cron, p_from::date);
  v_time integer;
  v_hour integer := 0;
  v_minute integer := 0;
  v_second integer := 0;
  v_at integer;
begin
  if v_day = p_from::date then
    v_time := floor(extract(epoch from p_from::time))::integer;
    v_hour := v_time / 3600;
    v_minute := v_time / 60 % 60;
    v_second := v_time % 60;
    if get_bit(p_cron.hours, v_hour) = 1 then
      if get_bit(p_cron.minutes, v_minute) = 1 then
        v_at := position(B'1' in substring(p_cron.seconds from v_second + 1));
        if v_at > 0 then
          return v_day + make_interval(secs => v_time + v_at - 1);
        end if;
      end if;
      v_at := position(B'1' in substring(p_cron.minutes from v_minute + 2));
      if v_at > 0 then
        return v_day + make_interval(secs => 3600 * v_hour + 60 * (v_minute + v_at)
          + position(B'1' in p_cron.seconds) - 1);
      end if;
    end if;
    v_at := position(B'1' in substring(p_cron.hours from v_hour + 2));
    if v_at = 0 then
      v_day := durable._cron_day(p_cron, v_day + 1);
    end if;
  end if;
  v_hour := case when v_at > 0 then v_hour + v_at else position(B'1' in p_cron.hours) - 1 end;
  return v_day + make_interval(secs => 3600 * v_hour + 60 * (position(B'1' in p_cron.minutes) - 1)
    + position(B'1' in p_cron.seconds) - 1);
end
$$;

-- When the clock of a zone changed, after p_from and up to p_until; there must be one change in between.
create function durable._clock_change(p_from timestamptz, p_until timestamptz, p_zone text)
returns timestamptz language plpgsql stable as $$
declare
  v_before interval := (p_from at time zone p_zone) - (p_from at time zone 'UTC');
  v_low bigint := floor(extract(epoch from p_from))::bigint;
  v_high bigint := ceil(extract(epoch from p_until))::bigint;
  v_middle bigint;
begin
  while v_high - v_low > 1 loop
    v_middle := (v_low + v_high) / 2;
    if (to_timestamp(v_middle) at time zone p_zone) - (to_timestamp(v_middle) at time zone 'UTC') = v_before then
      v_low := v_middle;
    else
      v_high := v_middle;
    end if;
  end loop;
  return to_timestamp(v_high);
end
$$;

-- The first instant after p_after at which a line is due; null when it never is.
create function durable._cron_next(
  p_cron durable.cron, p_after timestamptz, p_zone text, p_anchor timestamptz default 'epoch'
)
returns timestamptz language plpgsql stable as $$
declare
  v_offset interval;
  v_wall timestamp;
  v_due timestamptz;
  v_earlier timestamptz;
  v_change timestamptz;
begin
  if p_cron.every is not null then
    return p_anchor + make_interval(secs => p_cron.every
      * (floor(extract(epoch from p_after - p_anchor) / p_cron.every) + 1)::double precision);
  end if;
  v_wall := durable._cron_wall(p_cron, date_trunc('second', p_after at time zone p_zone) + interval '1 second');
  loop
    -- Of a time that the clock repeats, Postgres takes the second pass; of one that it skips, what the clock would have
    -- shown had it not changed.
    v_due := v_wall at time zone p_zone;
    if v_due is null then
      return null;
    elsif v_due at time zone p_zone <> v_wall then
      v_change := durable._clock_change(v_due - interval '24 hours', v_due, p_zone);
      if not p_cron.hourly then
        return v_change;
      end if;
      v_wall := durable._cron_wall(p_cron, v_change at time zone p_zone);
      continue;
    end if;
    v_earlier := v_due - interval '24 hours';
    v_offset := (v_earlier at time zone p_zone) - (v_earlier at time zone 'UTC');
    if v_due at time zone 'UTC' + v_offset = v_wall then
      exit;
    end if;
    v_earlier := (v_wall - v_offset) at time zone 'UTC';
    exit when v_earlier at time zone p_zone <> v_wall;
    if v_earlier > p_after then
      v_due := v_earlier;
      exit;
    end if;
    -- The first pass is over. Its times are not due again, except those of every hour.
    exit when p_cron.hourly;
    v_wall := durable._cron_wall(p_cron, v_wall + interval '1 second');
  end loop;

  if p_cron.hourly then
    -- Before the clock goes back, the second pass may come before the next time that is later on the wall.
    v_offset := (p_after at time zone p_zone) - (p_after at time zone 'UTC');
    v_earlier := least(v_due, p_after + interval '24 hours');
    if (v_earlier at time zone p_zone) - (v_earlier at time zone 'UTC') < v_offset then
      v_change := durable._clock_change(p_after, v_earlier, p_zone);
      v_wall := durable._cron_wall(p_cron, v_change at time zone p_zone);
      if v_wall < v_change at time zone 'UTC' + v_offset then
        v_due := least(v_due, v_change + (v_wall - v_change at time zone p_zone));
      end if;
    end if;
  end if;
  return v_due;
end
$$;

-- Whether it is the name of a zone. Postgres takes more for one: abbreviations, which have no summer time (in it, CET
-- is not the zone of that name), and offsets with the sign turned round (UTC+2 is two hours west).
create function durable._check_timezone(timezone text)
returns boolean language plpgsql stable as $$
begin
  if timezone = 'UTC' then
    return true;
  end if;
  if timezone ~ '^[[:alpha:]_-]+(/[[:alpha:]_-]+)+$' or timezone ~ '^Etc/GMT[-+]?[0-9]+$' then
    begin
      perform pg_catalog.timezone(_check_timezone.timezone, to_timestamp(0));
      return true;
    exception when invalid_parameter_value then
      null;
    end;
  end if;
  perform durable._require(false, format('timezone %L is not known', timezone),
    'Use the IANA name of a place, for example ''Europe/Berlin'', or ''UTC''; see select name from '
    'pg_timezone_names. Abbreviations such as CET and offsets such as UTC+2 are not accepted, for they do not follow '
    'the changes of the clock.');
  return false;
end
$$;

create function durable.cron_next(cron text, after timestamptz, timezone text default 'UTC')
returns timestamptz language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
declare
  v_next timestamptz;
begin
  if durable._check_timezone(timezone) and (after >= '0001-01-01 UTC' and after < '9000-01-01 UTC') is not true then
    perform durable._require(false,
      format('after must be a time between the years 1 and 8999, not %s', coalesce(after::text, 'NULL')),
      'Pass the time to count from.');
  end if;
  v_next := durable._cron_next(durable._parse_cron(cron), after, timezone);
  if v_next is null then
    perform durable._raise_cron(cron, null, 'it never falls due',
      'No year has a day that matches day of month and month.');
  end if;
  return v_next;
end
$$;
comment on function durable.cron_next(text, timestamptz, text) is
  'The first time after the given one at which a cron line is due. cron has five fields (minute, hour, day of month, '
  'month, day of week) or six, with seconds first; with names (jan, fri), lists, ranges, which may wrap around, '
  'steps, L for the last day of the month, fri#2 for the second Friday, 5L for the last one; or is @hourly, @daily, '
  '@midnight, @weekly, @monthly, @yearly or @annually; or an interval of whole seconds such as ''30 seconds'', '
  'counted from 1970 in UTC. When both day fields are restricted, either is enough. timezone is an IANA name. What is '
  'due in an hour that the clock skips is due when it has changed, and in a repeated hour the first time; lines for '
  'every hour follow the hours as they pass. Errors: WF005 for a line that is not understood or never falls due, an '
  'unknown time zone, or a time out of range.';
