-- durable @VERSION@: durable workflows in Postgres. Assembled from sql/ by make; do not edit.
-- For databases where no extension can be added: run this file once, as any role that may create a schema.
--   psql -v ON_ERROR_STOP=1 -1 -f durable.sql
create schema durable;
