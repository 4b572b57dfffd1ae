"""What is measured of a trained network on one split of a data set: `examine`."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import special

from emnist_jax.datasets import Dataset
from emnist_jax.inference import corruptions, measures
from emnist_jax.inference.classifier import Classifier

# Images that are corrupted; they are drawn with seed 0.
MOST_CORRUPTED = 2_000
_MOST_MISTAKES = 32


@dataclasses.dataclass(frozen=True)
class Mistake:
    """An image that is read wrong.

    Attributes:
      row: Its place in the split, from 0 on.
      true: Name of its class.
      predicted: Name of the class that it is read as.
      confidence: The probability of that class.
      image: uint8 `[28, 28]`.
    """

    row: int
    true: str
    predicted: str
    confidence: float
    image: np.ndarray


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """The accuracy on corrupted images.

    Attributes:
      name: What was done, e.g. "rotation".
      amount: How much of it.
      unit: Of the amount.
      accuracy: On the changed images.
      example: One of them, uint8 `[28, 28]`.
    """

    name: str
    amount: float
    unit: str
    accuracy: measures.Accuracy
    example: np.ndarray

    @property
    def title(self) -> str:
        """E.g. "rotation, 10 degrees"."""
        return f"{self.name}, {self.amount:g} {self.unit if self.amount != 1 else self.unit.removesuffix('s')}"


@dataclasses.dataclass(frozen=True)
class TestTimeAugmentation:
    """The effect of test-time augmentation: the mean probabilities of five images, unchanged and shifted by one pixel.

    Attributes:
      accuracy: With it.
      mended: Images that are read right only with it.
      spoilt: Images that are read right only without it.
    """

    accuracy: measures.Accuracy
    mended: int
    spoilt: int


@dataclasses.dataclass(frozen=True, eq=False)
class Examination:
    """All that was measured.

    Attributes:
      accuracy: On all images of the split.
      classes: Each class, by label.
      pairs: The ten that are confused most, the worst first.
      confusions: Images by true class (row) and predicted class (column): int `[num_classes, num_classes]`.
      mistakes: The most confident ones, the most confident first.
      calibration: Of the probabilities as they are.
      temperature: Fitted on the validation images; None without any.
      fitted_on: The number of validation images.
      calibration_at_temperature: None without a temperature.
      uncorrupted: The accuracy on the images that are corrupted, before they are.
      uncorrupted_example: The unchanged image of `Corrupted.example`.
      corrupted: One for each of `corruptions.CORRUPTIONS`.
      test_time_augmentation: On all images of the split.
    """

    accuracy: measures.Accuracy
    classes: tuple[measures.ClassScore, ...]
    pairs: tuple[measures.Pair, ...]
    confusions: np.ndarray
    mistakes: tuple[Mistake, ...]
    calibration: measures.Calibration
    temperature: float | None
    fitted_on: int
    calibration_at_temperature: measures.Calibration | None
    uncorrupted: measures.Accuracy
    uncorrupted_example: np.ndarray
    corrupted: tuple[Corrupted, ...]
    test_time_augmentation: TestTimeAugmentation

    def numbers(self) -> dict[str, Any]:
        """Returns all but the pictures, for JSON; of the confusions those that occur: thousands of classes fit, too."""
        names = [score.name for score in self.classes]
        cells = np.argwhere(self.confusions).tolist()
        confusions = [{"class": names[i], "read_as": names[j], "images": int(self.confusions[i, j])} for i, j in cells]
        numbers = dataclasses.asdict(
            dataclasses.replace(self, confusions=None),
            dict_factory=lambda items: {k: v for k, v in items if not isinstance(v, np.ndarray)},
        )
        return numbers | {"confusions": confusions}


def examine(
    classifier: Classifier, dataset: Dataset, split: str, say: Callable[[str], None] = lambda text: None
) -> Examination:
    """Measures a network. What is fitted is fitted on the validation images.

    Args:
      classifier: The network.
      dataset: Has the network's classes.
      split: "test" or "validation", with at least one image.
      say: Is told what is being computed.
    """
    images, labels = getattr(dataset, split).images, getattr(dataset, split).labels
    names = classifier.class_names
    say(f"Reading {len(images):,} {split} images")
    logits = classifier.logits(images)
    probabilities = special.softmax(logits, axis=-1)
    predictions = logits.argmax(-1)
    counts = measures.confusions(labels, predictions, len(names))
    correct = predictions == labels

    validation = dataset.validation
    temperature = scaled = None
    if len(validation.labels):
        if split != "validation":
            say(f"Reading {len(validation.labels):,} validation images, to fit the temperature")
        fitted = logits if split == "validation" else classifier.logits(validation.images)
        temperature = measures.fit_temperature(fitted, validation.labels)
        scaled = measures.calibration(logits, labels, temperature)

    chosen = np.sort(np.random.default_rng(0).permutation(len(images))[:MOST_CORRUPTED])
    return Examination(
        accuracy=measures.accuracy(correct),
        classes=measures.by_class(labels, predictions, names),
        pairs=measures.most_confused(counts, names),
        confusions=counts,
        mistakes=_most_confident_mistakes(images, labels, probabilities, names),
        calibration=measures.calibration(logits, labels),
        temperature=temperature,
        fitted_on=len(validation.labels),
        calibration_at_temperature=scaled,
        uncorrupted=measures.accuracy(correct[chosen]),
        uncorrupted_example=images[chosen[0]],
        corrupted=_corrupted(classifier, images[chosen], labels[chosen], say),
        test_time_augmentation=_test_time_augmentation(classifier, images, labels, probabilities, say),
    )


def _most_confident_mistakes(images, labels, probabilities, names) -> tuple[Mistake, ...]:
    predictions, confidence = probabilities.argmax(-1), probabilities.max(-1)
    wrong = np.flatnonzero(predictions != labels)
    ranked = wrong[np.argsort(-confidence[wrong], kind="stable")][:_MOST_MISTAKES]
    return tuple(
        Mistake(int(row), names[labels[row]], names[predictions[row]], float(confidence[row]), images[row])
        for row in ranked
    )


def _corrupted(classifier: Classifier, images, labels, say) -> tuple[Corrupted, ...]:
    found = []
    for i, corruption in enumerate(corruptions.CORRUPTIONS, 1):
        say(f"Corruption {i} of {len(corruptions.CORRUPTIONS)}, {len(images):,} images: {corruption.name}")
        changed = corruption(images)
        accuracy = measures.accuracy(classifier.logits(changed).argmax(-1) == labels)
        found.append(Corrupted(corruption.name, corruption.amount, corruption.unit, accuracy, changed[0]))
    return tuple(found)


def _test_time_augmentation(classifier: Classifier, images, labels, probabilities, say) -> TestTimeAugmentation:
    total = probabilities.astype(np.float64)
    for i, (down, right) in enumerate(corruptions.NEIGHBOURS, 1):
        say(f"Test-time augmentation: shift {i} of {len(corruptions.NEIGHBOURS)}, {len(images):,} images")
        total += classifier.classify(corruptions.shifted(images, down, right)).probabilities
    without, averaged = probabilities.argmax(-1) == labels, total.argmax(-1) == labels
    mended, spoilt = int((averaged & ~without).sum()), int((without & ~averaged).sum())
    return TestTimeAugmentation(measures.accuracy(averaged), mended, spoilt)
