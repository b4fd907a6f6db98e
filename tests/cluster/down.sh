#!/bin/bash
# Ends the cluster of up.sh, by the process ids it wrote, and removes its folder (--keep: leaves the folder).
#   tests/cluster/down.sh [ROOT] [--keep]
ROOT=$(realpath -m "${1:-$(dirname "$0")/../../.cluster}")
[ -d "$ROOT/etc" ] || exit 0
export SLURM_CONF=$ROOT/etc/slurm.conf
jobs=$(timeout 5 squeue -h -o %A 2>/dev/null | sort -u)
# shellcheck disable=SC2086
[ -z "$jobs" ] || { timeout 5 scancel --signal=KILL --full $jobs; timeout 5 scancel $jobs; sleep 1; } 2>/dev/null

stop() { # asks all at once, then waits
  pids=""
  for file in "$@"; do [ -f "$file" ] && pid=$(cat "$file") && kill "$pid" 2>/dev/null && pids="$pids $pid"; done
  for _ in $(seq 100); do
    alive=""
    for pid in $pids; do kill -0 "$pid" 2>/dev/null && ! grep -q '^State:.Z' "/proc/$pid/status" && alive="$alive $pid"; done
    [ -z "$alive" ] && return 0
    sleep 0.1
  done
  # shellcheck disable=SC2086
  kill -9 $alive
}
stop "$ROOT"/run/slurmd-*.pid "$ROOT/run/slurmctld.pid"
stop "$ROOT/run/slurmdbd.pid"
stop "$ROOT/db/mariadbd.pid" "$ROOT/run/munged.pid"
rm -f "$ROOT/env.sh"
[ "${2:-}" = --keep ] || rm -rf "$ROOT"
