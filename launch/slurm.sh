#!/usr/bin/env bash
# Trains on nodes of four GPUs, until it is done: sbatch [--nodes=2 --time=8:00:00 ...] launch/slurm.sh
#   --config=configs/densenet.py [--config.KEY=VALUE ...] --workdir=FOLDER_THAT_ALL_NODES_SEE
#SBATCH --job-name=emnist_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=4
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
# Not --gpus-per-task: each task sees all GPUs of its node, and JAX takes the one of SLURM_LOCALID.
set -euo pipefail
export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda}"
code=0
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=0 \
  python -m emnist_jax.main --distributed "$@" || code=$?
# Stopped and saved. With a trap, scancel too would get here; nodes that fail are SLURM's to requeue.
if ((code == 75)); then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
