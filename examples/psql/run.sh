#!/usr/bin/env bash
# The example from its start to its end: DURABLE_DSN=postgresql://… ./run.sh
set -eu
cd "$(dirname "$0")"
run_psql() { psql "$DURABLE_DSN" --no-psqlrc --quiet -v ON_ERROR_STOP=1 "$@"; }

PGOPTIONS="-c client_min_messages=warning" run_psql -f schema.sql
./worker.sh &
worker=$!
trap 'kill $worker; wait $worker' EXIT
run_psql -f story.sql
