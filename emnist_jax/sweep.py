"""Runs the rows of a table: `python -m emnist_jax.sweep --config=configs/sweeps/mnist.py [--results=results]`.

Each run has its own folder, WORKDIR/ROW/seedN, whose log.txt has a line a minute. The same command resumes: finished
runs are left out, and a run that was stopped goes on. If a run fails, the others go on, and the table says why it
failed. A file may also name a search of keys, such as configs/sweeps/squeeze_search.py.
"""

import os
import re
import shutil
import time
import traceback
from pathlib import Path

from absl import flags

from emnist_jax import command_line
from emnist_jax.config import base, check_read, flatten, validate
from emnist_jax.errors import Stopped, UserError, first_line

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the runs; default: runs/NAME_OF_THE_SWEEP", allow_override=True
)
_RESULTS = flags.DEFINE_string(
    "results", None, "Folder that also takes each result.json, as ROW/seedN.json; what it holds is not run again"
)
_SHARD = flags.DEFINE_string("shard", "0/1", "I/N: only every N-th run, from the I-th on, counted from 0")
_MINUTES = flags.DEFINE_float("minutes", None, "Start no run after so many minutes; the same command goes on")
_OVERRIDE = flags.DEFINE_multi_string("override", [], "KEY=VALUE for all runs, e.g. dataset.data_dir=FOLDER")


def main(sweep) -> None:
    from jax.errors import JaxRuntimeError

    from emnist_jax.reporting import tables, terminal
    from emnist_jax.training import hosts

    hosts.check_devices()
    _check_overrides(sweep.rows[0])
    workdir = Path(os.path.expanduser(_WORKDIR.value or f"runs/{command_line.config_name()}"))
    if "search" in sweep:
        return _search(sweep, workdir)
    results_folder = Path(os.path.expanduser(_RESULTS.value)) if _RESULTS.value else None
    shard, shards = _parse_shard(_SHARD.value)
    held = _read_results(results_folder) if results_folder else {}
    runs = []
    ours = [(row, seed) for row in sweep.rows for seed in row["seeds"]][shard::shards]
    for row, seed in ours:
        copy = results_folder and results_folder / row["name"] / f"seed{seed}.json"
        if result := held.get((row["name"], seed)):
            check_config(str(copy), row, result, _OVERRIDE.value)
        runs.append((row, seed, workdir / row["name"] / f"seed{seed}", copy))
    to_train = sum(not _is_finished(folder, copy) for *_, folder, copy in runs)
    started, programs, failures, tried = time.monotonic(), ({}, {}), {}, 0
    # The log lines of the runs are in their folders.
    terminal.CONSOLE.quiet = True
    to_go = 0
    for number, (row, seed, folder, copy) in enumerate(runs):
        if copy and copy.exists():
            continue
        minutes = (time.monotonic() - started) / 60
        finished_before = _is_finished(folder, copy)
        if not finished_before:
            if _MINUTES.value is not None and minutes >= _MINUTES.value:
                to_go = sum(not _is_finished(folder, copy) for *_, folder, copy in runs[number:])
                break
            left = f", {terminal.minutes(60 * minutes / tried * (to_train - tried))} to go" if tried else ""
            print(f"[{number + 1}/{len(runs)}] {row['name']} seed {seed}{left}", flush=True)
            tried += 1
        try:
            result = train(row, seed, _OVERRIDE.value, folder, programs)
            if copy:
                copy.parent.mkdir(parents=True, exist_ok=True)
                part = shutil.copyfile(folder / "result.json", copy.with_suffix(".part"))
                part.replace(copy)  # other shards read the folder
        except Stopped:
            raise
        except Exception as error:  # whatever it is, the other rows go on
            if not isinstance(error, UserError | OSError | MemoryError | JaxRuntimeError):
                traceback.print_exc()  # a fault of ours
            failures.setdefault(row["name"], []).append(f"seed {seed}: {first_line(error)}")
            print(f"    failed: {error}", flush=True)
        else:
            if not finished_before:
                split = sweep.split if result[sweep.split] else "validation"
                top1 = f"{split} top-1 {100 * result[split]['top1']:.2f} %, " if result[split] else ""
                print(f"    {top1}{result['train_seconds']:.0f} s", flush=True)
    results = tables.read(results_folder) if results_folder else tables.read(workdir, "*/seed*/result.json")
    print(tables.markdown(sweep.rows, results, sweep.split, failures))
    shown = tables.points(sweep.rows, results, sweep.split)
    if len(shown) > 1:
        workdir.mkdir(parents=True, exist_ok=True)
        tables.plot(shown, workdir / "sweep.png", sweep.split)
        print(f"accuracy against parameters and training time: {workdir / 'sweep.png'}")
    failed = [f"{name} {failure}" for name, of_row in failures.items() for failure in of_row]
    what_failed = f"{len(failed)} of {len(runs)} runs failed, first {failed[0]}" if failed else ""
    if to_go:
        over = f"--minutes={_MINUTES.value:g} are over with {to_go} of {len(runs)} runs to go"
        raise Stopped("; ".join(filter(None, (over, what_failed))))
    if failed:
        raise UserError(what_failed)


def _check_overrides(row: dict) -> None:
    """Raises UserError if the --override flags are wrong, as every run would say."""
    for override in _OVERRIDE.value:
        key, has_value, _ = override.partition("=")
        if not has_value:
            raise UserError(f"--override={override} is not KEY=VALUE")
        if key == "seed":
            raise UserError(f"--override={override}: the rows name their seeds")
    if _OVERRIDE.value:
        validate(experiment_of(row, 0, _OVERRIDE.value))


def _read_results(folder: Path) -> dict[tuple[str, int], dict]:
    """Returns what a folder of results holds, by row and seed, and says whether it may take what runs now."""
    from emnist_jax.environment import check_commit, commit
    from emnist_jax.reporting import tables

    if commit() == "unknown":
        raise UserError(f"--results={folder}: results say their commit; run in a clone with its .git, and with git")
    try:
        check_commit("what runs now", commit())
    except UserError as error:
        print(f"warning: {error}: `python -m emnist_jax.results` will refuse it", flush=True)
    return {(name, result["seed"]): result for name, of_row in tables.read(folder).items() for result in of_row}


def _search(sweep, workdir: Path) -> None:
    from emnist_jax import search
    from emnist_jax.reporting import terminal
    from emnist_jax.training.workdir import as_json, lock

    if _RESULTS.value or _SHARD.value != "0/1":
        raise UserError("a search takes no --results and no --shard: leave them out")
    experiment = experiment_of(sweep.rows[0], 0, _OVERRIDE.value)
    if experiment.evaluation.test:
        raise UserError("a search does not look at the test images: leave out --override=evaluation.test")
    if experiment.dataset.validation_examples == 0:
        raise UserError("a search needs validation images: set dataset.validation_examples in its row")
    if not {"optimizer.name", "schedule.name"} & sweep.search["ranges"].keys():
        check_read(experiment, sweep.search["ranges"])
    started, programs = time.monotonic(), ({}, {})
    terminal.CONSOLE.quiet = True
    workdir.mkdir(parents=True, exist_ok=True)
    with lock(workdir / "search.lock"):
        search.run(
            sweep.rows[0],
            sweep.search,
            flatten(as_json(experiment)),
            workdir,
            lambda row, seed, folder: train(row, seed, _OVERRIDE.value, folder, programs),
            lambda: _MINUTES.value is not None and time.monotonic() - started >= 60 * _MINUTES.value,
        )


def _parse_shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or int(found[1]) >= int(found[2]):
        raise UserError(f"--shard={text} is not I/N with I from 0 to N - 1")
    return int(found[1]), int(found[2])


def _is_finished(folder: Path, copy: Path | None) -> bool:
    return (folder / "result.json").exists() or (copy is not None and copy.exists())


def train(row: dict, seed: int, overrides: list[str], folder: Path, programs: tuple[dict, dict]) -> dict:
    """Runs a row's seed in a folder and returns what its result.json holds.

    If the row has a pretraining, that is run first, in the folder beside it whose name begins with "pretrained_".

    Args:
      programs: The compiled ones of the last pretraining and of the last run; see `Training.compile`.
    """
    from emnist_jax.training import loop

    experiment = experiment_of(row, seed, overrides)
    if row["pretraining"]:
        pretrained = folder.with_name(f"pretrained_{folder.name}")
        if not (folder / "result.json").exists():
            first_half = experiment_of({"config": row["pretraining"], "overrides": {}}, seed, overrides)
            loop.train_and_evaluate(first_half, pretrained, programs[0])
        experiment.init_from = str(pretrained)
    return loop.train_and_evaluate(experiment, folder, programs[1])


def experiment_of(row: dict, seed: int, overrides: list[str]):
    """Returns the config of a run; `overrides`: KEY=VALUE for this and all other rows."""
    overrides = [*(f"{key}={value}" for key, value in row["overrides"].items()), *overrides, f"seed={seed}"]
    overrides = [f"--config.{override}" for override in overrides]
    values = flags.FlagValues()
    command_line.parse(["sweep", f"--config={row['config']}", *overrides], flag_values=values)
    return values.config


def check_config(where: str, row: dict, result: dict, overrides: list[str]) -> None:
    """Raises UserError if a result was made with another config than its row, with `overrides`, asks for."""
    from emnist_jax.training.workdir import as_json, differences

    wanted = flatten(as_json(experiment_of(row, result["seed"], overrides)))
    found = flatten(base().to_dict()) | flatten(result["config"])  # a newer key had its default
    if not wanted["evaluation.test"]:
        found["evaluation.test"] = False  # more than was asked for
    if row["pretraining"]:
        wanted["init_from"] = f"{row['name']}/pretrained_seed{result['seed']}"
    if differing := differences(found, wanted):
        raise UserError(f"{where} was made with another config than its row's ({differing}): delete it")
    if result.get("rollbacks"):
        raise UserError(f"{where} went on after a rollback with a lower learning rate than its row's: delete it")


if __name__ == "__main__":
    command_line.run(main, config="sweep")
