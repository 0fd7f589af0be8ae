#!/usr/bin/env bash
# A worker in psql. It works until SIGTERM or Ctrl-C: DURABLE_DSN=postgresql://… ./worker.sh
set -u
cd "$(dirname "$0")"
# Unique among the living: the database tells workers apart by their names.
worker="psql:$(hostname):$$"
run_psql() { psql "$DURABLE_DSN" --no-psqlrc --quiet -v ON_ERROR_STOP=1 -v worker="$worker" "$@"; }

# The session of the worker: a psql that reads what this script writes to it.
exec 3> >(run_psql > /dev/null)

# Beside the work, for a step may take long.
# attach: takes a lock that lives as long as the session. When this script is killed there is nothing more to read, psql
#   ends, and what the worker held goes to others at once, instead of when its lease has run out. Again and again, for a
#   worker that was taken for dead comes back under a new number.
# heartbeat: renews the lease on all that the worker holds; due at least every third of the setting "lease".
# tick: does for all workers what time demands, and nothing while another worker is at it.
while kill -0 $$ 2> /dev/null; do
  echo "select durable.attach(:'worker', '{demo_psql}');"
  echo "select durable.heartbeat(:'worker');"
  echo "select durable.tick(worker => :'worker');"
  sleep 0.5
done >&3 &
session=$!

stopping=
trap 'stopping=yes' TERM INT
# The loop above ends with the session, and the worker with both: somebody else may be given what it holds.
while [ -z "$stopping" ] && kill -0 $session 2> /dev/null; do
  error=$(run_psql -f turn.sql 2>&1 > /dev/null)
  # 3 is an error in the script. After any other, a lost connection say, the next turn goes on where this one ended.
  if [ $? -eq 3 ] && [ -z "$stopping" ]; then
    echo "$error" >&2
    run_psql -v error="$error" -f failed.sql > /dev/null
  fi
  sleep 0.2
done

kill $session 2> /dev/null
# Gives back what is still held, for others to go on with at once.
run_psql > /dev/null <<< "select durable.leave(:'worker');"
