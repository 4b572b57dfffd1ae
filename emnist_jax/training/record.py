"""The record of a run: what has happened so far, and what follows from it. Plain Python, without JAX.

The best epoch, early stopping and the learning rate's scale are functions of the record, so that a run that was
stopped and resumed decides as one that was not.
"""

import dataclasses


@dataclasses.dataclass
class Record:
    """What has happened so far; every checkpoint holds it as JSON.

    Attributes:
      dataset_sha256: Of the images and labels that the run uses.
      commits: Of the code that has trained: several if a run was stopped and resumed by other code.
      leaked: Whether images of training are tested on, here or in a run that is fine-tuned from this; None: unknown.
      epochs: What each epoch found: "step" at its end, "train" and "validation" with "loss", "top1" and "top5", ...
      rollbacks: Of each return to the end of an earlier epoch: "step", "to_step" and "learning_rate_scale".
      epoch_seconds: Training time in the epoch under way.
      train_seconds: Training time in the epochs before, also in those that were rolled back.
      compile_seconds: Time to build the compiled programs, of all starts together.
    """

    dataset_sha256: str
    commits: list[str] = dataclasses.field(default_factory=list)
    leaked: bool | None = False
    epochs: list[dict] = dataclasses.field(default_factory=list)
    rollbacks: list[dict] = dataclasses.field(default_factory=list)
    epoch_seconds: float = 0.0
    train_seconds: float = 0.0
    compile_seconds: float = 0.0

    @property
    def step(self) -> int:
        """The step at which the last whole epoch ended."""
        return self.epochs[-1]["step"] if self.epochs else 0

    @property
    def best_first(self) -> list[dict]:
        """The validated epochs, the highest validation top-1 first; of equal ones, the later first."""
        validated = [epoch for epoch in self.epochs if "validation" in epoch]
        return sorted(validated, key=lambda epoch: (epoch["validation"]["top1"], epoch["step"]), reverse=True)

    @property
    def _losses(self) -> list[float]:
        return [epoch["validation"]["loss"] for epoch in self.epochs if "validation" in epoch]

    @property
    def stale_epochs(self) -> int:
        """The number of epochs since the lowest validation loss (Keras' `EarlyStopping`)."""
        losses = self._losses
        return len(losses) - 1 - losses.index(min(losses)) if losses else 0

    def plateau_scale(self, config) -> float:
        """Returns what ReduceLROnPlateau multiplies the learning rate with, as Keras and PyTorch have it.

        The two differ in what counts as a lower loss (`schedule.relative_delta`), and PyTorch waits for one epoch
        more than its patience.
        """
        if config.schedule.name != "plateau":
            return 1.0
        lowest_scale = config.schedule.min_learning_rate / config.optimizer.learning_rate
        lowest, stale, scale = float("inf"), 0, 1.0
        for loss in self._losses:
            margin = config.schedule.min_delta * (lowest if config.schedule.relative_delta else 1)
            if lowest == float("inf") or loss < lowest - margin:
                lowest, stale = loss, 0
            else:
                stale += 1
            if stale == config.schedule.patience_epochs:
                stale, scale = 0, max(scale * config.schedule.factor, lowest_scale)
        return scale

    def learning_rate_scale(self, config) -> float:
        """Returns what multiplies the schedule's learning rate."""
        return self.plateau_scale(config) * self.rollback_scale

    @property
    def rollback_scale(self) -> float:
        """What the rollbacks multiply the learning rate with: each halves it."""
        return 0.5 ** len(self.rollbacks)

    def end_epoch(self, epoch: dict) -> None:
        """Adds an epoch, and its training time to the total."""
        self.epochs.append(epoch)
        self._add_epoch_seconds()

    def roll_back(self, step: int) -> None:
        """Notes the return from `step` to the last epoch's end, with half the learning rate."""
        scale = self.rollback_scale / 2
        self.rollbacks.append({"step": step, "to_step": self.step, "learning_rate_scale": scale})
        self._add_epoch_seconds()

    def _add_epoch_seconds(self) -> None:
        self.train_seconds += self.epoch_seconds
        self.epoch_seconds = 0.0
