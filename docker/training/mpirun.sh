#!/bin/sh
# Processes by Open MPI, which only starts them: docker/training/mpirun.sh HOSTFILE
# The first host of the file has rank 0. On one machine: mpirun -np 2 train ...
set -eu
: "${DATA:=/shared/lima}"
first=$(awk '!/^#/ && NF { print $1; exit }' "$1")

exec mpirun --hostfile "$1" --map-by node -x MASTER_ADDR="$first" -x MASTER_PORT="${MASTER_PORT:-29500}" train \
    --base "$DATA/base" --data "$DATA/train.jsonl" --out "$DATA/out" --save-every 10
