"""Optimizers and learning-rate schedules from a config, all optax'.

Weight decay is added to the gradient (L2, as PyTorch does), but decoupled in adamw and muon. It leaves biases and
BatchNorm (every parameter of fewer than two dimensions) alone, unless `decay_biases_and_norms` is set.
"""

import jax
import jax.numpy as jnp
import optax

from emnist_jax.errors import UserError


def _decayed(config):
    """Returns the function that marks, in a tree of parameters, those that weight decay shrinks."""
    return lambda params: jax.tree.map(lambda x: x.ndim > 1 or config.decay_biases_and_norms, params)


def _with_l2(config, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    if not config.weight_decay:
        return optimizer
    return optax.chain(optax.add_decayed_weights(config.weight_decay, _decayed(config)), optimizer)


def _muon_matrices(params):
    # Every kernel as a matrix of inputs x outputs; by itself optax gives all but 2-d ones to Adam.
    numbers = optax.contrib.MuonDimensionNumbers
    return jax.tree.map(lambda x: numbers(tuple(range(x.ndim - 1)), -1) if x.ndim > 1 else None, params)


def _adam_settings(config) -> dict:
    return {"b1": config.beta1, "b2": config.beta2, "eps": config.epsilon}


# Name -> builder(config.optimizer, learning rate or schedule).
OPTIMIZERS = {
    "sgd": lambda c, rate: _with_l2(c, optax.sgd(rate)),
    "momentum": lambda c, rate: _with_l2(c, optax.sgd(rate, c.momentum)),
    "nesterov": lambda c, rate: _with_l2(c, optax.sgd(rate, c.momentum, nesterov=True)),
    "adam": lambda c, rate: _with_l2(c, optax.adam(rate, **_adam_settings(c))),
    "adamax": lambda c, rate: _with_l2(c, optax.adamax(rate, **_adam_settings(c))),
    "nadam": lambda c, rate: _with_l2(c, optax.nadam(rate, **_adam_settings(c))),
    "rmsprop": lambda c, rate: _with_l2(c, optax.rmsprop(rate, eps=c.epsilon)),
    "adamw": lambda c, rate: optax.adamw(rate, **_adam_settings(c), weight_decay=c.weight_decay, mask=_decayed(c)),
    "muon": lambda c, rate: optax.contrib.muon(
        rate,
        beta=c.momentum,
        weight_decay=c.weight_decay,
        adam_weight_decay=c.weight_decay * c.decay_biases_and_norms,  # of what is no matrix
        muon_weight_dimension_numbers=_muon_matrices,
    ),
}


def _onecycle(config, rate, steps, steps_per_epoch):
    return optax.cosine_onecycle_schedule(
        max(steps - 1, 1), rate, config.warmup_fraction, config.initial_divisor, config.final_divisor
    )


def _step(config, rate, steps, steps_per_epoch):
    # No longer than the training, so that it is an int32.
    transition_steps = min(max(round(config.step_epochs * steps_per_epoch), 1), steps)
    # optax.exponential_decay(staircase=True) may be a step late: compiled, it divides by multiplying.
    return lambda step: rate * config.factor ** (step // transition_steps)


def _cosine(config, rate, steps, steps_per_epoch):
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if warmup_steps >= steps:
        raise UserError(
            f"config.schedule.warmup_epochs={config.warmup_epochs} are {warmup_steps} steps, "
            f"but training has only {steps}"
        )
    return optax.warmup_cosine_decay_schedule(0 if warmup_steps else rate, rate, warmup_steps, steps)


# Name -> builder(config.schedule, highest learning rate, steps, steps per epoch).
SCHEDULES = {
    "constant": lambda config, rate, steps, steps_per_epoch: optax.constant_schedule(rate),
    "cosine": _cosine,
    "onecycle": _onecycle,  # torch.optim.lr_scheduler.OneCycleLR, without its cycling of momentum
    # `Record.plateau_scale` lowers it.
    "plateau": lambda config, rate, steps, steps_per_epoch: optax.constant_schedule(rate),
    "step": _step,  # torch.optim.lr_scheduler.StepLR
}


def _zeros_stay() -> optax.GradientTransformation:
    """Leaves the kernels' weights that are 0 as they are: the pruned ones, whatever the optimizer's state says."""
    return optax.stateless_with_tree_map(lambda update, x: jnp.where((x == 0) & (x.ndim > 1), 0, update))


def make_optimizer(config, steps: int, steps_per_epoch: int) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Builds the optimizer and the schedule that it follows.

    Args:
      config: The whole config; reads `optimizer`, `schedule` and `training.pruned_fraction`.
      steps: Of the whole training.
      steps_per_epoch: Turns the schedule's epochs into steps.

    Returns:
      The optimizer, and the schedule (step -> learning rate) for the record.

    Raises:
      UserError: A warm-up longer than the training.
    """
    rate = config.optimizer.learning_rate
    schedule = SCHEDULES[config.schedule.name](config.schedule, rate, steps, steps_per_epoch)
    optimizer = OPTIMIZERS[config.optimizer.name](config.optimizer, schedule)
    return optax.chain(optimizer, _zeros_stay()) if config.training.pruned_fraction else optimizer, schedule
