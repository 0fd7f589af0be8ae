-- durable @VERSION@: durable workflows in Postgres. Assembled from sql/ by make; do not edit.
\echo Use "CREATE EXTENSION durable" to load this file. \quit
