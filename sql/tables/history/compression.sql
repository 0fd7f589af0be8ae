-- Inputs and outputs of more than a few hundred bytes are compressed when they are first stored, and moved as they are after
-- that. Where the server was built with lz4 that takes a third to two thirds of the time that Postgres's own method takes, and
-- some more room; decision 0011 has the figures. Partitions have it from the shapes that they are made after.
do $$
begin
  if exists (select from pg_catalog.pg_settings s where s.name = 'default_toast_compression' and 'lz4' = any(s.enumvals)) then
    alter table durable.live_workflows
      alter column input set compression lz4, alter column error set compression lz4;
    alter table durable.finished_workflows_shape
      alter column input set compression lz4, alter column output set compression lz4, alter column error set compression lz4;
    alter table durable.checkpoints_shape
      alter column output set compression lz4, alter column error set compression lz4;
  end if;
end
$$;
