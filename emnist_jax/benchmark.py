"""Times networks beside PyTorch's, in turn, on this device: `python -m emnist_jax.benchmark [--out=FILE.json]`.

PyTorch is optional: `pip install -e '.[benchmark]'`. docs/speed.md says what is compared.
"""

import concurrent.futures
import dataclasses
import importlib.util
import itertools
import json
import multiprocessing
import os
from pathlib import Path

from absl import flags

from emnist_jax import command_line, signals
from emnist_jax.errors import UserError, unknown

MODELS = ["mnist_squeeze_10", "mnist_gap_v5", "mnist_onecycle", "mnist_cnn", "lenet5", "densenet"]

_MODELS = flags.DEFINE_list("models", MODELS, "Networks")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["128"], "Images of a batch")
_TASKS = flags.DEFINE_list("tasks", ["training", "augmented training", "inference"], "What they do")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the computation")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Turns of each contender", lower_bound=1)
_SECONDS = flags.DEFINE_float("seconds", 1.0, "Of a turn", lower_bound=0.01)
_OUT = flags.DEFINE_string("out", None, "JSON file that takes the figures", allow_override=True)


def main() -> None:
    from emnist_jax import models
    from emnist_jax.benchmarking import contenders, limits, race
    from emnist_jax.reporting import speed
    from emnist_jax.training import hosts

    for task in _TASKS.value:
        if task not in contenders.TASKS:
            raise unknown("task", task, contenders.TASKS)
    for name in _MODELS.value:
        if name not in models.MODELS:
            raise unknown("model", name, models.MODELS)
    if not all(size.isdecimal() and int(size) for size in _BATCH_SIZES.value):
        raise UserError(f"--batch_sizes={','.join(_BATCH_SIZES.value)} must be whole numbers above 0")
    with_pytorch = importlib.util.find_spec("torch") is not None
    if not with_pytorch:
        print("PyTorch is not installed, so that there is nothing to compare with: pip install -e '.[benchmark]'")
    out = Path(os.path.expanduser(_OUT.value)) if _OUT.value else None
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
    # Contenders share one GPU.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    # The first batch is to include all compilation.
    os.environ |= {"JAX_ENABLE_COMPILATION_CACHE": "false", "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn, signals.leave_to_parent) as executor:
        executor.submit(hosts.check_devices).result()
        device = executor.submit(limits.measure, _DTYPE.value).result()
        environment = executor.submit(speed.environment).result()
    record = {
        **{"environment": environment, "device": device, "rows": []},
        **{"rounds": _ROUNDS.value, "seconds": _SECONDS.value},
    }
    print(speed.describe(record), flush=True)
    print(speed.HEADER, flush=True)
    for name, size, task in itertools.product(_MODELS.value, map(int, _BATCH_SIZES.value), _TASKS.value):
        setting = contenders.Setting(name, size, task, _DTYPE.value, environment["platform"])
        taking_part = contenders.CONTENDERS[: None if with_pytorch else 1]
        outcomes = race.race(taking_part, setting, _ROUNDS.value, _SECONDS.value)
        if with_pytorch and task == "augmented training":
            # In a race of its own: its workers go on between its turns.
            outcomes += race.race((contenders.SOURCES_WAY,), setting, _ROUNDS.value, _SECONDS.value)
        row = {
            **dataclasses.asdict(setting),
            "limit_images_per_second": limits.images_per_second(setting, device),
            "contenders": {outcome.name: dataclasses.asdict(outcome) for outcome in outcomes},
        }
        record["rows"].append(row)
        if out:
            out.write_text(json.dumps(record, indent=1) + "\n")
        print(speed.line(row), flush=True)
        for outcome in outcomes:
            if outcome.error:
                print(f"{outcome.name} failed: {outcome.error}", flush=True)


if __name__ == "__main__":
    command_line.run(main, config=None)
