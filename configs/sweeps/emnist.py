"""The networks that the EMNIST Balanced study tried, with its recipes and with ours: the most valuable rows first.

    python -m emnist_jax.sweep --config=configs/sweeps/emnist.py --results=results
    python -m emnist_jax.sweep --config=configs/sweeps/emnist.py:pool --override=dataset.data_dir=FOLDER

It wants a GPU. `:pool` trains on the EMNIST pool instead of EMNIST Balanced, and says so in the names of its rows. It
has one more row: the final DenseNet for 5 epochs, 81 minutes of one CPU core.
`reported` are the study's accuracies on all 18,800 validation images, if it gives them, or else on 1,024 test images.
"""

from emnist_jax.config import row, sweep
from emnist_jax.errors import unknown

NETWORKS = (
    "mobilenet",
    "mobilenet_v2",
    "shufflenet",
    "shufflenet_v2",
    "dpn",
    "vgg16",
    "wide_resnet",
    "efficientnet_b1",
)
# Experiment, seeds, reported, remark.
ROWS = (
    ("densenet_best.py", 3, None, "(ours)"),
    ("densenet.py", 3, 89.18, "(validation, without transfer)"),
    ("lenet5.py", 3, 86.9, ""),
    ("lenet5.py:rbf", 3, 86.1, ""),
    ("resnet50.py", 3, 90.40, "(1,024 test images)"),
    ("densenet121.py", 3, 89.3, "(validation)"),
    ("densenet.py:layer_1", 1, 88.65, "(validation)"),
    ("densenet.py:layer_2", 1, 85.39, "(validation)"),
    ("densenet.py:layer_3", 1, 88.96, "(validation)"),
    ("densenet.py:layer_4", 1, 88.3, "(validation)"),
    ("densenet.py:layer_4_2", 1, 88.94, "(validation)"),
    ("densenet.py:layer_4_3", 1, 88.69, "(validation)"),
    ("characters.py", 1, None, "(ours)"),
    ("densenet.py:fixed", 1, None, ""),
    ("resnet50.py:fixed", 1, None, ""),
    ("densenet121.py:fixed", 1, None, ""),
    *((f"candidates.py:{network},fixed", 1, None, "") for network in NETWORKS),
)


def get_config(variant: str = "balanced"):
    if variant not in ("balanced", "pool"):
        raise unknown("variant", variant, ("balanced", "pool"))
    on_pool = {"dataset.name": "emnist_pool"} if variant == "pool" else {}
    rows = [
        row(f"configs/{config}", seeds, on_pool, reported=reported, remark=remark)
        for config, seeds, reported, remark in ROWS
    ]
    if on_pool:
        rows.insert(2, row("configs/densenet.py:fixed", 1, {**on_pool, "training.epochs": 5}, remark="(5 epochs)"))
    return sweep(*({**each, "name": each["name"].replace("name_emnist_pool", "pool")} for each in rows))
