#!/usr/bin/env bash
# Makes the rows of the tables on one GPU, the first or that of CUDA_VISIBLE_DEVICES; the next call goes on:
#   launch/all_results.sh [--minutes=N] [--override=dataset.data_dir=FOLDER ...]
# EMNIST=pool trains on the EMNIST pool instead of EMNIST Balanced. JOBS=N runs N rows on the GPU at once.
# No row begins after N minutes. Exit code 75: they are over, or it was stopped. 2: a row has failed, as its table says,
# and the others are made.
set -euo pipefail
jobs=${JOBS:-1} ended=0 stopped=0 children=()
gpus=${CUDA_VISIBLE_DEVICES-0}
export CUDA_VISIBLE_DEVICES=${gpus%%,*} JAX_PLATFORMS="${JAX_PLATFORMS:-cuda}"
if ((jobs > 1)); then
  unset XLA_PYTHON_CLIENT_MEM_FRACTION # the same by its older name: JAX takes one of them
  export XLA_CLIENT_MEM_FRACTION=.$(printf %02d $((90 / jobs)))
fi
trap 'stopped=1 interrupted=1; kill -TERM $(jobs -p) 2>/dev/null || true' TERM INT HUP
for ((job = 0; job < jobs && !stopped; job++)); do
  python -m emnist_jax.sweep --config="configs/sweeps/all.py:${EMNIST:-balanced}" --results=results --workdir=runs/all \
    --shard="$job/$jobs" "$@" &
  children+=($!)
done
for child in "${children[@]}"; do
  while true; do
    interrupted=0 code=0
    wait "$child" || code=$?
    ((interrupted)) || break # a signal ends the waiting, not the child
  done
  if ((code > ended)); then ended=$code; fi
done
if ((stopped)); then ended=75; fi
python -m emnist_jax.results
exit "$ended"
