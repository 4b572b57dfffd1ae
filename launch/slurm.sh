#!/usr/bin/env bash
# Trains on nodes of four GPUs, until it is done: sbatch [--nodes=2 --time=8:00:00 ...] launch/slurm.sh
#   --config=configs/densenet.py [--config.KEY=VALUE ...] --workdir=FOLDER_THAT_ALL_NODES_SEE
# A job that was stopped, or that lost a process, queues itself again, at most $MAX_RESTARTS (20) times.
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
# Stopped, aborted by JAX, killed, or stopped before Python had started. SLURM itself requeues jobs whose node fails.
# A trap would also catch scancel.
case $code in
  75 | 134 | 137 | 143)
    if ((${SLURM_RESTART_COUNT:-0} < ${MAX_RESTARTS:-20})); then
      scontrol requeue "$SLURM_JOB_ID"
    else
      echo "started again ${SLURM_RESTART_COUNT:-0} times: the same command resumes" >&2
    fi
    ;;
esac
exit "$code"
