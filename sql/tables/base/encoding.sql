-- Names, keys and JSON are stored as they come, and other encodings lack most characters.
do $$
begin
  if getdatabaseencoding() <> 'UTF8' then
    raise exception using errcode = 'feature_not_supported',
      message = format('durable needs a database with the encoding UTF8; %I has %s', current_database(), getdatabaseencoding()),
      detail = 'Nothing was installed.',
      hint = 'Install it into another one: create database NAME encoding ''UTF8'' template template0, and add locale ''C'' where '
        'the locale of the server goes with another encoding.';
  end if;
end
$$;
