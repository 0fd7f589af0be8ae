"""Benchmarks of durable against other systems that run durable workflows on Postgres."""
