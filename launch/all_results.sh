#!/usr/bin/env bash
# Makes the rows of the tables on one GPU, the most valuable first, for so many minutes; the next call goes on:
#   launch/all_results.sh 30 [--override=dataset.data_dir=FOLDER ...]
# POOL=FOLDER trains on the EMNIST pool in that folder instead of EMNIST Balanced.
set -euo pipefail
minutes=${1:?minutes} started=$SECONDS
shift
emnist=(--config=configs/sweeps/emnist.py)
if [[ -n ${POOL:-} ]]; then emnist=(--config=configs/sweeps/emnist.py:pool "--override=dataset.data_dir=$POOL"); fi
for sweep in --config=configs/sweeps/mnist.py "${emnist[*]}"; do
  read -ra flags <<<"$sweep"
  left=$((minutes - (SECONDS - started) / 60))
  # Code 2: a row has failed, as the table says, and the next sweep goes on. Code 75: the minutes are over.
  python -m emnist_jax.sweep "${flags[@]}" --results=results --minutes="$left" "$@" || (($? == 2))
done
python -m emnist_jax.results
