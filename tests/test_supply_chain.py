"""What is read cannot run code, and is read where it lies; what is downloaded is checksummed (see test_datasets)."""

import contextlib
import os
import sys
from pathlib import Path

from emnist_jax import datasets
from emnist_jax.training import checkpoints, weights
from emnist_jax.training.run import build
from test_datasets import config as dataset_config
from test_datasets import example_files, write
from test_loop import make_config

_heard = None


def _hear(event: str, arguments: tuple) -> None:
    if _heard is not None and event in ("pickle.find_class", "open"):
        _heard.append((event, arguments))


@contextlib.contextmanager
def audited():
    """Yields a list that fills with Python's audit events: https://docs.python.org/3/library/audit_events.html."""
    global _heard
    _heard = []
    try:
        yield _heard
    finally:
        _heard = None


sys.addaudithook(_hear)


def unpickled(events: list) -> list:
    return [arguments for event, arguments in events if event == "pickle.find_class"]


def written(events: list) -> list[str]:
    flags = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    return [arguments[0] for event, arguments in events if event == "open" and arguments[2] & flags]


def test_the_audit_hears_what_it_should(tmp_path):
    import pickle

    with audited() as events:
        pickle.loads(pickle.dumps(Path))
        (tmp_path / "file").write_text("x")
    assert unpickled(events) and written(events) == [str(tmp_path / "file")]


def test_archives_are_read_where_they_lie(tmp_path):
    files, _ = example_files("emnist/balanced", num_train=60)
    write(tmp_path, files, "zip")
    with audited() as events:
        datasets.load(dataset_config(name="emnist/balanced", data_dir=str(tmp_path), validation_examples=0))
    assert events and not unpickled(events) and not written(events)
    assert [path.name for path in tmp_path.iterdir()] == ["gzip.zip"]


def test_checkpoints_are_not_unpickled(finished, tmp_path):
    workdir, _ = finished
    run = build(make_config())
    state = run.initial_state()
    with audited() as events:
        weights.transfer(str(workdir), state.params, state.batch_stats)
        with contextlib.closing(checkpoints.Checkpoints(workdir)) as saved:
            assert saved.restore_latest(state)
    assert events and not unpickled(events)
