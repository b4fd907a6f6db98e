#!/bin/bash
export A=1
export B='a '"'"'quoted'"'"' "name"; $(touch x)
and `more`'
export JOBS_FLUX_CPUS_PER_RANK=7
JOBS_FLUX_ID="$(flux job id --to=dec "$(flux getattr jobid)")"
JOBS_FLUX_NODES="$(flux getattr hostlist)"
JOBS_FLUX_URI="$(flux getattr parent-uri)"
export JOBS_FLUX_ID JOBS_FLUX_NODES JOBS_FLUX_URI
trap '' HUP
module load rocm
exec python -c 'a '"'"'quoted'"'"' "name"; $(touch x)
and `more`'
