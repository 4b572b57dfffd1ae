"""A trained network with all that it takes to ask it: `load` one, then `predict` or `read`."""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util
from safetensors import SafetensorError, safe_open

from emnist_jax import datasets, models
from emnist_jax.config import base
from emnist_jax.errors import UserError, first_line, unknown
from emnist_jax.handwriting import characters, pictures
from emnist_jax.handwriting.characters import Character
from emnist_jax.handwriting.pictures import Picture
from emnist_jax.inference import compression
from emnist_jax.models.layers import Network
from emnist_jax.training.train_step import network_input

TRAINED_FOLDER = Path(__file__).parent / "trained"
# Batches are filled up to one of these, so that no more programs are compiled than there are sizes.
_BATCH_SIZES = (1, 32, 512)


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a network says of N images.

    Attributes:
      probabilities: float32 `[N, num_classes]`.
      known_classes: The name of each class.
    """

    probabilities: np.ndarray
    known_classes: tuple[str, ...]

    @property
    def labels(self) -> np.ndarray:
        """The most probable class of each image, int `[N]`."""
        return self.probabilities.argmax(-1)

    @property
    def class_names(self) -> list[str]:
        """The names of `labels`."""
        return [self.known_classes[label] for label in self.labels]

    def top(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """Returns the k most probable classes of each image, with their probabilities."""
        ranked = np.argsort(-self.probabilities, kind="stable")[:, :k]
        return [
            [(self.known_classes[label], float(row[label])) for label in labels]
            for row, labels in zip(self.probabilities, ranked, strict=True)
        ]


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a network reads in a picture.

    Attributes:
      brightness: The picture, float32 `[H, W]` in 0 to 1, reduced if it was very large.
      characters: Those that were found, in reading order.
      predictions: One for each.
    """

    brightness: np.ndarray
    characters: list[Character]
    predictions: Predictions

    @property
    def text(self) -> str:
        """The most probable characters, with the picture's spaces and line breaks."""
        text, line = "", 0
        for character, name in zip(self.characters, self.predictions.class_names, strict=True):
            text += "\n" * (character.line - line) + " " * character.after_space + name
            line = character.line
        return text


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A network and its weights.

    Attributes:
      model: The network.
      variables: "params" and "batch_stats".
      config: The whole config of its training.
      class_names: The name of each class, by label.
      result: What result.json held, without the history: data, accuracies, seed, versions, commit.
    """

    model: Network
    variables: dict[str, Any]
    config: Any
    class_names: tuple[str, ...]
    result: dict[str, Any]

    @property
    def style(self) -> str:
        """How the images of its data set were made from handwriting: "mnist" or "emnist"."""
        return "mnist" if self.config.dataset.name == "mnist" else "emnist"

    @functools.cached_property
    def _forward(self):
        # By default, GPUs multiply float32 numbers as TF32, with 10 bits of their 23.
        @jax.default_matmul_precision("float32")
        def forward(variables, images):
            logits = self.model.for_inference.apply(
                variables, network_input(images, self.config, self.model.input_shape), train=False
            )
            return logits.astype(jnp.float32)

        return jax.jit(forward)

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Runs the network.

        Args:
          images: uint8 `[N, 28, 28]`, as the data sets have them: upright, white on black.

        Returns:
          float32 `[N, num_classes]`.
        """
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[1:] != (28, 28):
            raise UserError(f"images must be uint8 [N, 28, 28], not {images.dtype} {list(images.shape)}")
        outputs = [np.zeros((0, len(self.class_names)), np.float32)]
        for start in range(0, len(images), _BATCH_SIZES[-1]):
            batch = images[start : start + _BATCH_SIZES[-1]]
            size = next(size for size in _BATCH_SIZES if size >= len(batch))
            filled = np.concatenate([batch, np.zeros((size - len(batch), *batch.shape[1:]), np.uint8)])
            outputs.append(np.asarray(self._forward(self.variables, filled))[: len(batch)])
        return np.concatenate(outputs)

    def classify(self, images: np.ndarray) -> Predictions:
        """Classifies images uint8 `[N, 28, 28]`, as the data sets have them: upright, white on black."""
        return Predictions(np.asarray(jax.nn.softmax(self.logits(images))), self.class_names)

    def predict(self, images: Picture | Iterable[Picture]) -> Predictions:
        """Classifies pictures with one character each.

        Args:
          images: One picture or several: paths, contents of files, PIL images, or arrays. Arrays uint8 `[28, 28]` and
            `[N, 28, 28]` are taken as the data sets have them: upright, white on black. All other pictures may have any
            size and brightness: their character is cut out and centred.

        Raises:
          UserError: A picture cannot be read, or holds no ink.
        """
        if isinstance(images, jax.Array):
            images = np.asarray(images)
        if isinstance(images, np.ndarray) and images.shape[1:] in ((28, 28), (28, 28, 1)):
            return self.classify(images.reshape(-1, 28, 28))
        if isinstance(images, Picture):
            images = [images]
        prepared = [self._prepare(image) for image in images]
        return self.classify(np.stack(prepared) if prepared else np.zeros((0, 28, 28), np.uint8))

    def _prepare(self, picture: Picture) -> np.ndarray:
        if isinstance(picture, np.ndarray) and picture.shape == (28, 28) and picture.dtype == np.uint8:
            return picture
        with _named(picture):
            return characters.image_of(picture, self.style)

    def read(self, picture: Picture, single: bool = False) -> Reading:
        """Reads a picture of one character, a word, a line or several lines.

        Args:
          picture: As in `predict`; an array `[28, 28]` is cut out and centred, too.
          single: Whether all ink is one character.

        Raises:
          UserError: The picture cannot be read, or holds no ink.
        """
        with _named(picture):
            brightness = pictures.open_picture(picture)
            ink = pictures.ink_of(brightness)
            found = [characters.one_character(ink, self.style)] if single else characters.characters(ink, self.style)
        return Reading(brightness, found, self.classify(np.stack([character.image for character in found])))

    @functools.cached_property
    def _gradient(self):
        @jax.default_matmul_precision("float32")
        def gradient(variables, image, label):
            def log_probability(x):
                return jax.nn.log_softmax(self.model.apply(variables, x, train=False)[0])[label]

            x = network_input(image[None], self.config, self.model.input_shape)
            strength = jnp.abs(jax.grad(log_probability)(x))[0].max(-1)
            top, left = ((strength.shape[axis] - image.shape[axis]) // 2 for axis in (0, 1))
            return strength[top : top + image.shape[0], left : left + image.shape[1]]

        return jax.jit(gradient)

    def saliency(self, image: np.ndarray, label: int) -> np.ndarray:
        """Tells where a class' probability depends most on the image (Simonyan et al., https://arxiv.org/abs/1312.6034).

        Args:
          image: uint8 `[28, 28]`.
          label: The class.

        Returns:
          float32 `[28, 28]` in 0 to 1: the size of the gradient of the log-probability, relative to its largest.

        Raises:
          UserError: There is no such class.
        """
        if not 0 <= label < len(self.class_names):
            raise UserError(f"there is no class {label}: they are 0 to {len(self.class_names) - 1}")
        gradient = np.asarray(self._gradient(self.variables, image, np.int32(label)))
        return gradient / max(float(gradient.max()), 1e-30)

    def save(self, path: str | Path, weights: str = "float32") -> None:
        """Writes weights, config and result into one safetensors file, which `load` reads.

        Args:
          path: Of the file.
          weights: How it holds them: one of `compression.WEIGHTS`.
        """
        if weights not in compression.WEIGHTS:
            raise unknown("weights", weights, compression.WEIGHTS)
        flat = traverse_util.flatten_dict(compression.stored(self.variables, weights), sep="/")
        result = self.result | {"class_names": list(self.class_names), "weights": weights}
        arrays = {name: np.ascontiguousarray(value) for name, value in flat.items()}
        Path(path).write_bytes(safetensors.numpy.save(arrays, {"result": json.dumps(result)}))


@contextlib.contextmanager
def _named(picture: Picture):
    """Puts a picture's name before the message of an error."""
    try:
        yield
    except UserError as error:
        name = picture if isinstance(picture, str | os.PathLike) else "the picture"
        raise UserError(f"{name}: {error}") from error


def trained_names() -> list[str]:
    """Returns the names of the networks that come with the package."""
    return sorted(path.stem for path in TRAINED_FOLDER.glob("*.safetensors"))


def load(source: str | Path) -> Classifier:
    """Loads a trained network.

    Args:
      source: The name of a network that comes with the package (`trained_names`), a finished run's workdir, or a file
        that `Classifier.save` wrote.

    Raises:
      UserError: There is no such network, or it cannot be read.
    """
    path = Path(os.path.expanduser(source))
    try:
        if str(source) in trained_names():
            return _load_file(TRAINED_FOLDER / f"{source}.safetensors")
        if path.is_file():
            return _load_file(path)
        if (path / "result.json").is_file():
            return _load_workdir(path)
    # A damaged file shows as many kinds of exception.
    except Exception as error:
        raise UserError(f"cannot load the network {source}: {first_line(error)}") from error
    if path.is_dir():
        raise UserError(f"{path} holds no finished run (no result.json)")
    if len(path.parts) > 1:
        raise UserError(f"there is no {path}")
    raise unknown("network", str(source), trained_names())


def _load_workdir(workdir: Path) -> Classifier:
    # Imported here because orbax takes a second, and only runs need it.
    from emnist_jax.training.checkpoints import load_variables

    result = json.loads((workdir / "result.json").read_text())
    del result["history"]
    # result.json does not say where the images were.
    data_dir = json.loads((workdir / "config.json").read_text())["dataset"]["data_dir"]
    return _build(result, load_variables(workdir, result["step"]), data_dir)


def _load_file(path: Path) -> Classifier:
    try:
        with safe_open(path, "numpy") as file:
            result = json.loads(file.metadata()["result"])
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dict
    except (SafetensorError, KeyError, TypeError) as error:
        raise UserError("`python -m emnist_jax.export --to=safetensors` did not write it") from error
    return _build(result, compression.restored({"batch_stats": {}, **traverse_util.unflatten_dict(flat, sep="/")}))


def _build(result: dict, variables: dict, data_dir: str | None = None) -> Classifier:
    config = base()
    config.update(result["config"])
    config.dataset.data_dir = data_dir
    class_names = tuple(result.get("class_names") or datasets.class_names(config.dataset))
    model = models.create(config.model, len(class_names))
    _check_shapes(model, variables)
    return Classifier(model, variables, config.lock(), class_names, result)


def _check_shapes(model: Network, variables: dict) -> None:
    expected = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, *model.input_shape)), train=False))
    expected, found = (
        {path: leaf.shape for path, leaf in traverse_util.flatten_dict(dict(tree), sep="/").items()}
        for tree in ({"batch_stats": {}, **expected}, variables)
    )
    if expected != found:
        differing = sorted(path for path in expected | found if expected.get(path) != found.get(path))
        raise ValueError(f"its weights are not those of {type(model).__name__}: {differing[0]}")
