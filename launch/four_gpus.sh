#!/usr/bin/env bash
# Trains on four GPUs of one host, the first or those of CUDA_VISIBLE_DEVICES, which share each batch:
#   launch/four_gpus.sh --config=configs/densenet.py [--workdir=... --config.KEY=VALUE ...]
set -euo pipefail
export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES-0,1,2,3}" JAX_PLATFORMS="${JAX_PLATFORMS:-cuda}"
exec python -m emnist_jax.main "$@"
