-- What the database must have, and the schema. In one statement: whoever runs this file without a transaction goes on after an
-- error, and then nothing of what follows has a place.
do $$
begin
  -- Names, keys and JSON are stored as they come, and other encodings lack most characters.
  if getdatabaseencoding() <> 'UTF8' then
    raise exception using errcode = 'feature_not_supported',
      message = format('durable needs a database with the encoding UTF8; %I has %s', current_database(), getdatabaseencoding()),
      detail = 'Nothing was installed.',
      hint = 'Install it into another one: create database NAME encoding ''UTF8'' template template0, and add locale ''C'' where '
        'the locale of the server goes with another encoding.';
  end if;
  -- An extension that is being created has made its schema, and nothing in it.
  if not exists (select from pg_extension where extname = 'durable') or to_regproc('durable.version') is not null then
    create schema durable;
  end if;
end
$$;
