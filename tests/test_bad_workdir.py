"""What should not lie in a workdir: damaged JSON and records, and what is no file. One line names it."""

import contextlib
import dataclasses
import functools
import json
import math
import os
import shutil
from itertools import cycle, islice
from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emnist_jax import config, errors
from emnist_jax.reporting import terminal
from emnist_jax.training import checkpoints, loop
from emnist_jax.training.run import build
from emnist_jax.training.workdir import FREE_KEYS
from shared import attempt, fuzz, make_config, mutated, randoms, repeated

JSON_GARBAGE = [
    *(b"", b"\0\xff\xfe", b"{", b"[]", b"null", b"3", b'"x"', b"{}", b"NaN", b'{"test": []}', b"[" * 100_000),
    *(b'{"a":' * 5000, b'{"a":' * 900 + b"1" + b"}" * 900, b'{"parameters": ' + b"9" * 5000 + b"}"),
]
JSON_VALUES = [None, [], {}, "", "[/x]", -1, 2, 10**400, math.nan, math.inf, True, [1], {"a": 1}]


@pytest.fixture
def copy(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    return tmp_path / "run"


def start_again(workdir: Path):
    return attempt(lambda: loop.train_and_evaluate(make_config(), workdir))


@pytest.mark.ci
@pytest.mark.parametrize("name", ["result.json", "config.json"])
def test_garbage_for_json_is_an_error_that_names_the_file(copy, name):
    for content in JSON_GARBAGE:
        (copy / name).write_bytes(content)
        found = start_again(copy)
        assert isinstance(found, errors.UserError), content[:20]
        assert str(copy) in str(found)


def paths_in(tree: dict, prefix=()):
    """Yields the path of every key of nested dictionaries."""
    for key, value in tree.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from paths_in(value, (*prefix, key))


@pytest.mark.ci
@pytest.mark.parametrize("name", ["result.json", "config.json"])
def test_json_of_wrong_types_and_without_keys(copy, name, capsys):
    content = (copy / name).read_text()
    outcomes = set()
    for i, path in enumerate(paths_in(json.loads(content))):
        # All values where the program reads them; of the many alike keys of a config, three each.
        values = JSON_VALUES if len(path) == 1 or path[0] == "test" else islice(cycle(JSON_VALUES), 3 * i, 3 * i + 3)
        for value in (*values, "missing"):
            changed = json.loads(content)
            parent = functools.reduce(dict.get, path[:-1], changed)
            parent[path[-1]] = value
            if value == "missing":
                del parent[path[-1]]
            (copy / name).write_text(json.dumps(changed))
            found = start_again(copy)
            outcomes.add(type(found))
            if name == "config.json" and not isinstance(found, errors.UserError):
                # A key that is missing had its default: it may be newer than the run.
                found = config.flatten(config.base().to_dict()) | config.flatten(changed)
                wanted = config.flatten(json.loads(content))
                differing = {key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)}
                assert differing <= FREE_KEYS
    assert outcomes == {dict, errors.UserError}


@repeated(60)
@given(randoms, st.sampled_from(["result.json", "config.json"]))
def test_damaged_json(finished, folder, rng, name):
    workdir = folder / "json"
    shutil.rmtree(workdir, ignore_errors=True)
    workdir.mkdir()
    for kept in ("result.json", "config.json"):
        shutil.copy(finished[0] / kept, workdir)
    (workdir / name).write_bytes(mutated(rng, (workdir / name).read_bytes()))
    start_again(workdir)
    terminal.stop_log()


@pytest.mark.parametrize("name", ["result.json", "config.json", "lock", "log.txt", "checkpoints"])
@pytest.mark.parametrize("kind", ["directory", "pipe", "endless", "link to itself"])
def test_what_is_no_file_in_a_workdir(tmp_path, name, kind):
    if name != "lock":
        (tmp_path / "lock").touch()
    path = tmp_path / name
    if kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "endless" else path)
    found = start_again(tmp_path)
    if (name, kind) in {
        ("checkpoints", "directory"),  # what it should be
        ("lock", "endless"),  # can be written
        ("log.txt", "endless"),
        ("result.json", "link to itself"),  # as if it were not there
        ("config.json", "link to itself"),
    }:
        assert found == json.loads((tmp_path / "result.json").read_text())
    else:
        assert isinstance(found, errors.UserError) and str(tmp_path) in str(found)


def record_file(workdir: Path, step: int | str) -> Path:
    (path,) = (workdir / f"checkpoints/{step}/record").rglob("metadata")
    return path


@pytest.fixture(scope="module")
def restorable(finished, folder):
    """A copy of the checkpoints, what is in them, and how to read them."""
    workdir = folder / "restorable"
    shutil.copytree(finished[0], workdir)
    run = build(make_config())
    target = run.create_state.eval_shape(jax.random.key(0))
    with contextlib.closing(checkpoints.Checkpoints(workdir)) as saved:
        yield record_file(workdir, 30), lambda: saved.restore(target, [30])


def check_record(restorable, content: bytes) -> bool:
    """Restores a checkpoint with this for its record: what was saved, or nothing."""
    path, restore = restorable
    intact = path.read_bytes()
    path.write_bytes(content)
    try:
        found = attempt(restore)
    finally:
        path.write_bytes(intact)
    assert found is None or dataclasses.asdict(found[1]) == json.loads(intact)["record"]
    return found is not None


@pytest.mark.parametrize("content", JSON_GARBAGE, ids=lambda content: repr(content[:12]))
def test_garbage_for_a_record_is_a_damaged_checkpoint(restorable, content):
    check_record(restorable, content)


@repeated(40)
@given(randoms)
def test_damaged_record_is_whole_or_a_damaged_checkpoint(restorable, rng):
    check_record(restorable, mutated(rng, restorable[0].read_bytes()))


def test_a_run_goes_on_from_the_checkpoint_before_damaged_record(finished, copy):
    (copy / "result.json").unlink()
    path = record_file(copy, 30)
    path.write_bytes(path.read_bytes().replace(b'"step": 20', b'"step": 21'))
    result = start_again(copy)
    assert "resumed at step 20 of 30" in (copy / "log.txt").read_text()
    assert (result["test"], result["validation"]) == (finished[1]["test"], finished[1]["validation"])


def test_without_intact_record_no_run_goes_on(copy):
    (copy / "result.json").unlink()
    for checkpoint in (copy / "checkpoints").iterdir():
        record_file(copy, checkpoint.name).write_text("[]")
    assert "no checkpoint" in str(start_again(copy))


def test_a_workdirs_name_is_printed_as_it_is(finished, tmp_path, capsys):
    workdir = tmp_path / "[red] :warning: [" / "x]"
    shutil.copytree(finished[0], workdir)
    assert not isinstance(start_again(workdir), errors.UserError)
    assert f"tensorboard --logdir {workdir}\n" in capsys.readouterr().out


@pytest.mark.slow
def test_fuzz_record(restorable, caplog):
    caplog.set_level("ERROR", checkpoints.log.name)
    intact = restorable[0].read_bytes()
    fuzz("checkpoints' records", 500, lambda rng: check_record(restorable, mutated(rng, intact)))
