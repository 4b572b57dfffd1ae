"""The story of a run: train epoch by epoch, validate, save, and test at most once."""

import contextlib
import logging
import math
import time
from pathlib import Path

import jax
import numpy as np

from emnist_jax import datasets
from emnist_jax.config import flatten, validate
from emnist_jax.environment import environment
from emnist_jax.errors import NotFiniteError, Stopped, UserError
from emnist_jax.reporting import figures, terminal
from emnist_jax.reporting.tensorboard import TensorBoard
from emnist_jax.signals import StopRequest
from emnist_jax.training import evaluation, hosts, train_step
from emnist_jax.training.checkpoints import Checkpoints
from emnist_jax.training.record import Record
from emnist_jax.training.run import Run, build, network
from emnist_jax.training.workdir import as_json, open_workdir, read_result, write_json

log = logging.getLogger(__name__)

# After ten halvings the learning rate is no longer the suspect.
MAX_ROLLBACKS = 10
# A loss that is so many times that of chance has blown up.
BLOWN_UP = 10


def train_and_evaluate(config, workdir: Path, programs: dict | None = None) -> dict:
    """Trains as `config` says, or resumes what an earlier process began, and tests once if `config.evaluation.test`.

    If there are several processes (`jax.distributed`), each calls this; the first alone uses the workdir.

    Args:
      config: The whole config.
      workdir: Takes checkpoints, TensorBoard events, log.txt, config.json and result.json.
      programs: Passed to several calls, it keeps the compiled programs for the next run of another seed.

    Returns:
      What result.json holds; a finished run only prints its result again.

    Raises:
      UserError: Bad config, data or workdir; a full disk; a loss that is not finite.
      Stopped: By a signal, after saving.
    """
    with contextlib.ExitStack() as stack:
        result, data_dir = _open(config, workdir, stack)
        if not result:
            run = build(config)
            if not hosts.all_equal(run.dataset_sha256):
                raise UserError(f"the processes have read different images of {run.dataset.name}")
            with hosts.all_or_none("opened checkpoints"):
                checkpoints = stack.enter_context(contextlib.closing(Checkpoints(workdir)))
            training = Training(run, workdir, checkpoints)
            training.restore()
            training.compile({} if programs is None else programs)
            training.begin()
            stack.callback(training.tensorboard.close)
            training.train()
            result = training.finish()
        elif config.dataset.name == datasets.FOLDER or config.dataset.data_dir != data_dir:
            # The images may be others by now.
            _check_same_images(workdir, result.get("dataset_sha256"), build(config))
        terminal.print_result(result, workdir)
        return result


def _open(config, workdir: Path, stack: contextlib.ExitStack) -> tuple[dict | None, str | None]:
    """Opens the workdir until the stack ends; returns the result that it holds already, if any, and its data_dir."""
    result = data_dir = None
    with hosts.all_or_none("opened"):
        validate(config)
        network(config)  # a misspelt name is an error of its own, not "belongs to another config"
        if hosts.is_first():
            data_dir = stack.enter_context(open_workdir(workdir, config)).get("dataset.data_dir")
            result = read_result(workdir)
        else:
            terminal.start_log(None)
    keys = flatten(as_json(config))
    if not hosts.all_equal(str([keys[key] for key in sorted(keys) if key != "dataset.data_dir"])):
        raise UserError("the processes were given different configs")
    held = hosts.broadcast({"result": result, "data_dir": data_dir})
    return held["result"], held["data_dir"]


def _check_same_images(workdir: Path, dataset_sha256: str, run: Run) -> None:
    """Raises UserError unless the images that the workdir was trained on are the run's."""
    if dataset_sha256 != run.dataset_sha256:
        raise UserError(
            f"{workdir} was trained on other images than those that {run.dataset.name} holds now; "
            "restore them, or pass another --workdir"
        )


class Training:
    """A run under way: its state on the devices, and its record.

    Its public methods are called in the order in which they stand here.
    """

    def __init__(self, run: Run, workdir: Path, checkpoints: Checkpoints):
        self.run, self.workdir, self.checkpoints = run, workdir, checkpoints
        self.record = Record(run.dataset_sha256)
        self.order_key, self.step_key = jax.random.split(jax.random.fold_in(jax.random.key(run.config.seed), 1))
        self.environment = environment()

    def restore(self) -> None:
        """Takes the newest intact checkpoint, or the initial state if there is none."""
        run = self.run
        self._describe()
        if restored := self.checkpoints.restore_latest(run.abstract_state):
            state, self.record = restored
            _check_same_images(self.workdir, self.record.dataset_sha256, run)
            self.state = run.replicate(state)
            log.info("resumed at step %d of %d", self.state.step, run.total_steps)
        else:
            if hosts.is_first() and (self.workdir / "config.json").exists():
                log.warning("%s was begun but has no checkpoint: training starts over", self.workdir)
            self.state, self.record.leaked = run.initial_state(), run.leaked()
        if self.environment["commit"] not in self.record.commits:
            self.record.commits.append(self.environment["commit"])

    @hosts.all_or_none("described")  # a full disk shows here
    def _describe(self) -> None:
        run = self.run
        log.info(
            "%s, %s parameters, on %s: %s training, %s validation and %s test images, %d steps on %s",
            run.config.model.name,
            f"{_size(run.abstract_state.params):,}",
            run.dataset_label,
            *(f"{len(split.labels):,}" for split in (run.dataset.train, run.dataset.validation, run.dataset.test)),
            run.total_steps,
            self.environment["device"],
        )

    def compile(self, programs: dict) -> None:
        """Copies the images to the devices, and compiles the programs of training and evaluation.

        Args:
          programs: Those of an earlier run. They are used if only seed and `init_from` differ, and replaced otherwise.
        """
        run, config, dataset = self.run, self.run.config, self.run.dataset
        started = time.perf_counter()
        self.images, self.labels = run.replicate((dataset.train.images, dataset.train.labels))
        key = str(as_json(config) | {"seed": None, "init_from": None})
        if key not in programs:
            log.info("compiling: seconds for a small network, minutes for a large one")
            programs.clear()
            programs[key] = self._compile()
        self.epoch_order, self.train_steps, self.evaluator = programs[key]
        self.record.compile_seconds += time.perf_counter() - started
        self.validation_batches = self.evaluator.batches(dataset.validation.images)

    def _compile(self) -> tuple:
        """Returns `epoch_order`, `train_steps` and the evaluator, compiled."""
        run, config, dataset = self.run, self.run.config, self.run.dataset
        epoch_order = train_step.make_epoch_order(len(dataset.train.labels), config.training.batch_size, run.mesh)
        arguments = (self.images, self.labels, epoch_order(self.order_key, 0), self.step_key, np.float32(1), 1)
        train_steps = train_step.make_train_steps(run.model, run.optimizer, config, run.mesh)
        evaluator = evaluation.Evaluator(
            run.model,
            config,
            run.mesh,
            run.abstract_state.variables,
            dataset.train.images.shape[1:],
            max(len(dataset.validation.labels), len(dataset.test.labels)),
        )
        return epoch_order, train_steps.lower(run.abstract_state, *arguments).compile(), evaluator

    @hosts.all_or_none("begun")
    def begin(self) -> None:
        """Writes config.json and the first events: last, so that a refused start does not claim the workdir."""
        if hosts.is_first():
            write_json(self.workdir / "config.json", as_json(self.run.config))
        self.tensorboard = TensorBoard(self.workdir if hosts.is_first() else None, self.record.epochs)
        self.tensorboard.figure("augmented_inputs", self._augmented_inputs(), 0)

    def train(self) -> None:
        """Trains to the end.

        Raises:
          Stopped: By a signal, after saving.
          UserError: A loss that is not finite, unless a rollback helps.
        """
        run, stopped_by = self.run, None
        step = int(self.state.step)
        with StopRequest() as stop_request, terminal.Progress(step, run.total_steps) as progress:
            while not (self._finished or stopped_by):
                not_finite, stopped_by = self._train_epoch(stop_request, progress)
                if not not_finite and int(self.state.step) == self._epoch_end():
                    not_finite = self._end_epoch()
                    stopped_by = stopped_by or stop_request.received()
                if not_finite:
                    self._roll_back(not_finite)
                else:
                    self.checkpoints.save(self.state, self.record)
            self.checkpoints.wait()
            # Asked again: a signal may have come since, which nobody would hear later.
            if stopped_by := stop_request.received():
                raise Stopped(f"stopped by {stopped_by} at step {int(self.state.step):,} of {run.total_steps:,}")
        if self.record.step < run.total_steps:
            log.info("early stopping: no lower validation loss for %d epochs", self.record.stale_epochs)

    def _epoch_end(self) -> int:
        return min((len(self.record.epochs) + 1) * self.run.steps_per_epoch, self.run.total_steps)

    @property
    def _finished(self) -> bool:
        patience = self.run.config.training.early_stopping_epochs
        early = patience and self.record.stale_epochs >= patience
        return bool(early) or self.record.step >= self.run.total_steps

    def _order(self) -> jax.Array:
        """Returns the rows of the epoch under way: int32 `[steps per epoch, batch]`."""
        return self.epoch_order(self.order_key, len(self.record.epochs))

    def _train_epoch(self, stop_request: StopRequest, progress: terminal.Progress) -> tuple[str | None, str | None]:
        """Trains to the epoch's end, unless something is not finite or a signal comes: returns which."""
        order, scale = self._order(), np.float32(self.record.learning_rate_scale(self.run.config))
        step, epoch_end = int(self.state.step), self._epoch_end()
        while step < epoch_end:
            started = time.perf_counter()
            expected = min(step + self.run.config.training.steps_per_call, epoch_end)
            self.state = self.train_steps(
                self.state, self.images, self.labels, order, self.step_key, scale, expected - step
            )
            # Waiting for each call costs microseconds, and keeps virtual CPU devices from deadlock.
            step = int(self.state.step)
            self.record.epoch_seconds += time.perf_counter() - started
            progress.update(step)
            stopped_by = stop_request.received()
            if step < expected:
                return "the loss, a gradient or an update", stopped_by
            if stopped_by:
                return None, stopped_by
        return None, None

    def _end_epoch(self) -> str | None:
        """Validates and records the epoch that ends here; or returns what is not finite."""
        run, record, dataset = self.run, self.record, self.run.dataset
        step, seconds = int(self.state.step), record.epoch_seconds
        epoch = {
            "epoch": step / run.steps_per_epoch,
            "step": step,
            "train": {name: float(value) for name, value in jax.device_get(self.state.metrics).compute().items()},
            "learning_rate": float(run.schedule(step - 1)) * record.learning_rate_scale(run.config),
            "images_per_second": (step - record.step) * run.config.training.batch_size / seconds,
            "seconds": seconds,
            "unix_time": time.time(),
        }
        if len(dataset.validation.labels):
            logits = self.evaluator.logits(
                self.state.variables, self.validation_batches, len(dataset.validation.labels)
            )
            # Rounding may differ between processes: all decide by the first one's.
            epoch["validation"] = hosts.broadcast(evaluation.measure(logits, dataset.validation.labels))
            if not math.isfinite(epoch["validation"]["loss"]):
                return "the validation loss"
        record.end_epoch(epoch)
        self.state = self.state.replace(metrics=run.replicate(train_step.Metrics.empty()))
        self._report_epoch(epoch)
        return None

    @hosts.all_or_none("reported")
    def _report_epoch(self, epoch: dict) -> None:
        self.tensorboard.epoch(epoch)
        splits = [split for split in ("train", "validation") if split in epoch]
        log.info(
            "%s  epoch %g%s  learning rate %.3g  %s images/s  %.1f s",
            self.run.dataset_label,
            epoch["epoch"],
            "".join(f"  {x} loss {epoch[x]['loss']:.4f} top-1 {100 * epoch[x]['top1']:.2f} %" for x in splits),
            epoch["learning_rate"],
            f"{epoch['images_per_second']:,.0f}",
            epoch["seconds"],
        )
        chance = math.log(len(self.run.dataset.class_names))
        if epoch["train"]["loss"] > BLOWN_UP * chance:
            log.warning(
                "the training loss is %.0f times that of chance: training has diverged; "
                "lower config.optimizer.learning_rate in another --workdir",
                epoch["train"]["loss"] / chance,
            )

    def _roll_back(self, not_finite: str) -> None:
        """Goes back to the last epoch's end, with half the learning rate.

        Args:
          not_finite: What it was; the state is the one before it.

        Raises:
          UserError: A rollback is not wanted, or of no use: names the step, and what holds its state and images.
        """
        run, record, step = self.run, self.record, int(self.state.step)
        what = f"{not_finite} of step {step:,} (epoch {step / run.steps_per_epoch:.2f}) is not finite"
        if advice := self._why_no_rollback(step):
            log.error("%s", what)
            raise NotFiniteError(f"{what}; {self._save_evidence(step)}; {advice}")
        self.checkpoints.set_aside_after(record.step)
        if not record.step:
            self.state = run.initial_state()
        elif restored := self.checkpoints.restore(run.abstract_state, [record.step]):
            self.state = run.replicate(restored[0])
        else:
            raise UserError(f"{what}, and checkpoint {record.step} is damaged; the same command goes further back")
        record.roll_back(step)
        log.warning("%s: back to step %d, with %g times the learning rate", what, record.step, record.rollback_scale)

    def _why_no_rollback(self, step: int) -> str | None:
        """Returns what to do instead of a rollback from `step`, or None if it may help."""
        if self.run.config.on_nan == "stop":
            return "lower config.optimizer.learning_rate in another --workdir, or set --config.on_nan=rollback"
        if step == self.record.step:
            return (
                "a rollback cannot help; lower config.optimizer.learning_rate in another --workdir "
                f"({self.record.rollback_scale:g} of it was tried)"
            )
        if len(self.record.rollbacks) == MAX_ROLLBACKS:
            return f"{MAX_ROLLBACKS} rollbacks did not help; look for the cause in the images or the network"
        return None

    def _save_evidence(self, step: int) -> str:
        """Saves the state and the images that led to what is not finite, and returns where they are."""
        self.checkpoints.save(self.state, self.record)
        self.checkpoints.wait()
        where = f"checkpoint {step} holds the state"
        if step < self._epoch_end():
            path, train = self.workdir / f"not_finite_step_{step}.npz", self.run.dataset.train
            rows = jax.jit(lambda order, row: order[row], out_shardings=self.run.replicated)
            rows = np.asarray(rows(self._order(), step % self.run.steps_per_epoch))
            where += f" before it, {path} its images"
            with hosts.all_or_none("saved images"):
                if hosts.is_first():
                    np.savez_compressed(path, rows=rows, images=train.images[rows], labels=train.labels[rows])
        return where

    def finish(self) -> dict:
        """Takes the last or the best epoch, tests it if it may, writes result.json, and returns what it holds."""
        run, record, dataset = self.run, self.record, self.run.dataset
        last = chosen = record.epochs[-1]
        if run.config.training.select == "best":
            chosen = self._restore_best()
            if chosen is not last:
                log.info("epoch %g is the best by validation top-1", chosen["epoch"])
        of_test, predictions = self._test()
        config = as_json(run.config)
        config["dataset"]["data_dir"] = None  # another folder is no other experiment
        trainable = _size(self.state.params)
        result = {
            "model": run.config.model.name,
            "dataset": dataset.name,
            "dataset_sha256": run.dataset_sha256,
            "class_names": list(dataset.class_names),
            "synthetic": dataset.synthetic,
            "shared_images": run.shared_images,
            "target_sha256": run.target_sha256,
            "leaked": record.leaked,
            "parameters": trainable + _size(self.state.batch_stats),
            "trainable_parameters": trainable,
            **of_test,
            "validation": chosen.get("validation"),
            "epochs": last["epoch"],
            "step": chosen["step"],
            "rollbacks": record.rollbacks,
            "train_seconds": record.train_seconds,
            "seconds_per_epoch": record.train_seconds / last["epoch"],
            "images_per_second": last["step"] * run.config.training.batch_size / record.train_seconds,
            "compile_seconds": record.compile_seconds,
            "seed": run.config.seed,
            **self.environment,
            "commit": ", ".join(record.commits),
            "config": config,
            "history": record.epochs,
        }
        self._report_result(result, predictions)
        return result

    def _test(self) -> tuple[dict, np.ndarray | None]:
        """Returns what result.json says of the test images, and their predicted labels, if they may be looked at."""
        if not self.run.config.evaluation.test:
            return dict.fromkeys(("test", "evaluation_seconds", "inference_seconds")), None
        test, variables = self.run.dataset.test, self.state.variables
        # Everything is compiled and in place before the clock starts.
        batches = jax.block_until_ready(self.evaluator.batches(test.images))
        self.evaluator.logits(variables, batches[:1], 1)
        evaluation.measure(np.zeros((len(test.labels), len(self.run.dataset.class_names)), np.float32), test.labels)
        started = time.perf_counter()
        logits = self.evaluator.logits(variables, batches, len(test.labels))
        inference_seconds = time.perf_counter() - started
        measured = evaluation.measure(logits, test.labels)
        evaluation_seconds = time.perf_counter() - started
        if not math.isfinite(measured["loss"]):
            raise UserError(f"the test loss is not finite; checkpoint {int(self.state.step)} holds the state")
        return {
            "test": measured,
            "evaluation_seconds": evaluation_seconds,
            "inference_seconds": inference_seconds,
        }, logits.argmax(-1)

    def _restore_best(self) -> dict:
        """Restores the best epoch whose checkpoint is intact, and returns what the record says of it."""
        epochs = self.record.epochs
        steps = [epoch["step"] for epoch in self.record.best_first]
        if restored := self.checkpoints.restore(self.run.abstract_state, steps[: steps.index(epochs[-1]["step"])]):
            self.state = self.run.replicate(restored[0])
            return next(epoch for epoch in epochs if epoch["step"] == self.state.step)
        return epochs[-1]

    @hosts.all_or_none("finished")
    def _report_result(self, result: dict, predictions: np.ndarray | None) -> None:
        run, last_step = self.run, self.record.step
        split, measured = terminal.measured(result)
        # "validation/" is the curve over the epochs, whose last value may be another epoch's.
        of = "test" if split == "test" else "chosen"
        scores = {f"{of}/{name}": measured[name] for name in ("top1", "top5")}
        self.tensorboard.scalars({f"{of}/loss": measured["loss"], **scores}, last_step)
        if predictions is not None:
            title, class_names = f"{run.config.model.name} on {run.dataset_label}, test", run.dataset.class_names
            counts = np.zeros((len(class_names),) * 2, int)
            np.add.at(counts, (run.dataset.test.labels, predictions), 1)
            figure = figures.confusion_figure(counts, class_names, title)
            self.tensorboard.figure("confusion_matrix", figure, last_step)
        self.tensorboard.hyper_parameters(run.config.to_dict(), scores)
        if hosts.is_first():
            write_json(self.workdir / "result.json", result)

    def _augmented_inputs(self):
        """Draws the first training images as the network sees them."""
        run, train = self.run, self.run.dataset.train
        images, labels = train.images[:32], train.labels[:32]
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.step_key, np.arange(len(images)))
        inputs = jax.jit(lambda images, keys: train_step.network_input(images, run.config, run.model.input_shape, keys))
        names = [run.dataset.class_names[label] for label in labels]
        return figures.images_figure(np.asarray(inputs(images, keys))[..., 0], names, f"augmented {run.dataset_label}")


def _size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
