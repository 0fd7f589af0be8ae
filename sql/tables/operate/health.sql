create type durable.finding as ("check" text, state text, since timestamptz, detail text, remedy text);
comment on type durable.finding is
  'What durable.health() found: what it looked at, ok, warning or critical, since when (null when it cannot tell, or all is well), '
  'what it saw, and what to do (null when all is well).';
