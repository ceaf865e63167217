#!/usr/bin/env bash
# Serves, asks a model one question through the command line, prints the answer, and keeps serving until it is stopped.
set -euo pipefail
program=$1 model=$2 question=$3

# In a session of its own: Ctrl+C goes to this script alone, which stops the server once. A second one stops it at once.
setsid "$program" serve &
server=$!
stop() {
    kill -TERM $server 2>/dev/null || true
    wait $server || true
}
# Ctrl+C is how it is meant to end.
trap 'stop; exit 0' INT TERM HUP
trap stop EXIT

for _ in $(seq 200); do
    kill -0 $server 2>/dev/null || { wait $server; exit $?; }
    "$program" ps --json >/dev/null 2>&1 && break
    sleep 0.1
done
printf '\n>>> %s\n' "$question"
# Standard input is not the question; in CI it may be a pipe that never ends.
"$program" run "$model" "$question" --set temperature=0 </dev/null
printf '\nserving; try another: %s run %s "…"\n' "$program" "$model"
wait $server
