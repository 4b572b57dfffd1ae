#!/usr/bin/env bash
# Makes the rows of the tables on one GPU, the first or that of CUDA_VISIBLE_DEVICES; the next call goes on:
#   launch/all_results.sh [--minutes=N] [--override=dataset.data_dir=FOLDER ...]
# EMNIST=pool trains on the EMNIST pool instead of EMNIST Balanced, and measures at the end what a leak is worth to the
# DenseNet. JOBS=N runs N rows on the GPU at once.
# No row begins after N minutes. Exit code 75: they are over, or it was stopped. 2: a row has failed, as its table says,
# and the others are made; or all are, and the tables cannot be.
set -euo pipefail
jobs=${JOBS:-1} emnist=${EMNIST:-balanced} leak=results/leak/densenet.json ended=0 stopped=0 children=()
gpus=${CUDA_VISIBLE_DEVICES-0}
export CUDA_VISIBLE_DEVICES=${gpus%%,*} JAX_PLATFORMS="${JAX_PLATFORMS:-cuda}"
if ((jobs > 1)); then
  unset XLA_PYTHON_CLIENT_MEM_FRACTION # the same by its older name: JAX takes one of them
  export XLA_CLIENT_MEM_FRACTION=.$(printf %02d $((90 / jobs)))
fi
trap 'stopped=1 interrupted=1; kill -TERM $(jobs -p) 2>/dev/null || true' TERM INT HUP
for ((job = 0; job < jobs && !stopped; job++)); do
  python -m emnist_jax.sweep --config="configs/sweeps/all.py:$emnist" --results=results --workdir=runs/all \
    --shard="$job/$jobs" "$@" &
  children+=($!)
done
wait_for() {
  while true; do
    interrupted=0 code=0
    wait "$1" || code=$?
    ((interrupted)) || break # a signal ends the waiting, not the child
  done
  if ((code > ended)); then ended=$code; fi
}
for child in "${children[@]}"; do wait_for "$child"; done
if [[ $emnist == pool && ! -e $leak ]] && ((!ended && !stopped)); then
  for argument; do
    if [[ $argument == --override=dataset.data_dir=* ]]; then folder=${argument##*=}; fi
  done
  python launch/leak.py --pool="${folder:?pass --override=dataset.data_dir=FOLDER}" --model=densenet --out="$leak" &
  wait_for $!
fi
if ((stopped)); then ended=75; fi
python -m emnist_jax.results || ((ended)) || ended=2
exit "$ended"
