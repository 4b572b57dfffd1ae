"""TensorBoard's curves, pictures and hyper-parameters of a run."""

import importlib
import sys
import time
from pathlib import Path

from matplotlib.figure import Figure

from emnist_jax.config import flatten
from emnist_jax.reporting import figures


def _import_without_pytorch(*names: str) -> list:
    """Imports modules as if PyTorch were not installed: tensorboardX would load it, for seconds and for nothing."""
    loaded = "torch" in sys.modules
    if not loaded:
        sys.modules["torch"] = None  # makes `import torch` an ImportError
    try:
        return [importlib.import_module(name) for name in names]
    finally:
        if not loaded:
            del sys.modules["torch"]


summary, event_file_writer, event_pb2, utils = _import_without_pytorch(
    *(f"tensorboardX.{name}" for name in ("summary", "event_file_writer", "proto.event_pb2", "utils"))
)

# Tells our event files from those of others.
_SUFFIX = ".emnist_jax"


class TensorBoard:
    """The event file of one process, which replaces those of earlier ones.

    tensorboardX' own SummaryWriter writes from another thread, which a kill can rob of its points and which a full
    disk ends without a word.

    Args:
      workdir: Takes the file; None: nothing is written.
      epochs: All of them so far (`Record.epochs`).
    """

    def __init__(self, workdir: Path | None, epochs: list[dict]):
        self._writer = None
        if workdir:
            # Of several files, TensorBoard would go by the clocks and names of the hosts that wrote them.
            for path in workdir.glob(f"events.out.tfevents.*{_SUFFIX}"):
                path.unlink()
            self._writer = event_file_writer.EventsWriter(str(workdir / "events"), _SUFFIX)
        # A TensorBoard that is running drops what it has read of the earlier files.
        self._write(0, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
        for epoch in epochs:
            self.epoch(epoch)

    def _write(self, step: int, wall_time: float | None = None, **content) -> None:
        if self._writer:
            self._writer.write_event(event_pb2.Event(wall_time=wall_time or time.time(), step=step, **content))
            self._writer.flush()

    def scalars(self, values: dict[str, float], step: int, wall_time: float | None = None) -> None:
        for name, value in values.items():
            self._write(step, wall_time, summary=summary.scalar(name, value))

    def epoch(self, epoch: dict) -> None:
        """Writes an epoch of `Record.epochs`, with the time of its end."""
        values = {name: epoch[name] for name in ("learning_rate", "images_per_second")}
        for split in ("train", "validation"):
            if split in epoch:
                values |= {f"{split}/{name}": epoch[split][name] for name in ("loss", "top1", "top5")}
        self.scalars(values, epoch["step"], epoch["unix_time"])

    def figure(self, name: str, figure: Figure, step: int) -> None:
        with figures.any_letters():
            image = utils.figure_to_image(figure, close=False)
        self._write(step, summary=summary.image(name, image))

    def hyper_parameters(self, config: dict, metrics: dict[str, float]) -> None:
        flat = {key: value for key, value in flatten(config).items() if value is not None}
        values = {k: v if isinstance(v, (bool, int, float)) else str(v) for k, v in flat.items()}
        for part in summary.hparams(values, metrics):
            self._write(0, summary=part)

    def close(self) -> None:
        if self._writer:
            self._writer.close()
