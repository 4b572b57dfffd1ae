"""The compiled part of training: one path from uint8 images on the devices to a new state.

Images and labels lie whole on every device; the epoch's order is split over the mesh axis `data`. All
randomness comes from (seed, step, position in the global batch), so that any number of devices computes the
same thing.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from clu import metrics as clu_metrics
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from emnist_jax.errors import UserError
from emnist_jax.models.layers import Network
from emnist_jax.training import augmentation

AXIS = "data"


@flax.struct.dataclass
class Metrics(clu_metrics.Collection):
    """Means over examples; top-1 and top-5 as fractions."""

    loss: clu_metrics.Average.from_output("losses")
    top1: clu_metrics.Accuracy
    top5: clu_metrics.Average.from_output("top5_correct")

    @classmethod
    def from_logits(cls, logits: jax.Array, labels: jax.Array, losses: jax.Array) -> "Metrics":
        """Args: logits `[B, C]`, labels int32 `[B]`, losses `[B]`."""
        _, top5 = lax.top_k(logits, min(5, logits.shape[-1]))
        top5_correct = (top5 == labels[:, None]).any(-1)
        return cls.single_from_model_output(logits=logits, labels=labels, losses=losses, top5_correct=top5_correct)


class TrainState(flax.struct.PyTreeNode):
    """Everything that decides what training does next.

    Attributes:
      step: Optimizer steps done, int32.
      params: Parameters, float32.
      batch_stats: BatchNorm's running statistics.
      opt_state: Of the optax optimizer.
      ema: Moving averages of params and batch_stats, as variables of the network, or None.
      metrics: Of the training batches so far in this epoch.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    ema: Any
    metrics: Metrics

    @property
    def variables(self) -> dict:
        """What the network is evaluated with."""
        return self.ema or {"params": self.params, "batch_stats": self.batch_stats}


def make_mesh() -> Mesh:
    """Returns the mesh of all devices along the axis `data`."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def to_devices(tree, sharding: NamedSharding):
    """Copies a tree of arrays, whole in every process, to the devices of all processes."""

    def copy(x):
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, x.__getitem__)

    return jax.tree.map(copy, tree)


def compiler_options(config) -> dict:
    """Returns XLA's options for all programs that a network is part of."""
    return {"xla_gpu_deterministic_ops": True} if config.deterministic else {}


def make_initial_state(model: Network, optimizer: optax.GradientTransformation, config, mesh: Mesh) -> Callable:
    """Returns `initial_state(key) -> TrainState`: the state at step 0, the same on every device of the mesh."""

    def initial_state(key):
        variables = {"batch_stats": {}, **model.init(key, jnp.zeros((1, *model.input_shape)), train=False)}
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            **variables,
            opt_state=optimizer.init(variables["params"]),
            # A copy: the state's buffers are donated, and one buffer cannot be donated twice.
            ema=jax.tree.map(jnp.copy, variables) if config.training.ema_decay else None,
            metrics=Metrics.empty(),
        )

    options = compiler_options(config)
    if jax.default_backend() == "cpu":
        # It runs once: without this, compiling a large network's initial weights takes as long as its training step.
        options["xla_backend_optimization_level"] = 0
    return jax.jit(initial_state, out_shardings=NamedSharding(mesh, P()), compiler_options=options)


def network_input(images: jax.Array, config, input_shape: tuple[int, int, int], keys=None) -> jax.Array:
    """Turns stored images into a network's input: pads to its size, augments, normalises, repeats grey.

    Args:
      images: uint8 `[B, H, W]`.
      config: The whole config; reads `augmentation`, `dataset.mean` and `dataset.std`.
      input_shape: Of the network; at least as large as the images.
      keys: `[B]` random keys, or None for no augmentation.

    Returns:
      float32 `[B, *input_shape]`.

    Raises:
      UserError: The network's input is smaller than the images.
    """
    height, width, channels = input_shape
    rows, columns = height - images.shape[1], width - images.shape[2]
    if rows < 0 or columns < 0:
        raise UserError(f"images of {images.shape[1:]} do not fit the network's input {input_shape}")
    pads = ((0, 0), (rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2))
    x = jnp.pad(images, pads).astype(jnp.float32) / 255
    if keys is not None:
        x = augmentation.augment(x, keys, config.augmentation)
    x = (x - config.dataset.mean) / config.dataset.std
    return jnp.broadcast_to(x[..., None], (*x.shape, channels))


def augmentation_keys(key: jax.Array, local_batch_size: int) -> jax.Array:
    """Returns a key for each example of this device's share, by its position in the global batch."""
    first = lax.axis_index(AXIS) * local_batch_size
    return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(local_batch_size))


def loss_and_gradients(model: Network, config, state: TrainState, images, labels, key, log_prior=0.0) -> tuple:
    """Computes the mean loss over the global batch; to be called inside `shard_map`.

    Args:
      model: The network.
      config: The whole config.
      state: The state.
      images: uint8 `[B / devices, H, W]`, this device's share.
      labels: int32 `[B / devices]`.
      key: Of this step.
      log_prior: `[C]`, added to the logits in the loss alone.

    Returns:
      Gradients, new batch_stats and `Metrics`, all over the global batch.
    """
    augmentation_key, dropout_key = jax.random.split(key)
    x = network_input(images, config, model.input_shape, augmentation_keys(augmentation_key, len(images)))

    def loss_of(params):
        logits, updates = model.apply(
            {"params": params, "batch_stats": state.batch_stats},
            x,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), config.training.label_smoothing)
        losses = optax.softmax_cross_entropy(logits + log_prior, targets)
        # The mean over devices belongs inside: shard_map sums the gradients of replicated parameters
        # by itself, so that a mean of gradients would come out too large by the number of devices.
        return lax.pmean(losses.mean(), AXIS), (logits, losses, updates.get("batch_stats", {}))

    gradients, (logits, losses, batch_stats) = jax.grad(loss_of, has_aux=True)(state.params)
    if not config.model.sync_batch_norm:
        # What Keras' MirroredStrategy reads: the mean of the devices' running statistics.
        batch_stats = lax.pmean(batch_stats, AXIS)
    metrics = Metrics.from_logits(logits, labels, losses)
    metrics = metrics.replace(**{name: lax.psum(getattr(metrics, name), AXIS) for name in ("loss", "top1", "top5")})
    return gradients, batch_stats, metrics


def log_class_frequencies(labels: jax.Array, num_classes: int) -> jax.Array:
    """Returns the logarithm of each class' share of the labels, `[C]`; a class without any counts as one image.

    The loss adds it to the logits if `training.balance_classes` (Menon et al., "Long-tail learning via logit
    adjustment", https://arxiv.org/abs/2007.07314): the network's own logits then favour no class for being frequent.
    """
    return jnp.log(jnp.maximum(jnp.bincount(labels, length=num_classes), 1) / len(labels))


def ema_decay(config, step: jax.Array) -> jax.Array:
    """Returns the decay of the moving averages: small at first, so that they soon forget the initial weights."""
    return jnp.minimum(config.training.ema_decay, (1 + step) / (10 + step))


def make_train_steps(model: Network, optimizer: optax.GradientTransformation, config, mesh: Mesh) -> Callable:
    """Returns the compiled-once program of training.

    Returns:
      `train_steps(state, images, labels, order, key, scale, count) -> state`: does `count` steps on uint8 images
      `[N, H, W]` and int32 labels `[N]`, with `scale` times the schedule's learning rate. The batches come from
      `order` (rows, int32 `[steps per epoch, batch]`), beginning at the state's place in the epoch. The state is
      donated. It stays as it was before the first step whose loss, gradient or update is not finite: `step` tells.
    """

    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(P(), P(), P(), P(None, AXIS), P(), P(), P()),
        out_specs=P(),
    )
    def train_steps(state, images, labels, order, key, scale, count):
        log_prior = log_class_frequencies(labels, model.num_classes) if config.training.balance_classes else 0.0

        def step(_, state):
            rows = order[state.step % len(order)]
            gradients, batch_stats, metrics = loss_and_gradients(
                model, config, state, images[rows], labels[rows], jax.random.fold_in(key, state.step), log_prior
            )
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, optax.tree.scale(scale, updates))
            ema = state.ema and optax.incremental_update(
                {"params": params, "batch_stats": batch_stats}, state.ema, 1 - ema_decay(config, state.step)
            )
            after = state.replace(
                step=state.step + 1,
                params=params,
                batch_stats=batch_stats,
                opt_state=opt_state,
                ema=ema,
                metrics=state.metrics.merge(metrics),
            )
            finite = jnp.isfinite(metrics.loss.total) & jnp.isfinite(optax.tree.norm((gradients, params, batch_stats)))
            return jax.tree.map(partial(jnp.where, finite), after, state)

        return lax.fori_loop(0, count, step, state)

    return jax.jit(train_steps, donate_argnums=0, compiler_options=compiler_options(config))


def make_epoch_order(num_examples: int, batch_size: int, mesh: Mesh) -> Callable:
    """Returns `epoch_order(key, epoch)` -> rows, int32 `[steps per epoch, batch]`, split over the devices.

    Every epoch is a new permutation; the rows that do not fill a batch are left out of it.
    """
    steps = num_examples // batch_size

    def epoch_order(key, epoch):
        rows = jax.random.permutation(jax.random.fold_in(key, epoch), num_examples)
        return rows[: steps * batch_size].reshape(steps, batch_size)

    return jax.jit(epoch_order, out_shardings=NamedSharding(mesh, P(None, AXIS)))
