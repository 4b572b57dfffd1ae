"""Learning rate and label smoothing of mnist_squeeze:10, searched on the last 10,000 training images.

    pip install -e '.[search]'
    python -m emnist_jax.sweep --config=configs/sweeps/squeeze_search.py

Twenty trials of 5 epochs instead of 15, one after the other.
"""

from emnist_jax.config import row, search


def get_config():
    return search(
        row(
            "configs/mnist_squeeze.py:10",
            overrides={"dataset.validation_examples": 10000, "training.epochs": 5.0},
            name="squeeze_search",
        ),
        {"optimizer.learning_rate": (0.01, 0.3, "log"), "training.label_smoothing": (0.0, 0.2)},
        trials=20,
    )
