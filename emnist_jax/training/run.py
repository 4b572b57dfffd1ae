"""What a config asks for, loaded and built: data, network, optimizer. All that is wrong with a config shows here."""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from emnist_jax import datasets, models
from emnist_jax.config import validate
from emnist_jax.datasets import duplicates
from emnist_jax.errors import UserError
from emnist_jax.models.layers import Network
from emnist_jax.training import hosts, optimizers, train_step, weights

log = logging.getLogger(__name__)

# The state counts steps in an int32.
MAX_STEPS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Run:
    """A config with all that it names.

    Attributes:
      config: The whole config.
      mesh: Of the devices that share a batch.
      dataset: The images and labels, in this process' memory.
      dataset_sha256: Of all of them.
      shared_images: How many of the training and validation images stand in the validation or test split of
        `config.transfer.target`; None without a target.
      target_sha256: Of all images and labels of that target; None without one.
      model: The network.
      optimizer: With the schedule in it.
      schedule: The learning rate of a step, for the record.
      create_state: Makes the train state at step 0, from a key.
      steps_per_epoch: The number of whole batches in the training images.
      total_steps: Of the whole training.
    """

    config: Any
    mesh: Mesh
    dataset: datasets.Dataset
    dataset_sha256: str
    shared_images: int | None
    target_sha256: str | None
    model: Network
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    create_state: Callable
    steps_per_epoch: int
    total_steps: int

    @property
    def dataset_label(self) -> str:
        return f"{self.dataset.name} (synthetic)" if self.dataset.synthetic else self.dataset.name

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, P())

    def replicate(self, tree):
        """Copies a tree of arrays, whole, to every device."""
        return train_step.to_devices(tree, self.replicated)

    @functools.cached_property
    def abstract_state(self) -> train_step.TrainState:
        """The shapes, dtypes and shardings of the train state."""
        shapes = self.create_state.eval_shape(jax.random.key(self.config.seed))
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.replicated), shapes)

    def initial_state(self) -> train_step.TrainState:
        """Returns the state at step 0, with the weights that `init_from` names."""
        state = self.create_state(jax.random.key(self.config.seed))
        if self.config.init_from:
            params, batch_stats = weights.initial_weights(
                self.config.init_from, state.params, state.batch_stats, self.dataset.class_names
            )
            weights.check_same_network(self.config, self.model)
            params = weights.pruned(params, self.config.training.pruned_fraction)
            variables = {"params": params, "batch_stats": batch_stats}
            # Copied twice: the state's buffers are donated, and one buffer cannot be donated twice.
            state = state.replace(**self.replicate(variables), ema=state.ema and self.replicate(variables))
            log.info("params and batch_stats come from %s", self.config.init_from)
        return state

    def leaked(self) -> bool | None:
        """Tells whether training begins with, or will see, images that are tested on later; None: not known."""
        if self.shared_images and self.config.transfer.allow_leak:
            return True
        if not self.config.init_from:
            return False
        return hosts.broadcast(weights.leaked(self.config, self.dataset_sha256, self.target_sha256))


def network(config) -> Network:
    """Builds the network of a config, for use inside `shard_map`."""
    return models.create(config.model, len(datasets.class_names(config.dataset)), train_step.AXIS)


@hosts.all_or_none("built")
def build(config) -> Run:
    """Loads and builds what a config asks for.

    Raises:
      UserError: The config or its data are wrong, or do not go together.
    """
    validate(config)
    mesh = train_step.make_mesh()
    batch_size, devices = config.training.batch_size, mesh.devices.size
    if batch_size % devices:
        nearest = max(round(batch_size / devices), 1) * devices
        raise UserError(
            f"config.training.batch_size={batch_size} cannot be split over {devices} devices; "
            f"the nearest that can is {nearest}"
        )
    model = network(config)
    dataset, shared_images, target_sha256 = _load(config)
    steps_per_epoch = len(dataset.train.labels) // batch_size
    if not steps_per_epoch:
        raise UserError(
            f"config.training.batch_size={batch_size} is more than the {len(dataset.train.labels):,} training images"
        )
    total_steps = config.training.steps or max(math.ceil(round(config.training.epochs * steps_per_epoch, 6)), 1)
    if total_steps > MAX_STEPS:
        raise UserError(
            f"config.training.epochs={config.training.epochs:g} are {total_steps:,} steps: too many to count"
        )
    if not len(dataset.validation.labels) and (
        config.training.select == "best"
        or config.schedule.name == "plateau"
        or config.training.early_stopping_epochs
        or not config.evaluation.test
    ):
        remedy = "add pictures" if dataset.name == datasets.FOLDER else "set config.dataset.validation_examples"
        raise UserError(
            "without validation images there is no best epoch, plateau, early stopping, or accuracy but the test's: "
            f"{remedy}, or config.training.select=last, another schedule, no config.training.early_stopping_epochs and "
            "config.evaluation.test=True"
        )
    optimizer, schedule = optimizers.make_optimizer(config, total_steps, steps_per_epoch)
    return Run(
        config=config,
        mesh=mesh,
        dataset=dataset,
        dataset_sha256=dataset.sha256,
        shared_images=shared_images,
        target_sha256=target_sha256,
        model=model,
        optimizer=optimizer,
        schedule=jax.jit(schedule),  # op by op, its first value takes half a second
        create_state=train_step.make_initial_state(model, optimizer, config, mesh),
        steps_per_epoch=steps_per_epoch,
        total_steps=total_steps,
    )


def _load(config) -> tuple[datasets.Dataset, int | None, str | None]:
    """Returns the data set, less what a transfer's target tests on, the number of that, and the target's digest."""
    name, target = config.dataset.name, config.transfer.target
    if target == name:
        raise UserError("config.transfer.target is the data set itself")
    if target and target in datasets.NAMES and datasets.preparation(target) != datasets.preparation(name):
        raise UserError(
            f"config.transfer.target={target} cannot be compared with {name}: the same character has other pixels "
            "there; leave it out, and the results will say that what leaked is not known"
        )
    dataset = datasets.load(config.dataset)
    if not target:
        return dataset, None, None
    settings = config.dataset.copy_and_resolve_references()
    settings.update({"name": target, "validation_examples": None})
    target = datasets.load(settings)
    looked_at = np.concatenate([target.validation.images, target.test.images])
    shared_images = 0
    for name in ("train", "validation"):
        split = getattr(dataset, name)
        shared = duplicates.rows_in(split.images, looked_at)
        shared_images += int(shared.sum())
        if not config.transfer.allow_leak:
            kept = datasets.Split(split.images[~shared], split.labels[~shared])
            dataset = dataclasses.replace(dataset, **{name: kept})
    log.info(
        "%s images of %s are in %s's validation or test split: %s",
        *(f"{shared_images:,}", dataset.name, target.name, "kept" if config.transfer.allow_leak else "left out"),
    )
    return dataset, shared_images, target.sha256
