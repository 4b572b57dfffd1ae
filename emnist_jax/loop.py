"""The story of a run: load, train epoch by epoch, validate, save, and test once."""

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
        result = json.loads(result_path.read_text())
        report.print_result(result, workdir)
        return result

    mesh = training.make_mesh()
    if config.training.batch_size % mesh.devices.size:
        nearest = max(round(config.training.batch_size / mesh.devices.size), 1) * mesh.devices.size
        raise UserError(
            f"config.training.batch_size={config.training.batch_size} cannot be split over "
            f"{mesh.devices.size} devices; the nearest that can is {nearest}"
        )
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

    model = models.create(config.model, len(dataset.class_names), training.AXIS)
    optimizer, schedule = optimizers.create(config, total_steps, steps_per_epoch)
    plateau = optimizers.create_plateau(config)
    state = training.create_state(model, optimizer, plateau, config, mesh)
    parameters = sum(x.size for x in jax.tree.leaves((state.params, state.batch_stats)))
    log.info(
        "%s, %s parameters, on %s%s: %s training, %s validation and %s test images, %d steps on %s",
        config.model.name,
        f"{parameters:,}",
        dataset.name,
        " (synthetic)" if dataset.synthetic else "",
        *(f"{len(split.labels):,}" for split in (dataset.train, dataset.validation, dataset.test)),
        total_steps,
        report.environment()["device"],
    )

    # From here on the workdir belongs to this config: what could be wrong with it has been found.
    report.write_json(workdir / "config.json", _as_json(config))
    saved = checkpoints.Checkpoints(workdir)
    replicated = NamedSharding(mesh, P())
    abstract_state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated), state)
    progress = {"epochs": [], "early_stopping": None, "train_seconds": 0.0, "compile_seconds": 0.0}
    if restored := saved.restore(abstract_state):
        state, progress = restored
        log.info("resumed at step %d of %d", state.step, total_steps)
    elif config.init_from:
        loaded = checkpoints.transfer(Path(config.init_from), state.params, state.batch_stats)
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

    tensorboard = report.TensorBoard(workdir, purge_step=int(state.step))
    if state.step == 0:
        tensorboard.figure("augmented_inputs", _augmented_inputs(model, config, dataset, step_key), 0)
    early_stopping = EarlyStopping(
        # flax stops at the first epoch after its patience, Keras at its last one.
        patience=(config.training.early_stopping_epochs or total_steps + 1) - 1,
        **(progress["early_stopping"] or {}),
    )

    step = int(state.step)
    with report.progress_bar(total_steps) as bar:
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

            train = {name: float(value) for name, value in state.metrics.compute().items()}
            learning_rate = float(schedule(step - 1))
            if plateau:
                learning_rate *= float(state.plateau.scale)
            images_per_second = (step - first_step) * config.training.batch_size / seconds
            record = {
                "epoch": step / steps_per_epoch,
                "step": step,
                "train": train,
                "learning_rate": learning_rate,
                "images_per_second": images_per_second,
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
            _tell(record, tensorboard, bar)
    if early_stopping.should_stop:
        log.info("early stopping: no lower validation loss for %d epochs", config.training.early_stopping_epochs)

    chosen = progress["epochs"][-1]
    if config.training.select == "best":
        chosen = max(progress["epochs"], key=lambda record: (record["validation"]["top1"], record["step"]))
    saved.close()
    if chosen["step"] != step:
        state, _ = checkpoints.Checkpoints(workdir).restore(abstract_state, chosen["step"])
        log.info("testing the best epoch, %g", chosen["epoch"])

    test_batches = jax.block_until_ready(evaluator.put(dataset.test.images))
    evaluator.logits(state.variables, test_batches[:1], 1)
    started = time.perf_counter()
    logits = evaluator.logits(state.variables, test_batches, len(dataset.test.labels))
    inference_seconds = time.perf_counter() - started
    test = evaluation.measure(logits, dataset.test.labels)
    evaluation_seconds = time.perf_counter() - started

    result = {
        "model": config.model.name,
        "dataset": dataset.name,
        "synthetic": dataset.synthetic,
        "parameters": parameters,
        "test": test,
        "validation": chosen.get("validation"),
        "epochs": progress["epochs"][-1]["epoch"],
        "step": chosen["step"],
        "train_seconds": progress["train_seconds"],
        "compile_seconds": progress["compile_seconds"],
        "images_per_second": step * config.training.batch_size / progress["train_seconds"],
        "seconds_per_epoch": progress["train_seconds"] / progress["epochs"][-1]["epoch"],
        "evaluation_seconds": evaluation_seconds,
        "inference_seconds": inference_seconds,
        "seed": config.seed,
        **report.environment(),
    }
    tensorboard.scalars({f"test/{name}": test[name] for name in ("loss", "top1", "top5")}, step)
    figure = report.confusion_figure(dataset.test.labels, logits.argmax(-1), dataset.class_names)
    tensorboard.figure("confusion_matrix", figure, step)
    tensorboard.hyper_parameters(config.to_dict(), {f"test/{name}": test[name] for name in ("top1", "top5")})
    tensorboard.close()
    report.write_json(result_path, result)
    report.print_result(result, workdir)
    return result


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
    found, wanted = (report.flatten(c) for c in (json.loads(path.read_text()), _as_json(config)))
    differing = {key for key in found.keys() | wanted.keys() if found.get(key) != wanted.get(key)}
    # Where the files lie makes no other experiment.
    if differing := sorted(differing - {"dataset.data_dir"}):
        pairs = ", ".join(f"{key} was {found.get(key)}, is {wanted.get(key)}" for key in differing)
        raise UserError(f"{workdir} belongs to another config ({pairs}); pass another --workdir")


def _as_json(config) -> dict:
    return json.loads(json.dumps(config.to_dict()))


def _tell(record: dict, tensorboard: report.TensorBoard, bar) -> None:
    """Reports an epoch to TensorBoard, the log and the progress bar."""
    scalars = {name: record[name] for name in ("learning_rate", "images_per_second")}
    line = f"epoch {record['epoch']:g}"
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


def _augmented_inputs(model, config, dataset, key):
    """Draws the first training images as the network sees them."""
    images, labels = dataset.train.images[:32], dataset.train.labels[:32]
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, np.arange(len(images)))
    inputs = jax.jit(lambda images, keys: training.prepare(images, config, model.input_shape, keys))
    names = [dataset.class_names[label] for label in labels]
    return report.images_figure(np.asarray(inputs(images, keys))[..., 0], names)
