"""A search of a config's keys: proposed the same whatever stops it, and decided by the validation images alone."""

import json
import os
import re
import weakref
from pathlib import Path

import pytest

from emnist_jax import search
from emnist_jax.config import row
from emnist_jax.config import search as search_config
from emnist_jax.errors import NotFiniteError, Stopped, UserError
from emnist_jax.training.workdir import lock
from test_sweep import finish, start

ROW = row("configs/mnist_squeeze.py:10", seeds=2, name="a")
RANGES = {
    "optimizer.learning_rate": (0.001, 0.1, "log"),
    "schedule.patience_epochs": (1, 9),
    "optimizer.name": ["momentum", "adam"],
}
FILE = """
from emnist_jax.config import row, search

def get_config():
    tiny = {"dataset.name": "synthetic/mnist", "dataset.train_per_class": 20, "dataset.test_per_class": 5}
    tiny |= {"dataset.validation_examples": 20, "training.batch_size": 16, "training.epochs": 1}
    ranges = {"optimizer.learning_rate": (0.001, 0.1, "log"), "training.label_smoothing": [0.0, 0.1]}
    return search(row("configs/lenet5.py", 1, tiny), ranges, trials=2)
"""


class Trained:
    """Stands in for training: notes each run; what is right of the validation images is the rate's distance to 0.02."""

    def __init__(self):
        self.runs, self.failing, self.error = [], set(), UserError("no images")

    def __call__(self, row, seed, folder):
        self.runs.append((folder.parent.name, folder.name, tuple(row["overrides"].items())))
        if folder.parent.name in self.failing:
            raise self.error
        rate = row["overrides"]["optimizer.learning_rate"]
        return {"validation": {"top1": 1 - abs(rate - 0.02) - 0.001 * seed}, "train_seconds": 1.0}


COMMON = {"training.epochs": 5.0, "dataset.data_dir": None, "optimizer.learning_rate": 0.1}


def run(workdir, train, trials=6, ranges=RANGES, sampler="tpe", is_over=lambda: False, row=ROW, common=COMMON):
    workdir.mkdir(exist_ok=True)
    search.run(row, search_config(row, ranges, trials, sampler).search, common, workdir, train, is_over)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_search_that_is_stopped_proposes_the_same(tmp_path, sampler, capsys):
    whole, parts = Trained(), Trained()
    run(tmp_path / "whole", whole, trials=13, sampler=sampler)
    table = capsys.readouterr().out.partition("| trial")[2]
    for trials in (0, 1, 5):
        over = iter([False] * trials + [True])
        with pytest.raises(Stopped, match=f"with {13 - len(parts.runs) // 2 - trials} of 13 trials to go"):
            run(tmp_path / "parts", parts, trials=13, sampler=sampler, is_over=lambda over=over: next(over))
    run(tmp_path / "parts", parts, trials=13, sampler=sampler)
    assert parts.runs == whole.runs
    assert len({overrides for *_, overrides in whole.runs}) == 13
    assert capsys.readouterr().out.partition("| trial")[2] == table
    before = len(parts.runs)
    run(tmp_path / "parts", parts, trials=13, sampler=sampler)
    assert len(parts.runs) == before


def test_values_are_in_their_ranges_and_the_best_is_first(tmp_path, capsys):
    trained = Trained()
    run(tmp_path, trained, sampler="random", trials=20)
    for _, _, overrides in trained.runs:
        values = dict(overrides)
        assert 0.001 <= values["optimizer.learning_rate"] <= 0.1
        assert values["schedule.patience_epochs"] in range(1, 10)
        assert values["optimizer.name"] in ("momentum", "adam")
    table = capsys.readouterr().out.partition("| trial")[2]
    shown = [float(top1) for top1 in re.findall(r"^\| trial_\d+ \| ([\d.]+) \|", table, re.M)]
    assert len(shown) == 20 and shown == sorted(shown, reverse=True)
    best = min(abs(dict(overrides)["optimizer.learning_rate"] - 0.02) for *_, overrides in trained.runs)
    assert shown[0] == pytest.approx(100 * (1 - best - 0.0005), abs=0.006)  # the mean of two seeds


def test_a_failed_trial_is_said_and_tried_again(tmp_path, capsys):
    trained = Trained()
    trained.failing = {"trial_1"}
    with pytest.raises(UserError, match="^1 of 3 trials failed, the last: no images"):
        run(tmp_path, trained, trials=3)
    assert capsys.readouterr().out.count("failed: no images") == 1
    trained.failing, trained.runs = set(), []
    with pytest.raises(Stopped, match="with 1 of 3 trials to go"):
        run(tmp_path, trained, trials=3, is_over=lambda: True)
    run(tmp_path, trained, trials=3)
    assert [name for name, *_ in trained.runs] == ["trial_1", "trial_1"]
    trained.failing = {"trial_0"}
    with pytest.raises(UserError, match="^1 of 1 trials failed, the last: no images"):
        run(tmp_path / "other", trained, trials=1)


def test_a_trial_whose_loss_is_not_finite_is_over(tmp_path, capsys):
    trained = Trained()
    trained.failing, trained.error = {"trial_1"}, NotFiniteError("the loss of step 3 is not finite")
    for _ in range(2):
        run(tmp_path, trained, trials=3)
    assert [name for name, *_ in trained.runs] == ["trial_0", "trial_0", "trial_1", "trial_2", "trial_2"]
    printed = capsys.readouterr().out
    assert printed.count("the loss of step 3 is not finite") == 1
    assert re.search(r"\| trial_1 \| not finite \| [^\n]*\n?$", printed)


def test_a_failed_trial_keeps_nothing_in_memory(tmp_path):
    kept = []

    class Weights:
        """Stands in for what a run has on the device."""

    def train(*_):
        weights = Weights()
        assert not any(reference() for reference in kept)
        kept.append(weakref.ref(weights))
        raise UserError("no images")

    with pytest.raises(UserError, match="2 of 2 trials failed"):
        run(tmp_path, train, trials=2)


def test_a_search_that_is_killed_after_any_record_of_its_journal_goes_on(tmp_path):
    whole = Trained()
    run(tmp_path / "whole", whole, trials=3)
    journal = (tmp_path / "whole/optuna.log").read_bytes()
    lines = [i + 1 for i, byte in enumerate(journal) if byte == ord("\n")]
    for end in [0, *lines, *(line - 9 for line in lines)]:  # of a full disk, half a line
        folder = tmp_path / f"killed_{end}"
        folder.mkdir()
        (folder / "optuna.log").write_bytes(journal[:end])
        whole_lines = journal[: journal.rfind(b"\n", 0, end) + 1]
        told = whole_lines.count(b'"state":1')  # of a trial: complete
        parts = Trained()
        run(folder, parts, trials=3)
        assert parts.runs == whole.runs[2 * told :]  # each trial has two seeds


def test_optunas_lock_is_no_broken_link(tmp_path, monkeypatch):
    """For one that a kill has left, Optuna would wait for ever."""
    intact, symlink = [], os.symlink
    monkeypatch.setattr(os, "symlink", lambda target, link: symlink(target, link) or intact.append(Path(link).exists()))
    monkeypatch.chdir(tmp_path)
    run(Path("search"), Trained(), trials=1)
    assert intact and all(intact)


def test_what_is_no_search_is_refused(tmp_path):
    run(tmp_path, Trained(), trials=1)
    for other, message in (
        (
            {"ranges": RANGES | {"optimizer.learning_rate": (0.1, 0.2)}},
            "range of optimizer.learning_rate was .*high=0.1",
        ),
        ({"sampler": "random"}, "sampler was tpe, is random"),
        ({"row": row("configs/mnist_squeeze.py:10", seeds=3, name="a")}, r"seeds was \[0, 1\], is \[0, 1, 2\]"),
        ({"common": COMMON | {"training.epochs": 6.0}}, "training.epochs was 5.0, is 6.0"),
    ):
        with pytest.raises(UserError, match=f"belongs to another config .*{message}.*; pass another --workdir"):
            run(tmp_path, Trained(), **other)
    run(tmp_path, Trained(), trials=1, common=COMMON | {"dataset.data_dir": "elsewhere"})
    with pytest.raises(UserError, match="unknown sampler 'tpo'; did you mean 'tpe'"):
        run(tmp_path, Trained(), sampler="tpo")
    for values in ((1,), (2, 1), (0, 1, "log"), (1, 2, "lin"), 3, []):
        with pytest.raises(UserError, match="optimizer.learning_rate: .* is no range such as"):
            run(tmp_path, Trained(), ranges={"optimizer.learning_rate": values})


@pytest.mark.ci
def test_the_sweep_runs_a_search(tmp_path):
    code, _, stderr = finish(start(tmp_path, "--minutes=0", sweep=FILE))
    assert (code, stderr) == (75, "--minutes are over with 2 of 2 trials to go; the same command resumes\n")
    code, stdout, stderr = finish(start(tmp_path, sweep=FILE))
    assert (code, stderr) == (0, "") and "test" not in stdout
    results = [json.loads((tmp_path / f"runs/trial_{i}/seed0/result.json").read_text()) for i in (0, 1)]
    assert [result["test"] for result in results] == [None, None]
    best = max((0, 1), key=lambda i: results[i]["validation"]["top1"])
    assert (
        f"| trial_{best} | {100 * results[best]['validation']['top1']:.2f} |"
        in stdout.partition("| ---")[2].split("\n")[1]
    )
    rates = [result["config"]["optimizer"]["learning_rate"] for result in results]
    assert rates[0] != rates[1] and all(f"optimizer.learning_rate={rate:.4g}" in stdout for rate in rates)
    with lock(tmp_path / "runs/search.lock"):
        code, _, stderr = finish(start(tmp_path, sweep=FILE))
    assert code == 2 and "another process trains in" in stderr
    code, _, stderr = finish(start(tmp_path, "--shard=0/2", sweep=FILE))
    assert (code, stderr) == (2, "error: a search takes no --results and no --shard: leave them out\n")
    code, stdout, stderr = finish(start(tmp_path, "--override=dataset.validation_examples=0", sweep=FILE))
    needs = "error: a search needs validation images: set dataset.validation_examples in its row\n"
    assert (code, stdout, stderr) == (2, "", needs)
    rates = '"optimizer.learning_rate": (0.001, 0.1, "log")'
    assert rates in FILE
    code, _, stderr = finish(start(tmp_path, sweep=FILE.replace(rates, '"optimizer.momentum": (0.1, 0.9)')))
    assert code == 2 and "config.optimizer.momentum has no effect with config.optimizer.name=adam" in stderr
