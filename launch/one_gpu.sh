#!/usr/bin/env bash
# Trains on one GPU, the first or that of CUDA_VISIBLE_DEVICES:
#   launch/one_gpu.sh --config=configs/densenet.py [--workdir=... --config.KEY=VALUE ...]
set -euo pipefail
gpus="${CUDA_VISIBLE_DEVICES-0}"
export CUDA_VISIBLE_DEVICES="${gpus%%,*}" JAX_PLATFORMS="${JAX_PLATFORMS:-cuda}"
exec python -m emnist_jax.main "$@"
