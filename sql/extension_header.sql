-- durable @VERSION@: durable workflows in Postgres. Assembled from sql/ by make; do not edit.
\echo Use "CREATE EXTENSION durable" to load this file. \quit
-- So that nothing is looked up where others may have put a namesake.
set local search_path = pg_catalog, pg_temp;
