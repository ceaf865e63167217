#!/usr/bin/env bash
# Offers to fetch a set of models, once: asks at a terminal, elsewhere says the command. Says nothing when they are here.
set -euo pipefail
program=$1 set=$2 asked=$3

"$program" pull --dry-run --json "$set" | grep -q '"installed":false' || exit 0
if [ ! -e "$asked" ] && [ -t 0 ] && [ -t 2 ]; then
    mkdir -p "$(dirname "$asked")"
    touch "$asked"
    # Sizes and licences are shown, and one question asked. What is served does not wait for a yes.
    "$program" pull "$set" && exit 0
fi
printf 'more models can be had: %s pull %s\n' "$program" "$set"
