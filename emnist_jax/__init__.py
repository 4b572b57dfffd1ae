"""Reference JAX/Flax reimplementations of published MNIST and EMNIST classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emnist_jax.inference.classifier import Classifier
    from emnist_jax.models.layers import Network

__version__ = "0.1.0"
__all__ = ["create", "load"]


def load(source: str | Path = "characters") -> Classifier:
    """Loads a trained network: `load("characters").predict("photo.jpg").class_names`.

    Args:
      source: The name of a network that comes with the package, a finished run's workdir, or a file that
        `python -m emnist_jax.export --to=safetensors` wrote.

    Raises:
      UserError: There is no such network, or it cannot be read.
    """
    from emnist_jax.inference import classifier  # late, here and below: `import emnist_jax` should not wait for jax

    return classifier.load(source)


def create(name: str, num_classes: int, **settings) -> Network:
    """Builds an untrained network, a `flax.linen.Module`: logits from `network.apply(variables, images, train=False)`.

    Its images are float `[B, *network.input_shape]`. All names and their counts: `python -m emnist_jax.summary --all`.

    Args:
      name: Key of `emnist_jax.models.MODELS`.
      num_classes: Width of the last layer.
      **settings: Other values for the section `config.model`, e.g. `activation="swish"`.

    Raises:
      UserError: A name or value is unknown, or the network lacks a place of dropout, or the stem, that is set.
    """
    from emnist_jax import config, models
    from emnist_jax.errors import UserError, unknown

    if num_classes < 1:
        raise UserError(f"num_classes is {num_classes}; it must be at least 1")
    whole = config.base()
    section = whole.model
    for key, value in {"name": name, **settings}.items():
        if key not in section:
            raise unknown("setting", key, section)
        try:
            section[key] = value
        except TypeError as error:
            raise UserError(f"{key}={value!r} is no {type(section[key]).__name__}") from error
    config.validate(whole)
    return models.create(section, num_classes)
