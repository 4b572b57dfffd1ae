"""The rows of MNIST, EMNIST and the transfers, for one GPU: the first seed of all rows, then the second, and so on.

    launch/all_results.sh --minutes=N
    python -m emnist_jax.sweep --config=configs/sweeps/all.py:pool --results=results --override=dataset.data_dir=FOLDER

`:pool` trains on the EMNIST pool instead of EMNIST Balanced, and leaves out the transfers.
"""

from pathlib import Path

from emnist_jax.command_line import read_sweep
from emnist_jax.config import sweep


def get_config(variant: str = "balanced"):
    sweeps = ["mnist.py", f"emnist.py:{variant}", *["study.py:transfer"] * (variant == "balanced")]
    rows = [row for name in sweeps for row in read_sweep(str(Path(__file__).parent / name)).rows]
    runs = [{**row, "seeds": (seed,)} for row in rows for seed in row["seeds"]]
    return sweep(*sorted(runs, key=lambda run: run["seeds"]))
