"""Every MNIST network of the sources with its own recipe, and networks of ours: the most valuable runs first.

    python -m emnist_jax.sweep --config=configs/sweeps/mnist.py --results=results

About twenty hours on two CPU cores, but for `mnist_best`, the last, which wants a GPU. The sources report their best
test epoch; the simple CNN's reports its last.
"""

from functools import partial

from emnist_jax.config import row, sweep

SQUEEZE = {1: 99.01, 2: 98.55, 3: 98.86, 4: 99.29, 5: 99.22, 6: 99.35, 7: 99.20, 8: 99.26, 9: 99.45, 10: 99.43}
GAP = {"v1": 98.78, "v2": 98.45, "v3": 99.12, "v4": 99.07, "v5": 99.44}
ONECYCLE = {"reported": 99.38, "remark": "(99.33 in the last epoch)"}


def get_config():
    squeeze = {i: partial(row, f"configs/mnist_squeeze.py:{i}", reported=top1) for i, top1 in SQUEEZE.items()}
    gap = {version: partial(row, f"configs/mnist_gap.py:{version}", reported=top1) for version, top1 in GAP.items()}
    onecycle = partial(row, "configs/mnist_onecycle.py", **ONECYCLE)
    source = partial(row, "configs/mnist_onecycle.py:source", **ONECYCLE)
    cnn = partial(row, "configs/mnist_cnn.py")
    small, mini, tiny, nano = (
        partial(row, f"configs/mnist_small.py{variant}", remark="(ours)") for variant in ("", ":mini", ":tiny", ":nano")
    )
    best = (squeeze.pop(10), small, mini, gap.pop("v5"), onecycle, squeeze.pop(9), squeeze.pop(6), tiny, nano)
    rest = (source, *squeeze.values(), *gap.values())
    return sweep(
        *(each(seeds=(0,)) for each in best),
        *(each(seeds=(1, 2, 3, 4)) for each in best),
        *(each(seeds=(5, 6, 7, 8, 9)) for each in (small, mini, tiny, nano)),
        *(each(seeds=(0,)) for each in rest),
        cnn(seeds=3, overrides={"training.epochs": 10}, reported=99.08),
        *(each(seeds=(1, 2)) for each in rest),
        cnn(seeds=1, overrides={"training.epochs": 60}, reported=99.35),
        row("configs/mnist_best.py", seeds=3, remark="(network and recipe of An et al.)"),
    )
