-- The clock of the engine. Nothing else in the schema reads the time, so that a test can replace this one function with one
-- that adds an offset, and everything moves with it.
--
-- The planner puts the body in place of the call. Read it into a variable, once in a call and never in a condition: it is
-- volatile, which keeps a condition from using an index and a function from being inlined.
create function durable._now()
returns timestamptz language sql volatile parallel safe as $$ select pg_catalog.clock_timestamp() $$;

-- The same for views: stable, because the planner cannot look into a part of a view that has a volatile column, and would
-- read all of it to answer for a few rows.
create function durable._now_in_view()
returns timestamptz language plpgsql stable parallel safe as $$ begin return durable._now(); end $$;

-- Whether a time that was once now is later than now: the clock was set back since. A second is for those who read the clock just
-- before others. Stable, as its addition is: else it is not inlined.
create function durable._is_ahead(at timestamptz, now timestamptz)
returns boolean language sql stable parallel safe as $$ select at > now + interval '1 second' $$;
