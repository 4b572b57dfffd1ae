"""What labels and probabilities say of a network: accuracy, classes, confusions, calibration.

Precision, recall, F1 and the confusion matrix are scikit-learn's.
"""

import dataclasses
import itertools

import numpy as np
from scipy import optimize, special, stats
from sklearn import metrics

# Of equal width, from 0 to 1: as many as in Guo et al. 2017, https://arxiv.org/abs/1706.04599.
CONFIDENCE_BINS = 15
_LOWEST_TEMPERATURE, _HIGHEST_TEMPERATURE = 0.05, 20.0


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """A share of images that are read right.

    Attributes:
      correct: How many are.
      images: Of how many.
      fraction: correct / images.
      low: Lower end of Wilson's 95 % interval, a fraction.
      high: Its upper end.
    """

    correct: int
    images: int
    fraction: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class ClassScore:
    """How well one class is read; fractions.

    Attributes:
      name: Of the class.
      images: How many are of this class.
      precision: Of the images that are read as it, those that are; None if there are none.
      recall: Of the images of this class, those that are read as it; None if there are none.
      f1: Harmonic mean of both; None if there is neither an image of the class nor one that is read as it.
    """

    name: str
    images: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two classes that are taken for each other.

    Attributes:
      first: Name of the one.
      second: Name of the other.
      first_as_second: Images of the first that are read as the second.
      second_as_first: The reverse.
    """

    first: str
    second: str
    first_as_second: int
    second_as_first: int

    @property
    def mistakes(self) -> int:
        return self.first_as_second + self.second_as_first


@dataclasses.dataclass(frozen=True)
class Bin:
    """The images whose most probable class has a probability in (low, high].

    Attributes:
      low: Lower end.
      high: Upper end.
      images: How many there are.
      confidence: Mean of these probabilities; None if there are no images.
      accuracy: Share of the images that are read right; None if there are no images.
    """

    low: float
    high: float
    images: int
    confidence: float | None
    accuracy: float | None


@dataclasses.dataclass(frozen=True)
class Calibration:
    """How far probabilities are what they say.

    Attributes:
      expected_error: Expected calibration error (ECE): mean over the images of |accuracy - confidence| of their bin.
      loss: Mean cross-entropy, in nats.
      bins: `CONFIDENCE_BINS` of them.
    """

    expected_error: float
    loss: float
    bins: tuple[Bin, ...]


def accuracy(correct: np.ndarray) -> Accuracy:
    """Counts what is right, bool `[N]` with N at least 1, and returns it with Wilson's 95 % interval."""
    count, images = int(correct.sum()), len(correct)
    interval = stats.binomtest(count, images).proportion_ci(0.95, method="wilson")
    return Accuracy(count, images, count / images, float(interval.low), float(interval.high))


def by_class(labels: np.ndarray, predictions: np.ndarray, class_names: tuple[str, ...]) -> tuple[ClassScore, ...]:
    """Scores each class, in the order of the labels, of int `[N]` labels and predictions."""
    scores = metrics.precision_recall_fscore_support(
        labels, predictions, labels=range(len(class_names)), zero_division=np.nan
    )
    return tuple(
        ClassScore(name, int(images), *(None if np.isnan(value) else float(value) for value in of_class))
        for name, *of_class, images in zip(class_names, *scores, strict=True)
    )


def confusions(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts images by true class (row) and predicted class (column): int `[num_classes, num_classes]`."""
    return metrics.confusion_matrix(labels, predictions, labels=range(num_classes))


def most_confused(counts: np.ndarray, class_names: tuple[str, ...], most: int = 10) -> tuple[Pair, ...]:
    """Returns the pairs of classes with the most mistakes between them, the worst first; none without a mistake."""
    pairs = np.argwhere(np.triu(counts + counts.T, 1)).tolist()
    ranked = sorted(pairs, key=lambda pair: -(counts[*pair] + counts[*pair[::-1]]))[:most]
    return tuple(Pair(class_names[i], class_names[j], int(counts[i, j]), int(counts[j, i])) for i, j in ranked)


def calibration(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> Calibration:
    """Measures the calibration of the probabilities softmax(logits / temperature).

    Args:
      logits: float `[N, num_classes]`.
      labels: int `[N]`.
      temperature: Above 1, the probabilities become more alike.
    """
    probabilities = special.softmax(logits / temperature, axis=-1)
    confidence, correct = probabilities.max(-1), probabilities.argmax(-1) == labels
    edges = np.linspace(0, 1, CONFIDENCE_BINS + 1)
    bin_of = np.clip(np.searchsorted(edges, confidence) - 1, 0, CONFIDENCE_BINS - 1)
    bins = []
    for i, (low, high) in enumerate(itertools.pairwise(edges.tolist())):
        inside = bin_of == i
        means = (float(confidence[inside].mean()), float(correct[inside].mean())) if inside.any() else (None, None)
        bins.append(Bin(low, high, int(inside.sum()), *means))
    error = sum(b.images * abs(b.accuracy - b.confidence) for b in bins if b.images) / len(labels)
    return Calibration(error, _cross_entropy(logits / temperature, labels), tuple(bins))


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Returns the temperature in 0.05 to 20 with the least cross-entropy (Guo et al. 2017).

    Args:
      logits: float `[N, num_classes]`, of images by which nothing is reported.
      labels: int `[N]`.
    """
    best = optimize.minimize_scalar(
        lambda log_temperature: _cross_entropy(logits / np.exp(log_temperature), labels),
        bounds=np.log([_LOWEST_TEMPERATURE, _HIGHEST_TEMPERATURE]),
        method="bounded",
    )
    return float(np.exp(best.x))


def _cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    return float(-special.log_softmax(logits, axis=-1)[np.arange(len(labels)), labels].mean())
