"""A table's rows, run one after the other: all of them, once each, whatever fails or stops."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from emnist_jax import command_line, environment, sweep
from emnist_jax.command_line import read_sweep
from emnist_jax.config import check_read, row, validate
from emnist_jax.config import sweep as config_sweep
from emnist_jax.errors import Stopped, UserError
from emnist_jax.reporting import tables, terminal
from emnist_jax.results import STUDY, SWEEPS
from emnist_jax.training import loop
from processes import XLA_FLAGS, not_under_nohup
from shared import make_config

ROOT = Path(__file__).parent.parent
SWEEP = """
from emnist_jax.config import row, sweep

def get_config():
    tiny = {"dataset.name": "synthetic/mnist", "dataset.train_per_class": 20, "dataset.test_per_class": 5}
    tiny |= {"dataset.validation_examples": 20, "training.batch_size": 16, "training.epochs": 2}
    return sweep(
        row("configs/lenet5.py", 2, tiny, name="lenet5", reported=99.43),
        row("configs/mnist_gap.py:v9", 1, tiny, name="unknown"),
        row("configs/lenet5.py", 1, tiny, name="last"),
    )
"""

# Its first row in the table.
FIRST = r"\| `lenet5` \| 62,006 \| 99.43 \| [\d.]+ ± [\d.]+; last epoch [\d.]+ \| [\d.]+ ± [\d.]+ \| 2 of 2 \|"


def start(folder: Path, *flags: str, sweep: str = SWEEP) -> subprocess.Popen:
    (folder / "tiny.py").write_text(sweep)
    command = [
        sys.executable,
        "-m",
        "emnist_jax.sweep",
        f"--config={folder / 'tiny.py'}",
        f"--workdir={folder / 'runs'}",
    ]
    environment = {**os.environ, "XLA_FLAGS": XLA_FLAGS}
    return subprocess.Popen(
        [*command, *flags], cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=600)
    return process.returncode, stdout, stderr


@pytest.mark.ci
def test_a_sweep_killed_in_a_row_goes_on_and_runs_the_rest(tmp_path):
    first = tmp_path / "runs/lenet5/seed0/result.json"
    process = start(tmp_path)
    while not first.exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert finish(process)[0] == -9
    before = first.read_bytes()

    code, stdout, stderr = finish(start(tmp_path, f"--results={tmp_path / 'results'}"))
    assert code == 2 and stderr.startswith("error: 1 of 4 runs failed") and stderr.count("\n") == 1
    assert "failed: unknown version 'v9'" in stdout
    assert first.read_bytes() == before and "[1/4]" not in stdout
    found = {str(path.relative_to(tmp_path / "results")) for path in (tmp_path / "results").rglob("*.json")}
    assert found == {"lenet5/seed0.json", "lenet5/seed1.json", "last/seed0.json"}
    results = [json.loads((tmp_path / "results/lenet5" / f"seed{seed}.json").read_text()) for seed in (0, 1)]
    assert [result["config"]["seed"] for result in results] == [0, 1]
    assert results[0]["history"][-1]["train"] != results[1]["history"][-1]["train"]
    assert re.search(FIRST, stdout)
    assert re.search(r"\| `unknown` \|  \| – \|  \| failed: seed 0: unknown version 'v9'", stdout)
    assert (tmp_path / "runs/sweep.png").stat().st_size > 1000

    code, stdout, _ = finish(start(tmp_path, f"--results={tmp_path / 'results'}", f"--workdir={tmp_path / 'other'}"))
    assert code == 2 and re.findall(r"\[\d/4\] (\w+)", stdout) == ["unknown"]
    assert re.search(FIRST, stdout)

    rates = f"--results={tmp_path / 'results'}", "--override=optimizer.learning_rate=0.5"
    code, _, stderr = finish(start(tmp_path, *rates))
    assert code == 2 and re.search("lenet5/seed0.json was made with .*optimizer.learning_rate was .*, is 0.5", stderr)


TRANSFER = """
from emnist_jax.config import row, sweep

def get_config():
    return sweep(row("FOLDER/tiny_half.py:digits", 2, pretraining="FOLDER/tiny_half.py:mnist", name="transfer"))
"""
HALF = """
from emnist_jax.config import base

def get_config(name):
    config = base()
    config.dataset.name, config.dataset.train_per_class, config.dataset.test_per_class = f"synthetic/{name}", 20, 5
    config.model.name, config.training.batch_size, config.training.steps = "lenet5", 16, 1
    config.transfer.target = "synthetic/digits" if name == "mnist" else None
    return config
"""


@pytest.mark.ci
def test_a_row_with_a_pretraining_starts_from_its_weights(tmp_path):
    (tmp_path / "tiny_half.py").write_text(HALF)
    override = "--override=training.label_smoothing=0.125"
    code, stdout, stderr = finish(start(tmp_path, override, sweep=TRANSFER.replace("FOLDER", str(tmp_path))))
    assert code == 0, stderr
    for seed in (0, 1):
        before, after = (
            json.loads((tmp_path / "runs/transfer" / f"{half}seed{seed}/result.json").read_text())
            for half in ("pretrained_", "")
        )
        assert (before["dataset"], after["dataset"]) == ("synthetic/mnist", "synthetic/digits")
        assert before["seed"] == after["seed"] == seed and after["leaked"] is False
        assert after["config"]["training"]["label_smoothing"] == 0.125
        for half in ("pretrained_", ""):
            log = (tmp_path / "runs/transfer" / f"{half}seed{seed}/log.txt").read_text()
            assert ("compiling" in log) == (seed == 0), half  # the seeds share what was compiled
        assert after["config"]["init_from"] == str(tmp_path / "runs/transfer" / f"pretrained_seed{seed}")
    assert "| 2 of 2 |" in stdout

    shutil.rmtree(tmp_path / "runs/transfer/pretrained_seed0")
    (tmp_path / "runs").rename(tmp_path / "moved")
    moved = f"--workdir={tmp_path / 'moved'}"
    code, again, stderr = finish(start(tmp_path, moved, override, sweep=TRANSFER.replace("FOLDER", str(tmp_path))))
    assert code == 0 and again[again.index("|") :] == stdout[stdout.index("|") :], stderr
    assert not (tmp_path / "moved/transfer/pretrained_seed0").exists()


@pytest.mark.slow
def test_shards_share_the_runs_and_minutes_end_between_two(tmp_path):
    code, stdout, stderr = finish(start(tmp_path, "--minutes=0"))
    assert (code, stderr) == (75, "--minutes=0 are over with 4 of 4 runs to go; the same command resumes\n")
    codes = [finish(start(tmp_path, f"--shard={i}/2"))[0] for i in (0, 1)]
    assert codes == [2, 0]
    assert len(list(tmp_path.glob("runs/*/seed*/result.json"))) == 3
    code, _, stderr = finish(start(tmp_path, "--minutes=0"))  # what failed is to go
    assert (code, stderr) == (75, "--minutes=0 are over with 1 of 4 runs to go; the same command resumes\n")
    code, stdout, _ = finish(start(tmp_path, "--minutes=0", "--shard=1/2"))
    assert code == 0 and "| 1 of 2 |" not in stdout and "| 2 of 2 |" in stdout


def test_the_seeds_of_a_row_share_the_compiled_programs(tmp_path, monkeypatch, built_once):
    monkeypatch.setattr(loop.Training, "compile", loop.Training.compile.__wrapped__)  # conftest.py's keeps all programs
    compiled, compile_once = [], loop.Training._compile
    monkeypatch.setattr(loop.Training, "_compile", lambda self: compiled.append(1) or compile_once(self))
    programs = {}
    for seed, rate in ((0, 0.02), (1, 0.02), (1, 0.01)):
        config = make_config(**{"seed": seed, "optimizer.learning_rate": rate, "training.steps": 2})
        shared = loop.train_and_evaluate(config, tmp_path / f"shared_{seed}_{rate}", programs)
    assert len(compiled) == 2
    alone = loop.train_and_evaluate(config, tmp_path / "alone")
    assert shared["history"][-1]["train"] == alone["history"][-1]["train"]


# As python: notes its flags and ends with the code that CODES has for its shard, after SECONDS_TO_RUN.
PYTHON = """#!/usr/bin/env bash
trap 'kill %1; exit 75' TERM
echo "$JAX_PLATFORMS $CUDA_VISIBLE_DEVICES, memory ${XLA_CLIENT_MEM_FRACTION:-all} $@" >>"$0.calls"
if [[ $* == *results ]]; then exit "$TABLES"; fi
if [[ $* == *leak* ]]; then exit 0; fi
sleep "$SECONDS_TO_RUN" &
wait
read -ra codes <<<"$CODES"
[[ $* =~ shard=([0-9]) ]]
exit "${codes[${BASH_REMATCH[1]}]}"
"""


@pytest.mark.parametrize(
    ("codes", "tables", "stop", "expected"),
    [
        ("0", 0, None, 0),
        ("2", 0, None, 2),
        ("75", 2, None, 75),
        ("0 75 2", 0, None, 75),
        ("0", 2, None, 2),
        ("0 0", 0, signal.SIGTERM, 75),
        pytest.param("0", 0, signal.SIGHUP, 75, marks=not_under_nohup),
    ],
)
def test_the_script_for_all_results_writes_the_tables_whatever_ends_a_sweep(tmp_path, codes, tables, stop, expected):
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    jobs = len(codes.split())
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CODES": codes, "TABLES": str(tables)}
    measured = (ROOT / "results/leak/densenet.json").exists()
    environment |= {
        "EMNIST": "pool",
        "JOBS": str(jobs),
        "CUDA_VISIBLE_DEVICES": "2,3",
        "SECONDS_TO_RUN": "60" if stop else "0",
    }
    command = [ROOT / "launch/all_results.sh", "--minutes=30", "--override=dataset.data_dir=a"]
    process, calls = subprocess.Popen(command, env=environment), tmp_path / "python.calls"
    while stop and (not calls.exists() or calls.read_text().count("\n") < jobs):
        time.sleep(0.01)
    if stop:
        process.send_signal(stop)
    assert process.wait(timeout=30) == expected
    *sweeps, last = calls.read_text().splitlines()
    assert last.endswith(" -m emnist_jax.results")
    if set(codes.split()) == {"0"} and not stop and not measured:  # all rows are there
        assert sweeps.pop().endswith(" launch/leak.py --pool=a --model=densenet --out=results/leak/densenet.json")
    assert all(call.startswith(f"cuda 2, memory {({1: 'all', 2: '.45', 3: '.30'})[jobs]} ") for call in sweeps)
    assert sorted(re.search(r"--shard=(\d/\d)", call)[1] for call in sweeps) == [f"{i}/{jobs}" for i in range(jobs)]
    assert all("all.py:pool --results=results" in call and "--minutes=30" in call for call in sweeps)
    assert all(call.endswith("--override=dataset.data_dir=a") for call in sweeps)


@pytest.mark.parametrize("shard", ["", "1", "2/2", "-1/2", "0/0", "a/b"])
def test_a_wrong_shard_is_refused(shard):
    with pytest.raises(UserError, match="is not I/N"):
        sweep._parse_shard(shard)


def test_every_row_of_every_sweep_is_valid_and_no_run_is_named_twice():
    variants = {"study": [f":{variant}" for variant in STUDY], "emnist": ["", ":pool"], "all": ["", ":pool"]}
    files = [f"{path}{x}" for path in (ROOT / "configs/sweeps").glob("*.py") for x in variants.get(path.stem, [""])]
    experiments = {}
    for path in files:
        rows = read_sweep(path).rows
        runs = [(each["name"], seed) for each in rows for seed in each["seeds"]]
        assert len(set(runs)) == len(runs), path
        for each in rows:
            experiment = sweep.experiment_of(each, 3, [])
            validate(experiment)
            check_read(experiment, each["overrides"])  # as `main` does with the row's command
            # A row may stand in several tables: its name says what it is.
            assert experiments.setdefault(each["name"], experiment.to_dict()) == experiment.to_dict(), each["name"]


def test_every_row_of_a_table_is_of_its_data_set():
    for name, path in SWEEPS.items():
        dataset = {"mnist": "mnist", "onecycle rate": "mnist", "emnist pool": "emnist_pool"}.get(
            name, "emnist/balanced"
        )
        for each in read_sweep(str(ROOT / path)).rows:
            assert sweep.experiment_of(each, 0, []).dataset.name == dataset, each["name"]


def test_sweeps_that_choose_do_not_look_at_the_test_images():
    files = ["onecycle_rate.py", "squeeze_search.py", *(f"study.py:{variant}" for variant in STUDY)]
    sweeps = {file: read_sweep(str(ROOT / "configs/sweeps" / file)) for file in files}
    for file in sweeps.keys() - {"study.py:layers", "study.py:transfer"}:
        assert sweeps[file].split == "validation"
        assert not any(sweep.experiment_of(each, 0, []).evaluation.test for each in sweeps[file].rows), file


def test_all_rows_begin_with_a_number_for_every_network():
    rows = read_sweep(str(ROOT / "configs/sweeps/all.py")).rows
    parts = [read_sweep(str(ROOT / "configs/sweeps" / part)).rows for part in ("mnist.py", "emnist.py")]
    parts.append(read_sweep(str(ROOT / "configs/sweeps/study.py:transfer")).rows)
    names = {each["name"] for part in parts for each in part}
    first = rows[: len(names)]
    assert {each["name"] for each in first} == names and all(each["seeds"] == (0,) for each in first)
    of_emnist = [each["name"] for each in first if not each["name"].startswith("mnist")]
    assert of_emnist[:8] == [
        *("densenet_best", "densenet", "lenet5", "lenet5_rbf", "resnet50", "densenet121"),
        *("densenet_transfer_2", "densenet_transfer_3"),
    ]


MNIST = command_line.read_sweep(str(ROOT / "configs/sweeps/mnist.py"))


def set_flags(monkeypatch, **values):
    for name, value in ({"results": None, "shard": "0/1", "minutes": None, "override": []} | values).items():
        monkeypatch.setattr(sweep, f"_{name.upper()}", SimpleNamespace(value=value))
    monkeypatch.setattr(terminal.CONSOLE, "quiet", True)  # as a sweep sets it


def test_overrides_come_after_those_of_the_row():
    each = row("configs/mnist_cnn.py", 1, {"training.epochs": 10.0, "training.batch_size": 64})
    experiment = sweep.experiment_of(each, 3, ["training.epochs=2"])
    assert (experiment.training.epochs, experiment.training.batch_size, experiment.seed) == (2, 64, 3)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epochs", "is not KEY=VALUE"),
        ("seed=3", "the rows name their seeds"),
        ("training.epoch=3", "did you mean 'epochs'"),
        ("training.epochs=0", "config.training.epochs is 0"),
    ],
)
def test_a_wrong_override_ends_a_sweep_before_its_first_run(monkeypatch, tmp_path, override, message):
    set_flags(monkeypatch, workdir=tmp_path / "runs", minutes=0.0, override=[override])
    with pytest.raises(UserError, match=message):
        sweep.main(MNIST)


def test_what_failed_is_said_also_if_the_minutes_end(monkeypatch, tmp_path, capsys):
    def fail(*arguments):
        raise UserError("no images")

    seconds = iter((0, 1, 61))
    monkeypatch.setattr(sweep, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    monkeypatch.setattr(sweep, "train", fail)
    set_flags(monkeypatch, workdir=tmp_path / "runs", minutes=1.0)
    runs = sum(len(each["seeds"]) for each in MNIST.rows)
    message = f"--minutes=1 are over with {runs - 1} of {runs} runs to go; 1 of {runs} runs failed, first .*: no images"
    with pytest.raises(Stopped, match=message):
        sweep.main(MNIST)
    assert "failed: seed 0: no images | 0 of" in capsys.readouterr().out


def test_a_fault_of_the_program_is_one_line_of_the_table_and_the_other_rows_go_on(monkeypatch, tmp_path, capsys):
    def fail(*arguments):
        raise ValueError("a fault")

    monkeypatch.setattr(sweep, "train", fail)
    set_flags(monkeypatch, workdir=tmp_path / "runs")
    runs = sum(len(each["seeds"]) for each in MNIST.rows)
    with pytest.raises(UserError, match=f"^{runs} of {runs} runs failed, first mnist_squeeze_10 seed 0: ValueError: a"):
        sweep.main(MNIST)
    output, errors = capsys.readouterr()
    assert errors.count("Traceback") == runs and output.count("failed: seed 0: ValueError: a fault; ") > 1


def test_a_result_that_cannot_be_copied_is_one_line_and_the_other_rows_go_on(monkeypatch, tmp_path):
    def train(row, seed, overrides, folder, programs):
        trained.append(row["name"])
        return {}

    trained = []
    monkeypatch.setattr(sweep, "train", train)
    (tmp_path / "results").touch()
    set_flags(monkeypatch, workdir=tmp_path / "runs", results=tmp_path / "results")
    with pytest.raises(UserError, match="runs failed, first mnist_squeeze_10 seed 0: NotADirectoryError"):
        sweep.main(MNIST)
    assert len(trained) == sum(len(each["seeds"]) for each in MNIST.rows)


def test_a_sweep_that_has_nothing_to_run_shows_its_table_and_plot(monkeypatch, tmp_path, capsys):
    part = config_sweep(*(each for each in MNIST.rows if each["name"] in ("mnist_gap_v4", "mnist_gap_v5")))
    set_flags(monkeypatch, workdir=tmp_path / "runs", results=ROOT / "results")
    sweep.main(part)
    assert "| 5 of 5 |" in capsys.readouterr().out and (tmp_path / "runs/sweep.png").exists()


def test_results_of_no_commit_are_refused_before_the_first_run(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "commit", lambda: "unknown")
    set_flags(monkeypatch, workdir=tmp_path / "runs", results=tmp_path / "results")
    with pytest.raises(UserError, match="run in a clone with its .git"):
        sweep.main(MNIST)


def test_names_of_rows():
    assert row("configs/candidates.py:mobilenet,fixed")["name"] == "candidates_mobilenet_fixed"
    assert row("configs/mnist_cnn.py", 2, {"training.epochs": 10})["name"] == "mnist_cnn_epochs_10"
    assert row("configs/mnist_cnn.py", (3, 4))["seeds"] == (3, 4)
    assert row("configs/quickstart.py", 1, {"dataset.name": "emnist/digits"})["name"] == "quickstart_name_emnist_digits"
    with pytest.raises(UserError, match="the row's name a/b names a folder, which has no /"):
        row("configs/quickstart.py", name="a/b")


def test_what_is_no_result_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/seed0.json").write_text("{}")
    with pytest.raises(UserError, match=r"a/seed0.json is no result of a run"):
        tables.read(tmp_path)
    result = {"seed": 1, "test": {"top1": 0.5}, "config": {"seed": 1}, "history": [{}]}
    (tmp_path / "a/seed0.json").write_text(json.dumps(result))
    with pytest.raises(UserError, match=r"a/seed0.json holds the result of seed 1"):
        tables.read(tmp_path)


def test_what_is_no_sweep_is_refused():
    with pytest.raises(UserError, match="names no sweep"):
        values = command_line.flags.FlagValues()
        command_line.parse(["sweep", "--config=configs/quickstart.py"], config="sweep", flag_values=values)
