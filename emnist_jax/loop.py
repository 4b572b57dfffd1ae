"""The story of a run: load, train epoch by epoch, validate, save, and test once."""

import contextlib
import json
import logging
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.training.early_stopping import EarlyStopping
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from emnist_jax import checkpoints, datasets, evaluation, models, optimizers, report, training
from emnist_jax.config import validate
from emnist_jax.errors import UserError

log = logging.getLogger(__name__)


def train_and_evaluate(config, workdir: Path) -> dict:
    """Trains as `config` says, or goes on where an earlier process stopped, and tests once.

    Args:
      config: The whole config.
      workdir: Takes checkpoints, TensorBoard events, log.txt, config.json and result.json.

    Returns:
      What result.json holds; a finished run only prints its result again.

    Raises:
      UserError: Bad config, data or workdir.
    """
    validate(config)
    _check_workdir(workdir, config)
    result_path = workdir / "result.json"
    if result_path.exists():
        result = _read_json(result_path)
        report.print_result(result, workdir)
        return result

    mesh = training.make_mesh()
    if config.training.batch_size % mesh.devices.size:
        nearest = max(round(config.training.batch_size / mesh.devices.size), 1) * mesh.devices.size
        raise UserError(
            f"config.training.batch_size={config.training.batch_size} cannot be split over "
            f"{mesh.devices.size} devices; the nearest that can is {nearest}"
        )
    class_names = datasets.class_names(config.dataset.name)
    model = models.create(config.model, len(class_names), training.AXIS)
    dataset = datasets.load(config.dataset)
    validated = len(dataset.validation.labels) > 0
    steps_per_epoch = len(dataset.train.labels) // config.training.batch_size
    if not steps_per_epoch:
        raise UserError(
            f"config.training.batch_size={config.training.batch_size} is more than the "
            f"{len(dataset.train.labels):,} training images"
        )
    total_steps = config.training.steps or math.ceil(config.training.epochs * steps_per_epoch)
    if not validated and (
        config.training.select == "best" or config.schedule.name == "plateau" or config.training.early_stopping_epochs
    ):
        raise UserError(
            "without validation images there is no best epoch, plateau or early stopping: set "
            "config.training.select=last, another schedule, or config.dataset.validation_examples"
        )

    optimizer, schedule = optimizers.create(config, total_steps, steps_per_epoch)
    plateau = optimizers.create_plateau(config)
    state = training.create_state(model, optimizer, plateau, config, mesh)
    parameters = sum(x.size for x in jax.tree.leaves((state.params, state.batch_stats)))
    environment = report.environment()
    dataset_label = f"{dataset.name} (synthetic)" if dataset.synthetic else dataset.name
    log.info(
        "%s, %s parameters, on %s: %s training, %s validation and %s test images, %d steps on %s",
        config.model.name,
        f"{parameters:,}",
        dataset_label,
        *(f"{len(split.labels):,}" for split in (dataset.train, dataset.validation, dataset.test)),
        total_steps,
        environment["device"],
    )

    saved = checkpoints.Checkpoints(workdir)
    replicated = NamedSharding(mesh, P())
    abstract_state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), state)
    progress = {"epochs": [], "early_stopping": None, "train_seconds": 0.0, "compile_seconds": 0.0}
    if restored := saved.restore_latest(abstract_state):
        state, progress = restored
        log.info("resumed at step %d of %d", state.step, total_steps)
    elif config.init_from:
        loaded = checkpoints.transfer(config.init_from, state.params, state.batch_stats)
        params, batch_stats = jax.device_put(loaded, replicated)
        state = state.replace(params=params, batch_stats=batch_stats)
        if state.ema_params is not None:
            state = state.replace(ema_params=jax.tree.map(jnp.copy, params))
        log.info("parameters and batch_stats come from %s", config.init_from)

    started = time.perf_counter()
    images, labels = jax.device_put((dataset.train.images, dataset.train.labels), replicated)
    order_key, step_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1))
    epoch_order = training.make_epoch_order(len(dataset.train.labels), config.training.batch_size, mesh)
    order = epoch_order(order_key, 0)
    train_steps = (
        training.make_train_steps(model, optimizer, config, mesh)
        .lower(state, images, labels, order, step_key, 1)
        .compile()
    )
    evaluator = evaluation.Evaluator(model, config, mesh, abstract_state.variables, dataset.train.images.shape[1:])
    progress["compile_seconds"] += time.perf_counter() - started
    validation_batches = evaluator.put(dataset.validation.images)

    # From here on the workdir is this config's: what could be wrong with it has been found.
    report.write_json(workdir / "config.json", _as_json(config))
    step = int(state.step)
    tensorboard = report.TensorBoard(workdir, purge_step=step)
    if step:
        _tell(progress["epochs"][-1], dataset_label, tensorboard)
    else:
        figure = _augmented_inputs(model, config, dataset, step_key, f"augmented {dataset_label}")
        tensorboard.figure("augmented_inputs", figure, step)
    early_stopping = EarlyStopping(
        # flax stops at the first epoch after its patience, Keras at its last one.
        patience=(config.training.early_stopping_epochs or total_steps + 1) - 1,
        **(progress["early_stopping"] or {}),
    )

    with contextlib.closing(saved), contextlib.closing(tensorboard):
        with report.progress_bar(step, total_steps) as bar:
            while step < total_steps and not early_stopping.should_stop:
                epoch = step // steps_per_epoch
                epoch_end = min((epoch + 1) * steps_per_epoch, total_steps)
                order = epoch_order(order_key, epoch)
                started, first_step = time.perf_counter(), step
                while step < epoch_end:
                    count = min(config.training.steps_per_call, epoch_end - step)
                    state = train_steps(state, images, labels, order, step_key, count)
                    # Waiting for each call costs microseconds, and keeps virtual CPU devices from deadlock.
                    step = int(state.step)
                    bar.update(bar.task_ids[0], completed=step)
                seconds = time.perf_counter() - started
                progress["train_seconds"] += seconds

                learning_rate = float(schedule(step - 1))
                if plateau:
                    learning_rate *= float(state.plateau.scale)
                record = {
                    "epoch": step / steps_per_epoch,
                    "step": step,
                    "train": {name: float(value) for name, value in state.metrics.compute().items()},
                    "learning_rate": learning_rate,
                    "images_per_second": (step - first_step) * config.training.batch_size / seconds,
                    "seconds": seconds,
                }
                if validated:
                    logits = evaluator.logits(state.variables, validation_batches, len(dataset.validation.labels))
                    record["validation"] = evaluation.measure(logits, dataset.validation.labels)
                    loss = record["validation"]["loss"]
                    early_stopping = early_stopping.update(loss)
                    progress["early_stopping"] = {
                        "best_metric": early_stopping.best_metric,
                        "patience_count": early_stopping.patience_count,
                        "should_stop": early_stopping.should_stop,
                    }
                    if plateau:
                        fed = optimizers.feed_plateau(plateau, state.plateau, loss)
                        state = state.replace(plateau=jax.device_put(fed, replicated))
                state = state.replace(metrics=jax.device_put(training.Metrics.empty(), replicated))
                progress["epochs"].append(record)
                saved.save(state, progress)
                _tell(record, dataset_label, tensorboard)
        if early_stopping.should_stop:
            log.info("early stopping: no lower validation loss for %d epochs", config.training.early_stopping_epochs)

        last = progress["epochs"][-1]
        chosen, state = _choose(config, saved, abstract_state, progress["epochs"], state)
        if chosen is not last:
            log.info("testing epoch %g, the best by validation top-1", chosen["epoch"])

        # Everything is compiled and in place before the clock starts.
        test_labels = dataset.test.labels
        test_batches = jax.block_until_ready(evaluator.put(dataset.test.images))
        evaluator.logits(state.variables, test_batches[:1], 1)
        evaluation.measure(np.zeros((len(test_labels), len(class_names)), np.float32), test_labels)
        started = time.perf_counter()
        logits = evaluator.logits(state.variables, test_batches, len(test_labels))
        inference_seconds = time.perf_counter() - started
        test = evaluation.measure(logits, test_labels)
        evaluation_seconds = time.perf_counter() - started

        result = {
            "model": config.model.name,
            "dataset": dataset.name,
            "synthetic": dataset.synthetic,
            "parameters": parameters,
            "test": test,
            "validation": chosen.get("validation"),
            "epochs": last["epoch"],
            "step": chosen["step"],
            "train_seconds": progress["train_seconds"],
            "seconds_per_epoch": progress["train_seconds"] / last["epoch"],
            "images_per_second": step * config.training.batch_size / progress["train_seconds"],
            "compile_seconds": progress["compile_seconds"],
            "evaluation_seconds": evaluation_seconds,
            "inference_seconds": inference_seconds,
            "seed": config.seed,
            **environment,
            "history": progress["epochs"],
        }
        tensorboard.scalars({f"test/{name}": test[name] for name in ("loss", "top1", "top5")}, step)
        title = f"{config.model.name} on {dataset_label}, test"
        figure = report.confusion_figure(test_labels, logits.argmax(-1), class_names, title)
        tensorboard.figure("confusion_matrix", figure, step)
        tensorboard.hyper_parameters(config.to_dict(), {f"test/{name}": test[name] for name in ("top1", "top5")})
    report.write_json(result_path, result)
    report.print_result(result, workdir)
    return result


def _choose(config, saved: checkpoints.Checkpoints, abstract_state, epochs: list[dict], state) -> tuple:
    """Returns the record of the epoch to test and its state; `state` is the last one's."""
    last = epochs[-1]
    if config.training.select == "best":
        steps = saved.steps()
        for record in checkpoints.by_preference(epochs):
            if record is last:
                break
            if record["step"] in steps and (restored := saved.restore(record["step"], abstract_state)):
                return record, restored[0]
    return last, state


def _check_workdir(workdir: Path, config) -> None:
    """Makes the workdir, or checks that it is this config's, and starts the log in it."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        report.start_log(workdir / "log.txt")
    except OSError as error:
        raise UserError(f"cannot write the workdir {workdir}: {error.strerror}") from error
    path = workdir / "config.json"
    if not path.exists():
        return
    found, wanted = report.flatten(_read_json(path)), report.flatten(_as_json(config))
    differing = {key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)}
    # Where the files lie makes no other experiment.
    if differing := sorted(differing - {"dataset.data_dir"}):
        pairs = ", ".join(f"{key} was {found.get(key)}, is {wanted.get(key)}" for key in differing)
        raise UserError(f"{workdir} belongs to another config ({pairs}); pass another --workdir")


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}; delete it, or pass another --workdir") from error


def _as_json(config) -> dict:
    return json.loads(json.dumps(config.to_dict()))


def _tell(record: dict, dataset_label: str, tensorboard: report.TensorBoard) -> None:
    """Reports an epoch to TensorBoard and the log."""
    scalars = {name: record[name] for name in ("learning_rate", "images_per_second")}
    line = f"{dataset_label}  epoch {record['epoch']:g}"
    for split in ("train", "validation"):
        if split in record:
            values = record[split]
            scalars |= {f"{split}/{name}": values[name] for name in ("loss", "top1", "top5")}
            line += f"  {split} loss {values['loss']:.4f} top-1 {100 * values['top1']:.2f} %"
    tensorboard.scalars(scalars, record["step"])
    log.info(
        "%s  learning rate %.3g  %s images/s  %.1f s",
        line,
        record["learning_rate"],
        f"{record['images_per_second']:,.0f}",
        record["seconds"],
    )


def _augmented_inputs(model, config, dataset, key, title: str):
    """Draws the first training images as the network sees them."""
    images, labels = dataset.train.images[:32], dataset.train.labels[:32]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(len(images)))
    inputs = jax.jit(lambda images, keys: training.prepare(images, config, model.input_shape, keys))
    names = [dataset.class_names[label] for label in labels]
    return report.images_figure(np.asarray(inputs(images, keys))[..., 0], names, title)
