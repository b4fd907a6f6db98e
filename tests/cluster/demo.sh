#!/bin/bash
# The pipeline as jobs of a real Slurm: brings one up, runs the workflow on it, shows what accounting says, takes it down.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
ROOT=$(mktemp -d /tmp/cluster-demo.XXXXXX)
trap '"$here/down.sh" "$ROOT"; rm -rf "$ROOT"' EXIT
"$here/up.sh" "$ROOT"
# shellcheck source=/dev/null
source "$ROOT/env.sh"
code=0
"$here/../../.venv/bin/snakemake" --profile site_configs/slurm --configfile workflow/config/cluster_demo.yaml "$@" || code=$?
sleep 2 # slurmdbd writes a job's end with a delay
sacct --allocations --format=JobID,JobName%24,State,ExitCode,NNodes,NTasks,NodeList%14,Elapsed
exit $code
