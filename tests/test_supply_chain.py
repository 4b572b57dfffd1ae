"""What is read cannot run code, and is read where it lies; what is downloaded is checksummed (see test_datasets)."""

import contextlib
import re
import tomllib
from pathlib import Path

from emnist_jax import datasets
from emnist_jax.training import checkpoints, weights
from emnist_jax.training.run import build
from shared import audited, dataset_config, example_files, make_config, unpickled, write_files, written


def test_the_audit_hears_what_it_should(tmp_path):
    import pickle

    with audited() as events:
        pickle.loads(pickle.dumps(Path))
        (tmp_path / "file").write_text("x")
    assert unpickled(events) and written(events) == [str(tmp_path / "file")]


def test_archives_are_read_where_they_lie(tmp_path):
    files, _ = example_files("emnist/balanced", num_train=60)
    write_files(tmp_path, files, "zip")
    with audited() as events:
        datasets.load(dataset_config(name="emnist/balanced", data_dir=str(tmp_path), validation_examples=0))
    assert events and not unpickled(events) and not written(events)
    assert [path.name for path in tmp_path.iterdir()] == ["gzip.zip"]


def test_checkpoints_are_not_unpickled(finished):
    workdir, _ = finished
    run = build(make_config())
    state = run.initial_state()
    with audited() as events:
        weights.initial_weights(str(workdir), state.params, state.batch_stats)
        with contextlib.closing(checkpoints.Checkpoints(workdir)) as saved:
            assert saved.restore_latest(state)
    assert events and not unpickled(events)


def test_the_lock_names_all_that_the_package_and_its_tests_need():
    root = Path(__file__).parent.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [
        *project["dependencies"],
        *(name for extra in ("demo", "evaluate", "export", "search", "test") for name in extras[extra]),
    ]
    names = {re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-") for requirement in needed}
    locked = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (root / "requirements.lock").read_text().splitlines()
    }
    assert names - locked == {"emnist-jax"}
