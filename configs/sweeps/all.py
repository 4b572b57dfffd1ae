"""The rows of MNIST, EMNIST and the transfers, for one GPU, in the order of their value.

The first seed of each row comes before the second. Of EMNIST, the rows with several seeds come first, then the
transfers, the study's best first.

    launch/all_results.sh --minutes=N
    python -m emnist_jax.sweep --config=configs/sweeps/all.py:pool --results=results --override=dataset.data_dir=FOLDER

`:pool` trains on the EMNIST pool instead of EMNIST Balanced, and leaves out the transfers.
"""

from pathlib import Path

from emnist_jax.command_line import read_sweep
from emnist_jax.config import sweep


def get_config(variant: str = "balanced"):
    sweeps = ("mnist.py", f"emnist.py:{variant}", "study.py:transfer")
    mnist, emnist, transfers = (read_sweep(str(Path(__file__).parent / name)).rows for name in sweeps)
    transfers = sorted(transfers, key=lambda row: -row["reported"]) if variant == "balanced" else []
    several = [row for row in emnist if len(row["seeds"]) > 1]
    once = [row for row in emnist if len(row["seeds"]) == 1]
    rows = (*mnist, *several, *transfers, *once)
    runs = [{**row, "seeds": (seed,)} for row in rows for seed in row["seeds"]]
    return sweep(*sorted(runs, key=lambda run: run["seeds"]))
