#!/usr/bin/env bash
# Times the study's DenseNet and a tiny network beside PyTorch on one GPU: launch/benchmark_gpu.sh [--rounds=3 ...]
# The figures go to results/speed/, and from there into docs/speed.md: python -m emnist_jax.results
set -euo pipefail
export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda}"
out="${OUT:-results/speed}"
mkdir -p "$out"
python -m emnist_jax.benchmark --models=densenet --batch_sizes=1024,2048,4096 --dtype=bfloat16 --out="$out/gpu_densenet.json" "$@"
python -m emnist_jax.benchmark --models=mnist_squeeze_10 --batch_sizes=128,1024 --out="$out/gpu_tiny.json" "$@"
