"""The commands in the `sh` blocks of README.md, configs/README.md and docs/*.md: all are checked, slow tests train."""

import copy
import importlib
import json
import re
import shlex
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from absl import flags
from ml_collections.config_flags import get_override_values

from emnist_jax import command_line
from emnist_jax.config import check_read, validate
from emnist_jax.errors import UserError
from emnist_jax.models.layers import Network
from emnist_jax.training.run import network
from processes import ROOT, Processes, run, wait_for

# What is not run, and why.
NOT_RUN = {
    **dict.fromkeys(("python3 -m venv", "."), "they make an environment"),
    **dict.fromkeys(("pip install", "pip wheel", "git clone"), "they need a network"),
    "tensorboard": "it serves until it is stopped",
    "python launch/leak.py": "test_transfer.py runs it",
    "kubectl apply": "it needs a cluster; test_hosts.py runs what the file starts",
}
# Flags whose files or processes are not here; test_weights.py, test_datasets.py, test_hosts.py and test_pruning.py pass
# them.
LEFT_OUT = re.compile(
    "--(workdir|config.init_from|config.dataset.data_dir|config.training.pruned_fraction|distributed|coord|num_proc|"
    "process_id)"
)

POSITIONAL = ("audit", "evaluate", "predict")

PAGES = "".join(path.read_text() for path in (ROOT / "README.md", ROOT / "configs/README.md", *ROOT.glob("docs/*.md")))
BLOCKS = "".join(re.findall(r"^```sh\n(.*?)^```", PAGES, re.M | re.S)).replace("\\\n", " ")
WORDS = [shlex.split(line, comments=True) for line in re.split(r"\n|&&", BLOCKS)]
COMMANDS = sorted({shlex.join(words) for words in WORDS if words})
PROGRAM = re.compile(r"(?:sbatch (?:--\S+ )*|(?:[A-Z_]+=\S+ )+)?(?:launch/\w+\.sh|python -m emnist_jax\.(\w+)) ?(.*)")
OURS = [match for match in map(PROGRAM.match, COMMANDS) if match and match[1] in (None, "main")]
OURS = [match for match in OURS if not re.search(r"(transfer|sweep|all_results|benchmark_gpu)\.sh", match[0])]
TRAININGS = {" ".join(word for word in match[2].split() if not LEFT_OUT.match(word)) for match in OURS}


def parse(program: str, arguments: list[str]) -> flags.FlagValues:
    values, module = flags.FlagValues(), importlib.import_module(f"emnist_jax.{program}")
    names = {own.name for own in vars(module).values() if isinstance(own, flags.FlagHolder)}
    if hasattr(module, "_NETWORK"):  # command_line.define_network_flags
        names |= {"model", "workdir"}
    for name in names:
        values[name] = copy.deepcopy(flags.FLAGS[name])
    arguments = [argument.replace("--config=", f"--config={ROOT}/", 1) for argument in arguments]
    kinds = {"main": "required", "summary": "optional", "sweep": "sweep"}
    command_line.parse([program, *arguments], kinds.get(program), program in POSITIONAL, values)
    return values


def check(command: str, config: pytest.Config) -> None:
    """Raises an error unless a rule covers the command and its program takes it, in a folder that holds `my_set`."""
    words = shlex.split(command)
    assert all((ROOT / word).exists() for word in words if word.startswith(("launch/", "tests/", "results/")))
    if match := PROGRAM.match(command):
        program, arguments = match[1] or ("sweep" if "sweep.sh" in command else "main"), shlex.split(match[2])
        assert program in command_line.COMMANDS, f"no rule for {command}"
        if "benchmark_gpu.sh" in command:
            program = "benchmark"
        if "transfer.sh" in command:  # test_transfer.py runs it
            arguments = ["--config=configs/densenet.py", *arguments[2:]]
        if "all_results.sh" in command:  # test_sweep.py runs it
            program, arguments = "sweep", ["--config=configs/sweeps/all.py", *arguments]
        values = parse(program, arguments)
        if program in ("main", "summary") and values.config:  # test_sweep.py builds all rows
            validate(values.config)
            check_read(values.config, get_override_values(values["config"]))
            network(values.config)
        if program == "summary" and not values.all:  # test_main.py runs --all
            importlib.import_module("emnist_jax.summary").describe(values.config)
    elif words[0] == "pytest":
        markers = {marker.partition(":")[0] for marker in config.getini("markers")}
        assert config._parser.parse(words[1:]).markexpr in {"", *markers}
    else:
        assert command.startswith(tuple(f"{start} " for start in NOT_RUN)), f"no rule for {command}"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_accepted(command, pytestconfig, tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / "my_set/train" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    check(command, pytestconfig)


WRONG = """python -m emnist_jax.main --config=configs/quickstart.py --wrkdir=runs/a
python -m emnist_jax.main --config=configs/quickstart.py --config.training.epoch=5
launch/one_gpu.sh --config=configs/quickstrt.py
launch/two_gpus.sh --config=configs/quickstart.py
python -m emnist_jax.study
pytest -m slwo
pytest --rP
pip3 install ."""


@pytest.mark.parametrize("command", WRONG.splitlines())
def test_a_wrong_command_is_not(command, pytestconfig):
    with pytest.raises((UserError, AssertionError, pytest.UsageError)):
        check(command, pytestconfig)


@pytest.mark.slow
@pytest.mark.parametrize("arguments", sorted(TRAININGS))
def test_a_training_runs(arguments, tmp_path):
    config = parse("main", arguments.split()).config
    target = (
        config.transfer.target and f"--config.transfer.target=synthetic/{config.transfer.target.rpartition('/')[2]}"
    )
    name = config.dataset.name.rpartition("/")[2]
    name = {"emnist_pool": "balanced", "folder": "digits"}.get(name, name)
    tiny = (
        *(f"--config.dataset.name=synthetic/{name}", "--config.dataset.train_per_class=5", f"--workdir={tmp_path}"),
        *("--config.dataset.test_per_class=1", "--config.training.batch_size=8", "--config.training.steps=1"),
        *("--config.dataset.validation_examples=10", "--config.evaluation.batch_size=16"),
        *([target] if target else []),
    )
    done = run("main", *arguments.split(), *tiny)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert json.loads((tmp_path / "result.json").read_text())["step"] == 1


def test_the_list_of_experiments_names_each_file_once():
    folder = ROOT / "configs"
    links = re.findall(r"^\| \[(.*?)\]\((?:sweeps/)?\1\)", (folder / "README.md").read_text(), re.M)
    assert sorted(links) == sorted(path.name for path in folder.rglob("*.py"))


def test_the_readmes_examples_of_what_to_add_work(tmp_path):
    experiment, network_class = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    (tmp_path / "mine.py").write_text(experiment)
    values = flags.FlagValues()
    command_line.parse(["main", f"--config={tmp_path / 'mine.py'}"], flag_values=values)
    validate(values.config)
    assert values.config.dataset.name == "fashion_mnist"

    names = {"Network": Network, "nn": nn}
    exec(network_class, names)
    logits, _ = names["Tiny"](num_classes=10).init_with_output(
        jax.random.key(0), jnp.zeros((2, 28, 28, 1)), train=False
    )
    assert logits.shape == (2, 10)


@pytest.mark.slow
def test_the_tour_runs(tmp_path):
    """Each of its commands in turn, with a training of one step, except what NOT_RUN names."""
    tour = re.search(r"^## A tour\n.*?```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.M | re.S)[1]
    workdir = str(tmp_path / "run")
    more = {
        "main": (
            *(f"--workdir={workdir}", "--config.training.steps=1", "--config.training.batch_size=16"),
            *("--config.dataset.train_per_class=5", "--config.dataset.test_per_class=2"),
        ),
        "evaluate": (f"--out={tmp_path}",),
        "export": (f"--out={tmp_path / 'network.stablehlo'}",),
    }
    said = {"predict": "READ ME 42", "evaluate": "evaluation.html", "export": "same top-1 on"}
    seen = []
    for line in tour.splitlines():
        program, *arguments = shlex.split(line.replace("runs/quickstart", workdir), comments=True)[2:] or [""]
        program = program.removeprefix("emnist_jax.")
        if program in more or program == "predict":
            done = run(program, *arguments, *more.get(program, ()))
            assert done.returncode == 0, done.stderr
            if program not in seen and program != "main":  # that trains too little here
                assert said[program] in done.stdout
            seen.append(program)
        elif program == "demo":
            with Processes(tmp_path) as processes:
                demo = processes.start(sys.executable, "-m", "emnist_jax.demo", "--port=0", "--nobrowser", devices=1)
                wait_for("is ready", tmp_path / "output_0", demo)
            seen.append(program)
    assert seen == ["predict", "main", "predict", "evaluate", "export", "demo"]
    assert (tmp_path / "evaluation.html").exists() and (tmp_path / "network.stablehlo").exists()
