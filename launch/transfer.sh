#!/usr/bin/env bash
# Pretrains the DenseNet and fine-tunes it on EMNIST Balanced: the study's transfer_1 to transfer_4. The same command resumes.
#   launch/transfer.sh 2 runs/transfer_2 [--config.KEY=VALUE ...]
# The flags hold for both halves. SETS=synthetic takes rendered images instead of EMNIST's.
set -euo pipefail
variant=${1:?1, 2, 3 or 4} folder=${2:?folder of the two runs} sets=${SETS:-emnist}
shift 2
source=bymerge network=densenet.py
if [[ $variant == 3 ]]; then source=byclass; fi
if [[ $variant == 4 ]]; then network=densenet.py:layer_4_2; fi
stopped=0
trap 'stopped=1 interrupted=1; kill -TERM $! 2>/dev/null || true' TERM INT HUP
train() {
  if ((stopped)); then exit 75; fi
  python -m emnist_jax.main "$@" &
  while true; do
    interrupted=0 code=0
    wait $! || code=$?
    ((interrupted)) || return "$code" # a signal ends the waiting, not the training, which saves its state first
  done
}

train --config="configs/densenet.py:pretrain_$variant" --workdir="$folder/pretrained" \
  --config.dataset.name="$sets/$source" --config.transfer.target="$sets/balanced" "$@"
train --config="configs/$network" --workdir="$folder/fine_tuned" \
  --config.dataset.name="$sets/balanced" --config.init_from="$folder/pretrained" "$@"
