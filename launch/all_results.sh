#!/usr/bin/env bash
# Makes the rows of the tables on one GPU, the most valuable first, for so many minutes; the next call goes on:
#   launch/all_results.sh 30 [--override=dataset.data_dir=FOLDER ...]
# POOL=FOLDER trains on the EMNIST pool in that folder instead of EMNIST Balanced.
# Exit code 75: the minutes are over, or it was stopped. 2: a row has failed, as its table says, and the others are made.
set -euo pipefail
minutes=${1:?minutes} started=$SECONDS
shift
emnist=(--config=configs/sweeps/emnist.py "$@")
if [[ -n ${POOL:-} ]]; then emnist=(--config=configs/sweeps/emnist.py:pool "$@" "--override=dataset.data_dir=$POOL"); fi

sweep() {
  local code=0 left=$((minutes - (SECONDS - started) / 60))
  python -m emnist_jax.sweep "$@" --results=results --minutes="$left" || code=$?
  if ((code)); then ended=$code; fi
  ((code == 0 || code == 2))
}

ended=0
if sweep --config=configs/sweeps/mnist.py "$@"; then sweep "${emnist[@]}" || true; fi
python -m emnist_jax.results
exit "$ended"
