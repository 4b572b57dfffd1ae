"""The story of a run: load, train epoch by epoch, validate, save, and test once."""

import contextlib
import dataclasses
import hashlib
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax.training.early_stopping import EarlyStopping
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from emnist_jax import datasets, models
from emnist_jax.config import flatten, validate
from emnist_jax.errors import Stopped, UserError
from emnist_jax.models.layers import Network
from emnist_jax.reporting import figures, terminal
from emnist_jax.reporting.environment import environment
from emnist_jax.reporting.tensorboard import TensorBoard
from emnist_jax.training import checkpoints, evaluation, hosts, optimizers, train_step
from emnist_jax.training.signals import StopRequest
from emnist_jax.training.workdir import as_json, open_workdir, read_result, write_json

log = logging.getLogger(__name__)

# A learning rate that diverges at a thousandth of what was asked for is not the cause.
MAX_ROLLBACKS = 10
# The state counts them in an int32.
MAX_STEPS = 2**31 - 1


def train_and_evaluate(config, workdir: Path) -> dict:
    """Trains as `config` says, or goes on where an earlier process stopped, and tests once.

    Of several processes (`jax.distributed`) each calls this; the first alone uses the workdir.

    Args:
      config: The whole config.
      workdir: Takes checkpoints, TensorBoard events, log.txt, config.json and result.json.

    Returns:
      What result.json holds; a finished run only prints its result again.

    Raises:
      UserError: Bad config, data or workdir; a full disk; a loss that is not finite.
      Stopped: By a signal, after saving.
    """
    with contextlib.ExitStack() as stack:
        result = None
        with hosts.together("opened"):
            validate(config)
            _network(config)  # a misspelt name is not yet another config
            if hosts.is_first():
                stack.enter_context(open_workdir(workdir, config))
                result = read_result(workdir)
            else:
                terminal.start_log(None)
        keys = flatten(as_json(config))
        if not hosts.agree(str([keys[key] for key in sorted(keys) if key != "dataset.data_dir"])):
            raise UserError("the processes were given different configs")
        result = hosts.from_first(result)
        if not result:
            with hosts.together("prepared"):
                run = _prepare(config)
                saved = stack.enter_context(contextlib.closing(checkpoints.Checkpoints(workdir)))
            if not hosts.agree(run.dataset_sha256):
                raise UserError(f"the processes have read different images of {run.dataset.name}")
            under_way = _Training(run, workdir, saved)
            stack.callback(under_way.tensorboard.close)
            under_way.train()
            result = under_way.test()
        terminal.print_result(result, workdir)
        return result


@dataclasses.dataclass(frozen=True)
class _Run:
    """What a config asks for, loaded and built."""

    config: Any
    mesh: Mesh
    dataset: datasets.Dataset
    dataset_sha256: str
    model: Network
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    plateau: optax.GradientTransformationExtraArgs | None
    create_state: Callable
    steps_per_epoch: int
    total_steps: int

    @property
    def dataset_label(self) -> str:
        return f"{self.dataset.name} (synthetic)" if self.dataset.synthetic else self.dataset.name

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, P())

    def put(self, tree):
        """Puts a tree of arrays whole on every device."""
        return train_step.put(tree, self.replicated)

    def initial_state(self) -> train_step.TrainState:
        """Returns the state at step 0, with the parameters of `init_from`."""
        state = self.create_state(jax.random.key(self.config.seed))
        if self.config.init_from:
            params, batch_stats = checkpoints.transfer(self.config.init_from, state.params, state.batch_stats)
            # Put twice: the state's buffers are donated, and one buffer cannot be donated twice.
            ema_params = state.ema_params and self.put(params)
            state = state.replace(params=self.put(params), batch_stats=self.put(batch_stats), ema_params=ema_params)
            log.info("parameters and batch_stats come from %s", self.config.init_from)
        return state


def _network(config) -> Network:
    return models.create(config.model, len(datasets.class_names(config.dataset.name)), train_step.AXIS)


def _prepare(config) -> _Run:
    """Loads the data and builds the network: what is wrong with a config shows here."""
    mesh = train_step.make_mesh()
    devices = mesh.devices.size
    if config.training.batch_size % devices:
        nearest = max(round(config.training.batch_size / devices), 1) * devices
        raise UserError(
            f"config.training.batch_size={config.training.batch_size} cannot be split over "
            f"{devices} devices; the nearest that can is {nearest}"
        )
    model = _network(config)
    dataset = datasets.load(config.dataset)
    steps_per_epoch = len(dataset.train.labels) // config.training.batch_size
    if not steps_per_epoch:
        raise UserError(
            f"config.training.batch_size={config.training.batch_size} is more than the "
            f"{len(dataset.train.labels):,} training images"
        )
    total_steps = config.training.steps or math.ceil(config.training.epochs * steps_per_epoch)
    if total_steps > MAX_STEPS:
        raise UserError(
            f"config.training.epochs={config.training.epochs:g} are {total_steps:,} steps: too many to count"
        )
    if not len(dataset.validation.labels) and (
        config.training.select == "best" or config.schedule.name == "plateau" or config.training.early_stopping_epochs
    ):
        raise UserError(
            "without validation images there is no best epoch, plateau or early stopping: set "
            "config.training.select=last, another schedule, or config.dataset.validation_examples"
        )
    digest = hashlib.sha256()
    for split in (dataset.train, dataset.validation, dataset.test):
        digest.update(split.images)
        digest.update(split.labels)
    optimizer, schedule = optimizers.create(config, total_steps, steps_per_epoch)
    plateau = optimizers.create_plateau(config)
    return _Run(
        config=config,
        mesh=mesh,
        dataset=dataset,
        dataset_sha256=digest.hexdigest(),
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        plateau=plateau,
        create_state=train_step.make_create_state(model, optimizer, plateau, config, mesh),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )


class _Training:
    """A run under way: its state on the devices, and the record of its progress.

    Args:
      run: What to do.
      workdir: Takes what is told of it.
      saved: Its checkpoints; the newest one that is intact is gone on from.
    """

    def __init__(self, run: _Run, workdir: Path, saved: checkpoints.Checkpoints):
        config, dataset = run.config, run.dataset
        self.run, self.workdir, self.saved = run, workdir, saved
        self.abstract_state = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=run.replicated),
            run.create_state.eval_shape(jax.random.key(config.seed)),
        )
        variables = (self.abstract_state.params, self.abstract_state.batch_stats)
        self.parameters = sum(x.size for x in jax.tree.leaves(variables))
        self.environment = environment()
        with hosts.together("described"):  # a full disk shows here
            log.info(
                "%s, %s parameters, on %s: %s training, %s validation and %s test images, %d steps on %s",
                config.model.name,
                f"{self.parameters:,}",
                run.dataset_label,
                *(f"{len(split.labels):,}" for split in (dataset.train, dataset.validation, dataset.test)),
                run.total_steps,
                self.environment["device"],
            )
        self.progress = {
            "dataset_sha256": run.dataset_sha256,
            "epochs": [],
            "early_stopping": None,
            "rollbacks": [],
            "epoch_seconds": 0.0,  # of training, in the epoch under way
            "train_seconds": 0.0,
            "compile_seconds": 0.0,
        }
        if restored := saved.restore_latest(self.abstract_state):
            state, self.progress = restored
            self.state = run.put(state)
            if self.progress["dataset_sha256"] != run.dataset_sha256:
                raise UserError(
                    f"{workdir} was trained on other images than those that {dataset.name} holds now; restore them, "
                    "or pass another --workdir"
                )
            log.info("resumed at step %d of %d", self.state.step, run.total_steps)
        else:
            if hosts.is_first() and (workdir / "config.json").exists():
                log.warning("%s was begun but has no checkpoint: training starts over", workdir)
            self.state = run.initial_state()
        self.early_stopping = EarlyStopping(
            # flax stops at the first epoch after its patience, Keras at its last one.
            patience=(config.training.early_stopping_epochs or run.total_steps + 1) - 1,
            **(self.progress["early_stopping"] or {}),
        )

        log.info("compiling: a minute or more for a large network")
        started = time.perf_counter()
        self.images, self.labels = run.put((dataset.train.images, dataset.train.labels))
        self.order_key, self.step_key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1))
        self.epoch_order = train_step.make_epoch_order(len(dataset.train.labels), config.training.batch_size, run.mesh)
        order = self.epoch_order(self.order_key, 0)
        self.train_steps = (
            train_step.make_train_steps(run.model, run.optimizer, config, run.mesh)
            .lower(self.abstract_state, self.images, self.labels, order, self.step_key, 1)
            .compile()
        )
        self.evaluator = evaluation.Evaluator(
            run.model,
            config,
            run.mesh,
            self.abstract_state.variables,
            dataset.train.images.shape[1:],
            max(len(dataset.validation.labels), len(dataset.test.labels)),
        )
        self.progress["compile_seconds"] += time.perf_counter() - started
        self.validation_batches = self.evaluator.put(dataset.validation.images)

        with hosts.together("begun"):
            # From here on the workdir is this config's: what could be wrong with it has been found.
            if hosts.is_first():
                write_json(workdir / "config.json", as_json(config))
            self.tensorboard = TensorBoard(workdir if hosts.is_first() else None, self.progress["epochs"])
            self.tensorboard.figure("augmented_inputs", self._augmented_inputs(), 0)

    @property
    def last_epoch_end(self) -> int:
        """The step of the newest record, from which an epoch begins."""
        epochs = self.progress["epochs"]
        return epochs[-1]["step"] if epochs else 0

    def train(self) -> None:
        """Trains to the end, or to a stop."""
        run, config, progress = self.run, self.run.config, self.progress
        step = int(self.state.step)
        with StopRequest() as stop_request, terminal.progress_bar(step, run.total_steps) as bar:
            while self.last_epoch_end < run.total_steps and not self.early_stopping.should_stop:
                epoch = len(progress["epochs"])
                epoch_end = min((epoch + 1) * run.steps_per_epoch, run.total_steps)
                order = self.epoch_order(self.order_key, epoch)
                not_finite, stopped_by = None, None
                while step < epoch_end and not (not_finite or stopped_by):
                    started = time.perf_counter()
                    expected = min(step + config.training.steps_per_call, epoch_end)
                    self.state = self.train_steps(
                        self.state, self.images, self.labels, order, self.step_key, expected - step
                    )
                    # Waiting for each call costs microseconds, and keeps virtual CPU devices from deadlock.
                    step = int(self.state.step)
                    progress["epoch_seconds"] += time.perf_counter() - started
                    bar.update(bar.task_ids[0], completed=step)
                    if step < expected:
                        not_finite = "the loss, a gradient or an update"
                    stopped_by = stop_request.received()
                if not_finite:
                    self._roll_back(not_finite, order)
                elif step == epoch_end and not self._end_epoch():
                    self._roll_back("the validation loss")
                else:
                    with hosts.together("saved"):
                        self.saved.save(self.state, progress)
                step = int(self.state.step)
                if stopped_by:
                    break
            with hosts.together("saved"):
                self.saved.wait()
            # Asked for again: a signal may have come since, and no longer ends the process.
            if stopped_by := stop_request.received():
                raise Stopped(f"stopped by {stopped_by} at step {step:,} of {run.total_steps:,}")
        if self.early_stopping.should_stop:
            log.info("early stopping: no lower validation loss for %d epochs", config.training.early_stopping_epochs)

    def _end_epoch(self) -> bool:
        """Validates, and reports the epoch that ends here; returns False where the validation loss is not finite."""
        run, progress, validation = self.run, self.progress, self.run.dataset.validation
        measured = None
        if len(validation.labels):
            logits = self.evaluator.logits(self.state.variables, self.validation_batches, len(validation.labels))
            # What they decide on must not differ by a last digit.
            measured = hosts.from_first(evaluation.measure(logits, validation.labels))
            if not math.isfinite(measured["loss"]):
                return False
        step, seconds = int(self.state.step), progress["epoch_seconds"]
        metrics, plateau, learning_rate_scale = jax.device_get(
            (self.state.metrics, self.state.plateau, self.state.learning_rate_scale)
        )
        record = {
            "epoch": step / run.steps_per_epoch,
            "step": step,
            "train": {name: float(value) for name, value in metrics.compute().items()},
            "learning_rate": float(run.schedule(step - 1) * learning_rate_scale * (plateau.scale if plateau else 1)),
            "images_per_second": (step - self.last_epoch_end) * run.config.training.batch_size / seconds,
            "seconds": seconds,
            "unix_time": time.time(),
        }
        progress["train_seconds"] += seconds
        progress["epoch_seconds"] = 0.0
        if measured:
            record["validation"] = measured
            self.early_stopping = self.early_stopping.update(measured["loss"])
            progress["early_stopping"] = {
                "best_metric": self.early_stopping.best_metric,
                "patience_count": self.early_stopping.patience_count,
                "should_stop": self.early_stopping.should_stop,
            }
            if plateau:
                plateau = run.put(optimizers.feed_plateau(run.plateau, plateau, measured["loss"]))
                self.state = self.state.replace(plateau=plateau)
        self.state = self.state.replace(metrics=run.put(train_step.Metrics.empty()))
        progress["epochs"].append(record)
        with hosts.together("told"):
            self.tensorboard.epoch(record)
            _tell(record, run.dataset_label)
        return True

    def _roll_back(self, not_finite: str, order: jax.Array | None = None) -> None:
        """Goes back to the end of the epoch before something was not finite, with half the learning rate.

        Args:
          not_finite: What it was.
          order: Of the epoch, where it was in a step; the state is the one before that.

        Raises:
          UserError: That is not wanted, or of no use: names the step, and where its state and images are.
        """
        run, progress, epoch_end = self.run, self.progress, self.last_epoch_end
        step, scale = int(self.state.step), float(self.state.learning_rate_scale)
        what = f"{not_finite} of step {step:,} (epoch {step / run.steps_per_epoch:.2f}) is not finite"
        if run.config.on_nan == "stop":
            advice = "lower config.optimizer.learning_rate in another --workdir, or set --config.on_nan=rollback"
        elif step == epoch_end:
            advice = (
                "a rollback cannot help; lower config.optimizer.learning_rate in another --workdir "
                f"({scale:g} of it was tried)"
            )
        elif len(progress["rollbacks"]) == MAX_ROLLBACKS:
            advice = f"{MAX_ROLLBACKS} rollbacks did not help; look for the cause in the images or the network"
        else:
            advice = None
        if advice:
            log.error("%s", what)
            kept = f"checkpoint {step} holds the state"
            if order is not None:
                path = self.workdir / f"not_finite_step_{step}.npz"
                rows = jax.jit(lambda order, row: order[row], out_shardings=run.replicated)
                rows = np.asarray(rows(order, step % run.steps_per_epoch))
                kept += f" before it, {path} its images"
            with hosts.together("saved"):
                self.saved.save(self.state, progress)
                self.saved.wait()
                if order is not None and hosts.is_first():
                    train = run.dataset.train
                    np.savez_compressed(path, rows=rows, images=train.images[rows], labels=train.labels[rows])
            raise UserError(f"{what}; {kept}; {advice}")

        with hosts.together("set aside"):
            self.saved.set_aside_after(epoch_end)
        if not epoch_end:
            state = run.initial_state()
        elif restored := self.saved.restore(self.abstract_state, [epoch_end]):
            state = run.put(restored[0])
        else:
            raise UserError(f"{what}, and checkpoint {epoch_end} is damaged; the same command goes further back")
        self.state = state.replace(learning_rate_scale=run.put(np.float32(scale / 2)))
        log.warning("%s: back to step %d, with %g times the learning rate", what, epoch_end, scale / 2)
        progress["train_seconds"] += progress["epoch_seconds"]
        progress["epoch_seconds"] = 0.0
        progress["rollbacks"].append({"step": step, "to_step": epoch_end, "learning_rate_scale": scale / 2})

    def test(self) -> dict:
        """Tests the last or the best epoch, and returns what result.json holds."""
        run, progress = self.run, self.progress
        config, dataset = run.config, run.dataset
        last = chosen = progress["epochs"][-1]
        if config.training.select == "best":
            chosen = self._restore_best()
            if chosen is not last:
                log.info("testing epoch %g, the best by validation top-1", chosen["epoch"])

        # Everything is compiled and in place before the clock starts.
        labels, variables = dataset.test.labels, self.state.variables
        batches = jax.block_until_ready(self.evaluator.put(dataset.test.images))
        self.evaluator.logits(variables, batches[:1], 1)
        evaluation.measure(np.zeros((len(labels), len(dataset.class_names)), np.float32), labels)
        started = time.perf_counter()
        logits = self.evaluator.logits(variables, batches, len(labels))
        inference_seconds = time.perf_counter() - started
        test = evaluation.measure(logits, labels)
        if not math.isfinite(test["loss"]):
            raise UserError(f"the test loss is not finite; checkpoint {chosen['step']} holds the state")
        evaluation_seconds = time.perf_counter() - started

        result = {
            "config": as_json(config) | {"dataset": as_json(config)["dataset"] | {"data_dir": None}},
            "model": config.model.name,
            "dataset": dataset.name,
            "dataset_sha256": run.dataset_sha256,
            "synthetic": dataset.synthetic,
            "parameters": self.parameters,
            "test": test,
            "validation": chosen.get("validation"),
            "epochs": last["epoch"],
            "step": chosen["step"],
            "rollbacks": progress["rollbacks"],
            "train_seconds": progress["train_seconds"],
            "seconds_per_epoch": progress["train_seconds"] / last["epoch"],
            "images_per_second": last["step"] * config.training.batch_size / progress["train_seconds"],
            "compile_seconds": progress["compile_seconds"],
            "evaluation_seconds": evaluation_seconds,
            "inference_seconds": inference_seconds,
            "seed": config.seed,
            **self.environment,
            "history": progress["epochs"],
        }
        with hosts.together("tested"):
            self.tensorboard.scalars({f"test/{name}": test[name] for name in ("loss", "top1", "top5")}, last["step"])
            title = f"{config.model.name} on {run.dataset_label}, test"
            figure = figures.confusion_figure(labels, logits.argmax(-1), dataset.class_names, title)
            self.tensorboard.figure("confusion_matrix", figure, last["step"])
            accuracies = {f"test/{name}": test[name] for name in ("top1", "top5")}
            self.tensorboard.hyper_parameters(config.to_dict(), accuracies)
            if hosts.is_first():
                write_json(self.workdir / "result.json", result)
        return result

    def _restore_best(self) -> dict:
        """Restores the best epoch whose checkpoint is intact, and returns its record."""
        epochs = self.progress["epochs"]
        steps = [record["step"] for record in checkpoints.by_preference(epochs)]
        if restored := self.saved.restore(self.abstract_state, steps[: steps.index(epochs[-1]["step"])]):
            self.state = self.run.put(restored[0])
            return next(record for record in epochs if record["step"] == self.state.step)
        return epochs[-1]

    def _augmented_inputs(self):
        """Draws the first training images as the network sees them."""
        run = self.run
        images, labels = run.dataset.train.images[:32], run.dataset.train.labels[:32]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.step_key, np.arange(len(images)))
        inputs = jax.jit(lambda images, keys: train_step.prepare(images, run.config, run.model.input_shape, keys))
        names = [run.dataset.class_names[label] for label in labels]
        return figures.images_figure(np.asarray(inputs(images, keys))[..., 0], names, f"augmented {run.dataset_label}")


def _tell(record: dict, dataset_label: str) -> None:
    line = f"{dataset_label}  epoch {record['epoch']:g}"
    for split in ("train", "validation"):
        if split in record:
            line += f"  {split} loss {record[split]['loss']:.4f} top-1 {100 * record[split]['top1']:.2f} %"
    log.info(
        "%s  learning rate %.3g  %s images/s  %.1f s",
        line,
        record["learning_rate"],
        f"{record['images_per_second']:,.0f}",
        record["seconds"],
    )
