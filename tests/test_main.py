"""The programs as a user starts them: every experiment file, and what bad input prints."""

import ast
import importlib.util
import json
import re

import pytest

from emnist_jax import config as config_lib
from emnist_jax import models
from emnist_jax.config import flatten
from emnist_jax.errors import UserError
from processes import ROOT, run


def module(name: str):
    spec = importlib.util.spec_from_file_location("experiment", ROOT / "configs" / name)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def load(name: str, *variant: str):
    return module(name).get_config(*variant)


CANDIDATES = module("candidates.py").NETWORKS
CONFIGS = sorted({path.name for path in (ROOT / "configs").glob("*.py")} - {"candidates.py"})
# In the default tests, test_stops.py has the one program that trains to its end.
ONE_STEP = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in (
        *CONFIGS,
        *(f"candidates.py:{network}{recipe}" for network in CANDIDATES for recipe in ("", ",fixed")),
        *(f"densenet.py:{layers}" for layers in module("densenet.py").LAYERS),
        *(f"densenet.py:{variant}" for variant in ("pretrain_2", "fixed")),
        *("densenet121.py:fixed", "resnet50.py:fixed", "lenet5.py:fixed", "lenet5.py:rbf"),
        "mnist_onecycle.py:source",
        *(f"mnist_small.py:{size}" for size in ("mini", "tiny", "nano")),
        *(f"mnist_squeeze.py:{i}" for i in range(1, 10)),
        *(f"mnist_gap.py:v{i}" for i in range(1, 5)),
    )
]


@pytest.mark.parametrize("name", ONE_STEP)
def test_every_config_trains(name, tmp_path):
    kind = "mnist" if name.startswith("mnist") else "balanced"
    done = run(
        "main",
        f"--config=configs/{name}",
        f"--workdir={tmp_path}",
        f"--config.dataset.name=synthetic/{kind}",
        "--config.dataset.train_per_class=5",
        "--config.dataset.test_per_class=1",
        "--config.training.batch_size=8",
        "--config.training.steps=1",
        "--config.evaluation.batch_size=16",
        *["--config.transfer.target=synthetic/digits"] * ("pretrain" in name),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["step"] == 1
    assert result["test"]["examples"] == (10 if kind == "mnist" else 47)
    assert f"{result['parameters']:,}" in done.stdout
    assert f"tensorboard --logdir {tmp_path}" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("name", "variant", "optimizer", "rate", "size", "epochs", "schedule"),
    [
        ("resnet50.py", "study", "adam", 5e-4, 2048, 200, "plateau"),
        ("densenet121.py", "study", "nesterov", 0.01, 2048, 200, "constant"),
        ("densenet.py", "final", "nesterov", 0.001, 1024, 100, "plateau"),
        *(("candidates.py", network, "nesterov", 0.001, 1024, 100, "plateau") for network in CANDIDATES),
    ],
)
def test_the_study_s_recipes_and_ours(name, variant, optimizer, rate, size, epochs, schedule):
    study, ours = load(name, variant), load(name, f"{variant},fixed" if variant in CANDIDATES else "fixed")
    for config in (study, ours):
        config_lib.validate(config)
        models.create(config.model, 47)
    assert (study.optimizer.name, study.optimizer.learning_rate, study.schedule.name) == (optimizer, rate, schedule)
    assert (study.training.batch_size, study.training.epochs) == (size, epochs)
    assert (ours.optimizer.name, ours.optimizer.weight_decay, ours.schedule.name) == ("adamw", 0.05, "onecycle")
    strides = [getattr(models.create(config.model, 47), "stem_stride", None) for config in (study, ours)]
    expected = {"vgg16": [None, None], "wide_resnet": [None, None], "final": [2, 2]}
    assert strides == expected.get(variant, [2, 1])


def test_what_else_the_sources_say():
    resnet, densenet, best = load("resnet50.py"), load("densenet.py"), load("mnist_best.py")
    assert (resnet.model.activation, resnet.model.dropout.head) == ("leaky_relu", 0.5)
    assert densenet.augmentation.max_zoom_fraction == 0.1 and not densenet.augmentation.max_brightness_fraction  # aug_4
    assert (best.optimizer.name, best.optimizer.learning_rate, best.schedule.factor) == ("adam", 0.001, 0.98)
    assert (best.training.batch_size, best.training.epochs, best.training.ema_decay) == (120, 150, 0.999)
    assert (best.augmentation.max_rotation_degrees, best.augmentation.max_shift_pixels) == (20, 28 / 5)


@pytest.mark.parametrize(
    ("name", "variant", "message"),
    [
        ("resnet50.py", "fixd", "unknown variant 'fixd'; did you mean 'fixed'?"),
        ("lenet5.py", "rfb", "unknown variant 'rfb'; did you mean 'rbf'?"),
        ("mnist_small.py", "nanno", "unknown variant 'nanno'; did you mean 'nano'?"),
        ("candidates.py", "mobilenet,fixd", "unknown variant 'fixd'; did you mean 'fixed'?"),
        ("candidates.py", "vgg,fixed", "unknown network 'vgg'; did you mean 'vgg16'?"),
    ],
)
def test_an_unknown_variant_is_an_error(name, variant, message):
    with pytest.raises(UserError) as error:
        load(name, variant)
    assert str(error.value) == message


def test_the_variants_of_the_small_network():
    for variant, epochs in (("small", 30), ("mini", 40), ("tiny", 40), ("nano", 40)):
        config = load("mnist_small.py", variant)
        assert (config.model.name, config.training.epochs) == (f"mnist_{variant}", epochs)


def test_the_variants_of_the_densenet():
    assert {load("densenet.py", f"layer_{i}").model.name for i in (1, 2, 3)} == {
        f"densenet_layer_{i}" for i in (1, 2, 3)
    }
    dropout = {
        variant: {place: rate for place, rate in load("densenet.py", variant).model.dropout.items() if rate}
        for variant in (f"dropout_{place}" for place in ("1", "1_1", "2", "3", "4", "5", "5_1"))
    }
    assert dropout == {
        "dropout_1": {"head": 0.5},
        "dropout_1_1": {"head": 0.3},
        "dropout_2": {"block": 0.5},
        "dropout_3": {"transition": 0.5},
        "dropout_4": {"convolution": 0.2},
        "dropout_5": {"stem": 0.5},
        "dropout_5_1": {"stem": 0.2},
    }
    for activation in ("relu", "leaky_relu", "elu", "swish"):
        config = load("densenet.py", activation)
        assert (config.model.activation, config.model.dropout.head) == (activation, 0.0)
        assert config.augmentation == config_lib.base().augmentation
    stacks = [
        {key for key, value in load("densenet.py", f"aug_{i}").augmentation.items() if value != 4.0 and value}
        for i in range(1, 6)
    ]
    added = ("rotation_degrees", "shift_pixels", "elastic_displacement_pixels", "zoom_fraction", "brightness_fraction")
    assert [{key.removeprefix("max_") for key in stack} for stack in stacks] == [set(added[:i]) for i in range(1, 6)]
    halves = [load("densenet.py", f"pretrain_{i}") for i in range(1, 5)]
    assert {half.training.batch_size for half in halves} == {2048}
    assert [(half.dataset.name, half.training.epochs, half.optimizer.learning_rate) for half in halves] == [
        ("emnist/bymerge", 10, 0.001),
        ("emnist/bymerge", 5, 0.1),
        ("emnist/byclass", 3, 0.1),
        ("emnist/bymerge", 5, 0.1),
    ]
    for variant in ("relu", "dropout_3", "aug_5"):
        config = load("densenet.py", variant)
        assert (config.model.name, config.schedule.name) == ("densenet_121_base", "constant")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "pass --config=FILE"),
        (("--config", "configs/nothing.py"), "configs/nothing.py"),
        (("--config=configs/nothing.py",), "cannot read the config file"),
        (("--config=configs/densenet.py:layer_9",), "unknown variant 'layer_9'; did you mean 'layer_4'?"),
        (("--config=configs/candidates.py",), "unknown network ''; known: dpn, efficientnet_b1, mobilenet, "),
        (("--config=configs/quickstart.py", "--config.training.epocs=3"), "did you mean 'epochs'?"),
        (("--config=configs/quickstart.py", "--config.training.epochs=x"), "could not convert"),
        pytest.param(
            ("--config=configs/quickstart.py", "--config.model.name=densnet"),
            "did you mean 'densenet'?",
            marks=pytest.mark.slow,
        ),
        (("--config=configs/quickstart.py", "--confg=x"), "Did you mean: config"),
        (
            ("--config=configs/quickstart.py", "--config.optimizer.name=sgd", "--config.optimizer.momentum=0.5"),
            "config.optimizer.momentum has no effect with config.optimizer.name=sgd, but with momentum, nesterov, muon",
        ),
        pytest.param(
            ("--config=configs/quickstart.py", "--coordinator_address=localhost:99999"),
            "not HOST:PORT",
            marks=pytest.mark.slow,
        ),
        (
            ("--config=configs/quickstart.py", "--distributed", "--coordinator_address=localhost:8476"),
            "Pass --coordinator_address",
        ),
        (("--config=configs/quickstart.py", "--process_id=0"), "pass --distributed, too"),
        (("--config=configs/lenet5.py", "--config.dataset.data_dir=/nowhere"), "/nowhere is no folder"),
    ],
)
def test_bad_input_ends_with_one_line_and_code_2(arguments, message, tmp_path):
    done = run("main", *arguments, f"--workdir={tmp_path}")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(:", "invalid syntax"),
        ("from emnist_jax.config import base\ndef get_config():\n    base().training.epocs = 3", '"epochs"'),
        (
            "from emnist_jax.errors import UserError\ndef get_config():\n    raise UserError('mend it')",
            "error: mend it",
        ),
        ("", "get_config"),
    ],
)
def test_a_faulty_experiment_file_ends_with_one_line_and_code_2(content, message, tmp_path):
    (tmp_path / "faulty.py").write_text(content)
    done = run("main", f"--config={tmp_path / 'faulty.py'}", f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


@pytest.mark.ci
def test_summary():
    done = run("summary", "--config=configs/densenet.py")
    assert done.returncode == 0, done.stderr
    total = models.PUBLISHED["densenet", 47].count
    assert done.stdout.endswith(f"Total params: {total:,}\nTrainable params: 2,128,755\nNon-trainable params: 23,912\n")
    assert re.search(r"conv2_block1_2_conv\W+Conv\W+8 x 8 x 32\W+36,864", done.stdout)
    assert re.search(r"head\W+Dense\W+47\W+21,291", done.stdout)


def test_summary_needs_a_config_or_all():
    done = run("summary")
    assert (
        done.returncode == 2
        and done.stderr == "error: pass --config=FILE, e.g. --config=configs/densenet.py, or --all\n"
    )


@pytest.mark.slow
def test_summary_of_all():
    done = run("summary", "--all")
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.split("\n") if "`" in line]
    assert [(row[0].strip("`"), int(row[2].replace(",", ""))) for row in rows] == models.SETTINGS
    for _, _, _, total, trainable, _, published, _ in rows:
        if published:
            count, of = published.split()
            assert count == {"total": total, "trainable": trainable}[of]
    # The page shows this very table.
    page = (ROOT / "docs/networks.md").read_text()
    assert all(line.strip() in page for line in done.stdout.split("\n") if "`" in line)


# Where a section of the config alone is read, as `config` or `c`.
READERS = {
    "augmentation": "training/augmentation.py",
    "dataset": "datasets/__init__.py",
    "model": "models/__init__.py",
    "optimizer": "training/optimizers.py",
    "schedule": "training/optimizers.py",
}


def test_every_key_of_the_base_config_is_read():
    package, read = ROOT / "emnist_jax", set()
    for path in package.rglob("*.py"):
        if path.name == "config.py":
            continue
        sections = [section for section, reader in READERS.items() if path == package / reader]
        for node in ast.walk(ast.parse(path.read_text())):
            if not (isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)):
                continue
            parent, key = ast.unparse(node).split(".")[-2:]
            if parent in ("config", "c"):
                read |= {f"{section}.{key}" for section in sections} or {key}
            else:
                read.add(f"{parent}.{key}")
    keys = set(flatten(config_lib.base().to_dict()))
    places = {key for key in keys if key.startswith("model.dropout.")}
    assert keys - places <= read
    models_source = "".join(path.read_text() for path in (package / "models").rglob("*.py"))
    assert all(f"{place.rpartition('.')[2]}_dropout" in models_source for place in places)
