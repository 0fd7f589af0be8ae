-- durable @VERSION@: durable workflows in Postgres. Assembled from sql/ by make; do not edit.
-- For databases where no extension can be added: run this file once, as any role that may create a schema.
--   psql -v ON_ERROR_STOP=1 -1 -f durable.sql
-- So that nothing is looked up where others may have put a namesake. It holds until the end of the transaction, of which
-- this file should be the whole.
set local search_path = pg_catalog, pg_temp;
