#!/usr/bin/env bash
# Runs a sweep as a job array, one GPU a task, which takes its share of the runs: sbatch --array=0-7 launch/slurm_sweep.sh
#   --config=configs/sweeps/mnist.py [--results=FOLDER --override=KEY=VALUE ...] --workdir=FOLDER_THAT_ALL_NODES_SEE
# A task that was stopped or killed queues itself again, at most $MAX_RESTARTS (20) times.
#SBATCH --job-name=emnist_jax_sweep
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
export JAX_PLATFORMS="${JAX_PLATFORMS:-cuda}"
: "${SLURM_ARRAY_TASK_ID:?pass --array=0-7 to sbatch}"
if ((SLURM_ARRAY_TASK_MAX - SLURM_ARRAY_TASK_MIN >= SLURM_ARRAY_TASK_COUNT)); then
  echo "the tasks share the runs by their numbers: pass --array=0-7 to sbatch, without gaps" >&2
  exit 2
fi
shard=$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN))/$SLURM_ARRAY_TASK_COUNT
code=0
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" python -m emnist_jax.sweep --shard="$shard" "$@" || code=$?
# As in slurm.sh. The number is that of this task alone.
case $code in
  75 | 137 | 143)
    if ((${SLURM_RESTART_COUNT:-0} < ${MAX_RESTARTS:-20})); then
      scontrol requeue "$SLURM_JOB_ID"
    else
      echo "started again ${SLURM_RESTART_COUNT:-0} times: the same command resumes" >&2
    fi
    ;;
esac
exit "$code"
