"""What follows from a record: the plateau's learning rate, early stopping and the best epoch."""

import numpy as np
import pytest

from emnist_jax.config import base
from emnist_jax.training.record import Record

LOSSES = (9, 8, 7.995, 7.9999, 7.9998, 7.99, 7.9895, 7.9892, 7.9, 7.9, 7.8, 7.81, 7.82, 7.83, 7.84, 7.85, 7.86)


def record_of(losses, top1s=None) -> Record:
    """Returns the record of epochs of 10 steps with these validation losses and accuracies."""
    validations = zip(losses, top1s or [0.0] * len(losses), strict=True)
    epochs = [
        {"step": 10 * i, "validation": {"loss": loss, "top1": top1}} for i, (loss, top1) in enumerate(validations, 1)
    ]
    return Record("", epochs=epochs)


def plateau_scales(**settings) -> list[float]:
    """Returns the scale after each of `LOSSES`."""
    config = base()
    config.optimizer.learning_rate = 0.1
    config.schedule.update({"name": "plateau", "factor": 0.5, "min_delta": 1e-3, **settings})
    return [record_of(LOSSES[:epochs]).plateau_scale(config) for epochs in range(1, len(LOSSES) + 1)]


# Keras 3.15.1: 0.1 over the rate of ReduceLROnPlateau(factor=0.5, patience=..., min_delta=1e-3, min_lr=...) at 0.1.
KERAS = {
    (1, 0.0): [1, 1, 1, 2, 4, 4, 8, 16, 16, 32, 32, 64, 128, 256, 512, 1024, 2048],
    (2, 0.0): [1, 1, 1, 1, 2, 2, 2, 4, 4, 4, 4, 4, 8, 8, 16, 16, 32],
    (3, 0.0): [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 4],
    (2, 0.01): [1, 1, 1, 1, 2, 2, 2, 4, 4, 4, 4, 4, 8, 8, 10, 10, 10],
}
# PyTorch 2.13.0: the same of ReduceLROnPlateau(factor=0.5, patience=..., threshold=1e-3), by its patience.
PYTORCH = {
    0: [1, 1, 2, 4, 8, 8, 16, 32, 32, 64, 64, 128, 256, 512, 1024, 2048, 4096],
    1: [1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 4, 4, 8, 8, 16, 16, 32],
    2: [1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 4, 4, 4, 8],
}


@pytest.mark.parametrize(("patience", "minimum"), KERAS)
def test_the_plateau_equals_keras(patience, minimum):
    scales = plateau_scales(patience_epochs=patience, min_learning_rate=minimum)
    np.testing.assert_allclose(scales, 1 / np.array(KERAS[patience, minimum]), rtol=1e-12)


@pytest.mark.parametrize("patience", PYTORCH)
def test_the_plateau_equals_pytorch(patience):
    scales = plateau_scales(patience_epochs=patience + 1, relative_delta=True)
    np.testing.assert_allclose(scales, 1 / np.array(PYTORCH[patience]), rtol=1e-12)


def test_no_other_schedule_has_a_plateau():
    assert set(plateau_scales(name="constant")) == {1.0}


def test_stale_epochs_count_from_the_lowest_loss():
    # keras.callbacks.EarlyStopping(patience=n) stops at the first epoch whose number here is n.
    stale = [record_of(LOSSES[:epochs]).stale_epochs for epochs in range(len(LOSSES) + 1)]
    assert stale == [0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 1, 0, 1, 2, 3, 4, 5, 6]


def test_the_best_epoch_is_the_latest_of_the_highest_top1():
    record = record_of((1.0, 0.5, 0.2, 0.1), (0.8, 0.9, 0.9, 0.7))
    assert [epoch["step"] for epoch in record.best_first] == [30, 20, 10, 40]
    assert Record("", epochs=[{"step": 10}]).best_first == []


def test_a_rollback_halves_the_rate_and_keeps_the_time():
    record = record_of((1.0,))
    record.epoch_seconds = 2.5
    record.roll_back(13)
    record.roll_back(17)
    assert record.rollbacks == [
        {"step": 13, "to_step": 10, "learning_rate_scale": 0.5},
        {"step": 17, "to_step": 10, "learning_rate_scale": 0.25},
    ]
    assert (record.rollback_scale, record.train_seconds, record.epoch_seconds) == (0.25, 2.5, 0.0)
