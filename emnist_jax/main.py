"""Trains and tests: `python -m emnist_jax.main --config=configs/densenet.py [--config.KEY=VALUE ...]`."""

import faulthandler
import os
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from emnist_jax import command_line
from emnist_jax.config import check_read

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; default: runs/NAME_OF_THE_CONFIG", allow_override=True
)
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Train together with other processes; SLURM and MPI name them")
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0, if neither SLURM nor MPI is used"
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this one is, from 0", lower_bound=0)


def main(config) -> None:
    # What the experiment file sets may be for an optimizer or a schedule that an override has replaced.
    check_read(config, config_flags.get_override_values(flags.FLAGS["config"]))
    # Imported late: flag errors should not wait for it.
    from emnist_jax.errors import UserError
    from emnist_jax.training import hosts, loop

    if _COORDINATOR.value and not hosts.is_address(_COORDINATOR.value):
        raise UserError(f"--coordinator_address={_COORDINATOR.value} is not HOST:PORT")
    if _DISTRIBUTED.value:
        # JAX aborts if another process is lost: absl's dump of all threads would bury its message.
        faulthandler.disable()
        hosts.join(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    elif passed := [flag.name for flag in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID) if flag.value is not None]:
        raise UserError(f"--{passed[0]} is for several processes: pass --distributed, too")
    hosts.check_devices()
    workdir = Path(os.path.expanduser(_WORKDIR.value or f"runs/{command_line.config_name()}"))
    loop.train_and_evaluate(config, workdir)


if __name__ == "__main__":
    command_line.run(main)
