"""Every MNIST network of the sources, with its own recipe: the most valuable rows first.

    python -m emnist_jax.sweep --config=configs/sweeps/mnist.py --results=results

About eight hours on two CPU cores. The sources report their best epoch on the test set, unless the remark says so.
"""

from emnist_jax.config import row, sweep

SQUEEZE = {1: 99.01, 2: 98.55, 3: 98.86, 4: 99.29, 5: 99.22, 6: 99.35, 7: 99.20, 8: 99.26, 9: 99.45, 10: 99.43}
GAP = {"v1": 98.78, "v2": 98.45, "v3": 99.12, "v4": 99.07, "v5": 99.44}


def get_config():
    squeeze = {i: row(f"configs/mnist_squeeze.py:{i}", seeds=5, reported=top1) for i, top1 in SQUEEZE.items()}
    gap = {version: row(f"configs/mnist_gap.py:{version}", seeds=5, reported=top1) for version, top1 in GAP.items()}
    onecycle = row("configs/mnist_onecycle.py", seeds=5, reported=99.38, remark="(99.33 in the last epoch)")
    source = row("configs/mnist_onecycle.py:source", seeds=3, reported=99.38, remark="(99.33 in the last epoch)")
    cnn = {
        epochs: row("configs/mnist_cnn.py", seeds, {"training.epochs": epochs}, reported=top1)
        for epochs, seeds, top1 in ((10, 3, 99.08), (60, 1, 99.35))
    }
    first = (squeeze.pop(10), gap.pop("v5"), squeeze.pop(9), squeeze.pop(6), onecycle)
    return sweep(*first, source, *squeeze.values(), *gap.values(), *cnn.values())
