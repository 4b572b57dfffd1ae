"""Bad overrides and experiment files: one line says what is wrong, and what is accepted can be built and trained."""

import functools
import math
import random
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from absl import flags
from hypothesis import given

from emnist_jax import command_line, config, datasets, errors, models
from emnist_jax.datasets import official, synthetic
from emnist_jax.models import layers
from emnist_jax.training import loop, train_step
from emnist_jax.training.optimizers import OPTIMIZERS, SCHEDULES
from emnist_jax.training.run import build
from shared import attempt, fuzz, mutated, randoms, repeated

# ml_collections loads experiment files as Python 3.11 did.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


# For every key.
PLAIN = ["0", "1", "-1", "1.5", "1e400", "nan", "inf", "True", "None", "", "x"]
VALUES = [
    *PLAIN,
    *("2", "16", "0.5", "1e-3", "-0.0", "+1", "1_0", "0x10", "0b1", "1e", "1j", "١"),
    *("-inf", "1e-400", "1e9", "1e30", "1e39", "1e-30", "1e-45", "0.999999999", "20000"),
    *("20001", "2147483647", "2147483648", "4294967295", "4294967296", "true", "False", "none"),
    *("null", "[]", "[1]", "(1,2)", "{}", "{'name':1}", "float('nan')", "1;2", "é", "名", "--", "=", "'", "%s"),
    *("{0}", "${HOME}", "../..", "[/x]", "[red]", ":warning:", "keras:", "keras:/dev/zero", "pytorch:x"),
    *("/dev/zero", "/nowhere", " ", " 1 ", "1\n", "\n", "a\nb", "a b", "lambda: 1", "\udcff", "\x00"),
    *("\x1b[31m", "9" * 24, "1" * 5000, "x" * 5000),
]
KEYS = list(config.flatten(config.base().to_dict()))
WRONG_KEYS = [
    *(".", "..", "model", "model.", "model.dropout", "dataset", "seed.x", "Seed", "a=b", "model.dropout.keys"),
    *("keys", "__class__", "lock", "", "model.__dict__", "optimizer.learning-rate", "training epochs"),
    *("training.epocs", "é", "\x00"),
]
NAMES = {
    "dataset.name": datasets.NAMES,
    "model.name": list(models.MODELS),
    "model.activation": list(layers.ACTIVATIONS),
    "model.initializer": list(layers.INITIALIZERS),
    "model.dtype": ["float32", "bfloat16"],
    "model.convolution": ["auto", "xla", "matmul"],
    "optimizer.name": list(OPTIMIZERS),
    "schedule.name": list(SCHEDULES),
    "training.select": ["best", "last"],
    "on_nan": ["stop", "rollback"],
}


@pytest.fixture(scope="module")
def experiment(folder):
    """An experiment file of a tiny run, whose images are black and rendered in no time."""
    path = folder / "tiny.py"
    path.write_text(
        "from emnist_jax.config import base\n"
        "def get_config():\n"
        "    config = base()\n"
        "    config.dataset.name = 'synthetic/digits'\n"
        "    config.dataset.train_per_class = 10\n"
        "    config.dataset.test_per_class = 2\n"
        "    config.model.name = 'mnist_gap_v3'\n"
        "    config.training.batch_size = 16\n"
        "    return config\n"
    )

    def no_data(name, official_set):
        raise errors.UserError(f"no network for {name}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthetic, "_glyphs", functools.cache(synthetic._glyphs))
        patch.setattr(synthetic, "_distorted", lambda glyphs, ranges, rng: np.zeros((len(ranges), 28, 28), np.uint8))
        patch.setattr(official, "_read_tfds", no_data)
        yield path


def prepare(experiment: Path, *arguments: str):
    """Does all that comes before training; returns the run, or the UserError."""

    def start():
        flag_values = flags.FlagValues()
        command_line.parse(["program", f"--config={experiment}", *arguments], flag_values=flag_values)
        config.validate(flag_values.config)
        return build(flag_values.config)

    return attempt(start)


def check_overrides(experiment: Path, *arguments: str):
    """Prepares a run; if it is accepted, its numbers and its learning rates are finite."""
    run = prepare(experiment, *arguments)
    if not isinstance(run, errors.UserError):
        values = config.flatten(run.config.to_dict()).values()
        assert all(math.isfinite(value) for value in values if isinstance(value, (int, float)))
        assert 0 < run.total_steps < 2**31
        steps = {0, 1, run.total_steps // 3, run.total_steps // 2, run.total_steps - 1}
        rates = [float(run.schedule(step)) for step in steps]
        assert all(0 <= rate <= run.config.optimizer.learning_rate * (1 + 1e-6) for rate in rates), rates
    return run


def random_overrides(rng: random.Random) -> list[str]:
    arguments = []
    for _ in range(rng.choice((1, 2, 3, 6))):
        key = rng.choice(KEYS)
        # Mostly what is right, or no combination would be reached.
        if key in NAMES and rng.randrange(8):
            value = rng.choice(NAMES[key])
        elif key in ("init_from", "dataset.data_dir", *NAMES) or rng.randrange(8):
            value = rng.choice(("1", "2", "0", "0.5", "0.1", "3", "1e-3", "True", "16", "4"))
        else:
            value = rng.choice(VALUES)
        if not rng.randrange(20):
            key = rng.choice(WRONG_KEYS)
        if not rng.randrange(20):
            key = mutated(rng, key.encode()).decode(errors="replace")
        if not rng.randrange(20):
            value = mutated(rng, value.encode(errors="replace")).decode(errors="replace")
        form = rng.randrange(8)
        if form == 0:
            arguments += [f"--config.{key}", value]
        else:
            arguments.append(f"-config.{key}={value}" if form == 1 else f"--config.{key}={value}")
    return arguments


@pytest.mark.parametrize("key", [*KEYS, *WRONG_KEYS])
def test_every_key_with_values_of_every_sort(experiment, key):
    rest = VALUES[len(PLAIN) :]
    # Of the others a fourth: keys of one type read alike, and the fuzz test draws all.
    values = [*PLAIN, *rest[KEYS.index(key) % 4 :: 4]] if key in KEYS else ("", "1", "{}", "é")
    for value in values:
        run = check_overrides(experiment, f"--config.{key}={value}")
        if key in WRONG_KEYS:
            assert isinstance(run, errors.UserError)
    for arguments in ((f"--config.{key}",), (f"--noconfig.{key}",), (f"--config.{key}", "--config.seed=1")):
        check_overrides(experiment, *arguments)


@repeated(150)
@given(randoms)
def test_combinations_of_overrides(experiment, rng):
    check_overrides(experiment, *random_overrides(rng))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config.model={}"], "is a section; set its keys, e.g. --config.model.activation"),
        (["--config.model.dropout={'head': 0.5}"], "--config.model.dropout.block"),
        (["-config.training.epocs=3"], "did you mean 'epochs'?"),
        (["--config.seed=1", "--config.seed=x"], "invalid literal"),
        (["--config.seed=1\n2"], "invalid literal"),
        (["--config.dataset.data_dir=\udcff"], "no UTF-8"),
        (["--config.dataset.mean=nan"], "config.dataset.mean is nan; it must be between -1000 and 1000"),
        (["--config.dataset.std=1e-9"], "between 1e-06 and 1e+06"),
        (["--config.dataset.seed=1267650600228229401496703205376"], "config.dataset.seed"),
        (["--config.dataset.train_per_class=20001"], "20,000"),
        (["--config.optimizer.epsilon=0"], "config.optimizer.epsilon"),
        (["--config.optimizer.beta2=0.999999999"], "config.optimizer.beta2"),
        (["--config.training.epochs=1e9"], "too many"),
        (["--config.training.steps_per_call=2147483648"], "config.training.steps_per_call"),
        (["--config.training.steps=None"], "invalid literal"),
        (["--flagfile=/nowhere"], "flagfile"),
        (["rest"], "unexpected argument 'rest'"),
        (["configs/a.py:b"], "pass --config=configs/a.py:b"),
        (["--optimizer.learning_rate=0.1"], "did you mean --config.optimizer.learning_rate?"),
        (["--config.training.epochs=0"], "config.training.epochs is 0.0; it must be more than 0 and at most 1e+09"),
        (["--workdir"], "Unknown command line flag"),
    ],
)
def test_what_is_wrong_is_said(experiment, arguments, message):
    assert message in str(prepare(experiment, *arguments))


def test_the_last_of_an_overrides_values_counts(experiment):
    assert prepare(experiment, "--config.seed=1", "--config.seed", "2").config.seed == 2


BASE = "from emnist_jax.config import base\ndef get_config():\n    config = base()\n"
DICT = "from ml_collections import ConfigDict\ndef get_config():\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{DICT}    return None", "pass --config"),
        (f"{DICT}    return 3", "to_dict"),
        (f"{DICT}    return ConfigDict({{'modl': 3}})", 'Did you mean "model" instead of "modl"?'),
        (f"{DICT}    return ConfigDict({{'model': 3}})", "items"),
        (f"{DICT}    return ConfigDict({{'seed': 'x'}})", "seed"),
        (f"{DICT}    raise KeyError", "KeyError"),
        (f"{DICT}    assert False", "AssertionError"),
        (f"{BASE}    config.model = None\n    return config", "items"),
        (f"{BASE}    config.training.batch_size = None\n    return config", "config.training.batch_size is None"),
        (f"{BASE}    config.dataset.name = None\n    return config", "unknown data set None"),
        (f"{BASE}    config.training.steps = 2.5\n    return config", "steps"),
        ("\0", "null bytes"),
        ("(" * 1000, "("),
    ],
)
def test_faulty_experiment_files(folder, content, message):
    (folder / "faulty.py").write_text(content)
    found = prepare(folder / "faulty.py")
    assert isinstance(found, errors.UserError) and message in str(found) and len(str(found)) < 300


def test_an_experiment_file_may_leave_keys_out(folder, experiment):
    (folder / "short.py").write_text(f"{DICT}    return ConfigDict({{'seed': 7}})")
    run = prepare(folder / "short.py", "--config.seed=8")
    assert run.config.seed == 8 and run.config.is_locked
    assert run.config.optimizer == config.base().optimizer


@pytest.mark.parametrize("allocation", ["numpy.zeros(1 << 50)", "jax.numpy.zeros(1 << 46).block_until_ready()"])
def test_running_out_of_memory_is_one_line(allocation):
    program = (
        f"import jax, numpy\nfrom emnist_jax import command_line\ncommand_line.run(lambda _: {allocation}, 'optional')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("error: out of memory") and "batch_size" in done.stderr


def trace(run) -> None:
    """Traces a training step and an evaluation, without computing anything."""
    state = run.create_state.eval_shape(jax.random.key(0))
    size = run.config.training.batch_size
    images = jax.ShapeDtypeStruct((size, 28, 28), np.uint8)
    rows = jax.ShapeDtypeStruct((1, size), np.int32)
    steps = train_step.make_train_steps(run.model, run.optimizer, run.config, run.mesh)
    key = jax.random.key(0)
    labels = jax.ShapeDtypeStruct((size,), np.int32)
    after = steps.eval_shape(state, images, labels, rows, key, np.float32(1), 1)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    logits = jax.eval_shape(
        lambda variables, images: run.model.clone(axis_name=None).apply(
            variables, train_step.network_input(images, run.config, run.model.input_shape), train=False
        ),
        state.variables,
        images,
    )
    assert logits.shape == (size, len(run.dataset.class_names)) and logits.dtype == np.float32


# Each at the end of its range, and what goes with it.
EXTREMES = [
    ("optimizer.name=muon", "optimizer.momentum=0", "model.dtype=bfloat16", "training.ema_decay=0.999999"),
    ("optimizer.name=adamw", "optimizer.epsilon=1e9", "optimizer.beta2=0.999999", "optimizer.weight_decay=1e9"),
    ("schedule.name=step", "schedule.step_epochs=1e9", "schedule.factor=1e-30", "training.steps=1000000000"),
    ("schedule.name=onecycle", "schedule.warmup_fraction=0", "schedule.initial_divisor=1e9", "training.steps=1"),
    ("schedule.name=onecycle", "schedule.warmup_fraction=0.99", "schedule.final_divisor=1e9", "training.epochs=1e8"),
    ("schedule.name=plateau", "schedule.patience_epochs=1000000000", "schedule.min_learning_rate=0.001"),
    ("schedule.name=cosine", "schedule.warmup_epochs=0.2", "training.label_smoothing=1", "model.sync_batch_norm=False"),
    (
        "augmentation.max_rotation_degrees=180",
        "augmentation.max_shear_degrees=80",
        "augmentation.max_zoom_fraction=.99",
    ),
    ("augmentation.elastic_displacement_pixels=1e9", "augmentation.elastic_smoothness_pixels=1e9"),
    ("model.name=lenet5", "model.dropout.head=0.99", "dataset.name=synthetic/byclass", "model.convolution=xla"),
    ("training.batch_size=80", "training.steps_per_call=1000000000", "evaluation.batch_size=1000000000"),
]


@pytest.mark.ci
@pytest.mark.parametrize("extremes", EXTREMES)
def test_what_is_accepted_can_be_built(experiment, extremes):
    run = check_overrides(experiment, *(f"--config.{override}" for override in extremes))
    assert not isinstance(run, errors.UserError), run
    trace(run)


@pytest.mark.slow
def test_fuzz_overrides(experiment):
    fuzz(
        "config overrides",
        20_000,
        lambda rng: not isinstance(check_overrides(experiment, *random_overrides(rng)), errors.UserError),
    )


@pytest.mark.slow
def test_accepted_overrides_can_be_built_and_some_trained(experiment, tmp_path):
    rng = random.Random(0)
    traced = 0
    while traced < 40:
        run = check_overrides(experiment, *random_overrides(rng))
        if not isinstance(run, errors.UserError):
            trace(run)
            traced += 1
    for i, extremes in enumerate(EXTREMES):
        run = prepare(experiment, *(f"--config.{override}" for override in extremes), "--config.training.steps=2")
        found = attempt(functools.partial(loop.train_and_evaluate, run.config, tmp_path / str(i)))
        assert isinstance(found, dict) or "not finite" in str(found), found
    print(f"{traced} accepted configs traced, {len(EXTREMES)} trained")
