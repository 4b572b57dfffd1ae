"""The networks that the EMNIST Balanced study tried, with its recipes and with ours: the most valuable rows first.

    python -m emnist_jax.sweep --config=configs/sweeps/emnist.py --results=results
    python -m emnist_jax.sweep --config=configs/sweeps/emnist.py:pool --override=dataset.data_dir=FOLDER

It wants a GPU. `:pool` trains on the EMNIST pool instead of EMNIST Balanced, and says so in the names of its rows. It
has rows more, which one CPU core can run: the final DenseNet and LeNet-5 for 5 epochs of one recipe (about 80 and 8
minutes); these, ResNet-50, DenseNet-121 and most candidates for 1 epoch (2 to 90 minutes; with the study's stride);
VGG16 and the Wide ResNet for a fifth of one; and our network for digits and letters, which comes trained with the
package.
`reported` are accuracies on EMNIST Balanced: the study's are on all 18,800 validation images, if it gives them.
"""

from emnist_jax.config import experiment_name, row, sweep
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
UNKNOWN = "(of which images is not said)"
OURS = "(ours; prototypes judged by the pool's test images had a part in the recipe)"
# Experiment, seeds, reported, remark.
ROWS = (
    ("densenet_best.py", 3, None, OURS),
    ("densenet.py", 3, 89.18, "(validation, without transfer)"),
    ("lenet5.py", 3, 86.9, UNKNOWN),
    ("lenet5.py:rbf", 3, 86.1, UNKNOWN),
    ("resnet50.py", 3, 90.40, UNKNOWN),
    ("densenet121.py", 3, 89.3, "(validation)"),
    ("densenet.py:layer_1", 1, 88.65, "(validation)"),
    ("densenet.py:layer_2", 1, 85.39, "(validation)"),
    ("densenet.py:layer_3", 1, 88.96, "(validation)"),
    ("densenet.py:layer_4", 1, 88.3, "(validation)"),
    ("densenet.py:layer_4_2", 1, 88.94, "(validation)"),
    ("densenet.py:layer_4_3", 1, 88.69, "(validation)"),
    ("densenet.py:fixed", 1, None, ""),
    ("lenet5.py:fixed", 1, None, ""),
    ("resnet50.py:fixed", 1, None, ""),
    ("densenet121.py:fixed", 1, None, ""),
    *((f"candidates.py:{network},fixed", 1, None, "") for network in NETWORKS),
)


def get_config(variant: str = "balanced"):
    if variant not in ("balanced", "pool"):
        raise unknown("variant", variant, ("balanced", "pool"))
    if variant == "balanced":
        cnn = {"dataset.name": "emnist/balanced", "training.epochs": 20.0}
        return sweep(
            *(
                row(f"configs/{config}", seeds, None, None, reported, remark)
                for config, seeds, reported, remark in ROWS
            ),
            row("configs/mnist_cnn.py", 1, cnn, "mnist_cnn_balanced", 82.68, "(by the simple CNN's source)"),
        )
    pool = {"dataset.name": "emnist_pool"}
    rows = [
        row(f"configs/{config}", seeds, pool, f"{experiment_name(config)}_pool", remark=OURS * (remark == OURS))
        for config, seeds, _, remark in ROWS
    ]
    stride_2, without_stem = {"model.stem_stride": 2}, ("vgg16", "wide_resnet")
    shortened = (
        ("densenet.py:fixed", "densenet_fixed", 5, {}),
        ("lenet5.py:fixed", "lenet5_fixed", 5, {}),
        ("densenet.py:fixed", "densenet_fixed", 1, {}),
        ("lenet5.py:fixed", "lenet5_fixed", 1, {}),
        ("resnet50.py:fixed", "resnet50_fixed_stem_stride_2", 1, stride_2),
        ("densenet121.py:fixed", "densenet121_fixed_stem_stride_2", 1, stride_2),
        *(
            (f"candidates.py:{network},fixed", f"candidates_{network}_fixed_stem_stride_2", 1, stride_2)
            for network in NETWORKS
            if network not in without_stem
        ),
        # With all of their pixels, an epoch takes several times as long.
        *((f"candidates.py:{network},fixed", f"candidates_{network}_fixed", 0.2, {}) for network in without_stem),
    )
    rows[2:2] = [
        row(f"configs/{config}", 1, {**pool, "training.epochs": epochs, **others}, f"{name}_pool_epochs_{epochs}")
        for config, name, epochs, others in shortened
    ]
    rows.append(row("configs/characters.py", 1, pool, "characters_pool", remark=OURS))
    cnn = {**pool, "training.epochs": 20.0}
    return sweep(*rows, row("configs/mnist_cnn.py", 1, cnn, "mnist_cnn_pool"))
