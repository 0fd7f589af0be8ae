-- Data that pg_dump must keep although the tables belong to the extension. Partitions are ordinary tables to it.
select pg_catalog.pg_extension_config_dump('durable.ready_seq', '');
select pg_catalog.pg_extension_config_dump('durable.setting_overrides', '');
select pg_catalog.pg_extension_config_dump('durable.retention_rules', '');
select pg_catalog.pg_extension_config_dump('durable.queues', 'where queue <> ''default''');
select pg_catalog.pg_extension_config_dump('durable.lanes', 'where (queue, priority) <> (''default'', 0)');
select pg_catalog.pg_extension_config_dump('durable.workers', '');
select pg_catalog.pg_extension_config_dump('durable.workers_worker_id_seq', '');
select pg_catalog.pg_extension_config_dump('durable.live_workflows', '');
select pg_catalog.pg_extension_config_dump('durable.workflow_keys', '');
select pg_catalog.pg_extension_config_dump('durable.open_steps', '');
select pg_catalog.pg_extension_config_dump('durable.schedules', '');
select pg_catalog.pg_extension_config_dump('durable.schedule_firings', '');
select pg_catalog.pg_extension_config_dump('durable.schedule_backfills', '');
select pg_catalog.pg_extension_config_dump('durable.schedule_backfills_backfill_id_seq', '');
select pg_catalog.pg_extension_config_dump('durable.waits', '');
select pg_catalog.pg_extension_config_dump('durable.messages', '');
select pg_catalog.pg_extension_config_dump('durable.messages_seq_seq', '');
select pg_catalog.pg_extension_config_dump('durable.events', '');
