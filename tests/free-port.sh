#!/usr/bin/env bash
# Fails when another program has the address that `backplane serve` would take: better before a long build than after it.
set -euo pipefail

state=${BACKPLANE_STATE:-${XDG_STATE_HOME:-${HOME:-}/.local/state}/backplane}
file=${BACKPLANE_CONFIG:-$state/backplane.toml}
configured=$(sed -n 's/^ *address *= *"\([^"]*\)".*/\1/p' "$file" 2>/dev/null | head -n 1) || true
address=${BACKPLANE_ADDR:-${BACKPLANE__SERVER__ADDRESS:-${configured:-127.0.0.1:8484}}}
address=${address#*://} address=${address%%/*}
host=${address%:*} port=${address##*:}
case $host in 0.0.0.0 | '[::]') host=127.0.0.1 ;; esac
host=${host#[} host=${host%]}

# A connection, not a listening socket: bash can make no other.
[ "$port" != 0 ] && (exec 3<>"/dev/tcp/$host/$port") 2>/dev/null || exit 0
cat >&2 <<END
error: $address is in use by another program
 next: stop it (\`backplane stop --server\` if it is a Backplane), or take another port:
       BACKPLANE__SERVER__ADDRESS=127.0.0.1:8585 make run
END
exit 1
