"""Searches keys of a config for `emnist_jax.sweep`: Optuna proposes, and the validation images alone decide."""

import os
import statistics
from collections.abc import Callable
from pathlib import Path

from emnist_jax.errors import NotFiniteError, Stopped, UserError, first_line, unknown
from emnist_jax.training.workdir import check_same


def run(
    row: dict,
    search: dict,
    common: dict,
    workdir: Path,
    train: Callable[[dict, int, Path], dict],
    is_over: Callable[[], bool],
) -> None:
    """Runs the trials that are missing, each in WORKDIR/trial_N/seedN, and prints all, the best first.

    A trial that failed is tried again by the next call, unless its loss was not finite: then it is over, without an
    accuracy. Stops do not change what is proposed.

    Args:
      row: What all trials have in common.
      search: "ranges", "trials" and "sampler", as in `config.search`.
      common: Dotted key -> value of the config of `row`: a later call must have the same.
      workdir: A folder that no other search uses; takes the runs and Optuna's journal.
      train: Runs a row with a seed in a folder, and returns what result.json holds.
      is_over: Tells whether no further trial may start.

    Raises:
      UserError: Optuna is missing, a range is wrong, the workdir holds another search, or trials failed.
      Stopped: The time is over.
    """
    from jax.errors import JaxRuntimeError

    try:
        import optuna
    except ImportError as error:
        raise UserError("a search needs Optuna: pip install 'emnist_jax[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    samplers = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
    if search["sampler"] not in samplers:
        raise unknown("sampler", search["sampler"], samplers)
    ranges = {key: _distribution(key, values, optuna.distributions) for key, values in search["ranges"].items()}
    journal = workdir.absolute() / "optuna.log"  # Optuna would wait for ever for the lock of a relative path
    if journal.exists():
        # A full disk leaves half a line, which Optuna cannot read.
        os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(journal)))
    study = optuna.create_study(storage=storage, study_name="search", direction="maximize", load_if_exists=True)
    settings = {key: value for key, value in common.items() if key not in ranges}
    settings |= {f"the range of {key}": str(values) for key, values in ranges.items()}
    settings |= {"sampler": search["sampler"], "seeds": list(row["seeds"])}
    if not study.user_attrs:
        study.set_user_attr("settings", settings)
    check_same(workdir, study.user_attrs["settings"], settings)

    failures = []
    for number in range(search["trials"]):
        trials = study.trials
        if number < len(trials) and trials[number].state.is_finished():
            continue
        if is_over():
            to_go = search["trials"] - sum(trial.state.is_finished() for trial in trials)
            raise Stopped(f"--minutes are over with {to_go} of {search['trials']} trials to go")
        if number == len(trials):
            # Each trial has its own random numbers, which do not depend on where the search was stopped. It is asked
            # for in a copy, as `ask` writes one value after the other, and a kill would leave half a trial.
            copy = optuna.create_study(direction="maximize", sampler=samplers[search["sampler"]](seed=number))
            copy.add_trials(trials)
            running = optuna.trial.TrialState.RUNNING
            params = copy.ask(ranges).params
            study.add_trial(optuna.trial.create_trial(state=running, params=params, distributions=ranges))
        trial = study.trials[number]
        name = f"trial_{number}"
        start = f"[{number + 1}/{search['trials']}] {name}, {_settings(trial)}"
        overridden = {**row, "overrides": {**row["overrides"], **trial.params}}
        try:
            results = [train(overridden, seed, workdir / name / f"seed{seed}") for seed in row["seeds"]]
        except NotFiniteError as error:
            study.tell(number, state=optuna.trial.TrialState.FAIL)
            print(f"{start}: {error}", flush=True)
            continue
        except (UserError, OSError, MemoryError, JaxRuntimeError) as error:
            failures.append(first_line(error))  # the error itself would keep the run and its memory
            print(f"{start}: failed: {first_line(error)}", flush=True)
            continue
        study.tell(number, statistics.mean(result["validation"]["top1"] for result in results))
        top1, seconds = 100 * study.trials[number].value, sum(result["train_seconds"] for result in results)
        print(f"{start}: validation top-1 {top1:.2f} %, {seconds:.0f} s of training", flush=True)

    finished = [trial for trial in study.trials if trial.state.is_finished()]
    print(_table(sorted(finished, key=lambda trial: -(trial.value or 0)), list(ranges)))
    if failures:
        raise UserError(f"{len(failures)} of {search['trials']} trials failed, the last: {failures[-1]}")


def _distribution(key: str, values, distributions):
    """Returns Optuna's form of a range: a list of choices, (low, high) or (low, high, "log")."""
    try:
        if isinstance(values, list):
            return distributions.CategoricalDistribution(values)
        low, high, *log = values
        if log not in ([], ["log"]):
            raise ValueError(f"{log[0]!r} is not 'log'")
        integers = isinstance(low, int) and isinstance(high, int)
        kind = distributions.IntDistribution if integers else distributions.FloatDistribution
        return kind(low, high, log=bool(log))
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: {values} is no range such as (0.01, 0.1, 'log') or [1, 2]: {error}") from error


def _settings(trial) -> str:
    return ", ".join(f"{key}={_short(value)}" for key, value in trial.params.items())


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(trials: list, keys: list[str]) -> str:
    lines = [["trial", "validation top-1, %", *(f"`{key}`" for key in keys)], ["---"] * (2 + len(keys))]
    for trial in trials:
        top1 = "not finite" if trial.value is None else f"{100 * trial.value:.2f}"
        lines.append([f"trial_{trial.number}", top1, *(_short(trial.params[key]) for key in keys)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
