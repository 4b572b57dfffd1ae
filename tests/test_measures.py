"""Figures of labels and probabilities, against values that are known or worked out by hand."""

import numpy as np
import pytest
from scipy import special

from emnist_jax.inference import measures

NAMES = ("a", "b", "c")


def test_an_accuracy_has_wilsons_interval():
    # Wilson 1927 without continuity correction; 0.490 to 0.943 for 8 of 10 is in textbooks.
    eight = measures.accuracy(np.arange(10) < 8)
    assert (eight.correct, eight.images, eight.fraction) == (8, 10, 0.8)
    assert (eight.low, eight.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert measures.accuracy(np.ones(10, bool)).low == pytest.approx(10 / (10 + 1.96**2), abs=1e-4)
    assert measures.accuracy(np.ones(10, bool)).high == pytest.approx(1)


def test_classes_are_scored_in_the_order_of_their_labels():
    labels, predictions = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 1])
    a, b, c = measures.by_class(labels, predictions, NAMES)
    assert a == measures.ClassScore("a", 3, 1, pytest.approx(2 / 3), pytest.approx(0.8))
    assert b == measures.ClassScore("b", 2, 0.5, 1, pytest.approx(2 / 3))
    assert c == measures.ClassScore("c", 1, None, 0, 0)


def test_a_class_without_images_has_no_recall():
    a, b, c = measures.by_class(np.array([0, 0]), np.array([0, 2]), NAMES)
    assert a.recall == 0.5
    assert (b.images, b.precision, b.recall, b.f1) == (0, None, None, None)
    assert (c.images, c.precision, c.recall, c.f1) == (0, 0, None, 0)


def test_confusions_have_true_classes_in_rows():
    counts = measures.confusions(np.array([0, 0, 2]), np.array([0, 1, 1]), 4)
    assert counts.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


def test_pairs_are_ranked_by_the_mistakes_of_both_directions():
    counts = np.array([[50, 3, 1], [0, 50, 2], [0, 2, 50]])
    assert measures.most_confused(counts, NAMES) == (
        measures.Pair("b", "c", 2, 2),
        measures.Pair("a", "b", 3, 0),
        measures.Pair("a", "c", 1, 0),
    )
    assert measures.most_confused(counts, NAMES, most=1) == (measures.Pair("b", "c", 2, 2),)
    assert measures.most_confused(np.diag([1, 2, 3]), NAMES) == ()


def logits_of(probabilities: list[float]) -> np.ndarray:
    """Returns logits of two classes, the first with these probabilities."""
    p = np.array(probabilities)
    return np.log(np.stack([p, 1 - p], -1))


def test_the_expected_calibration_error_by_hand():
    # Four images at 0.9, half of them right; one at 0.6, right.
    found = measures.calibration(logits_of([0.9, 0.9, 0.9, 0.9, 0.6]), np.array([0, 0, 1, 1, 0]))
    assert found.expected_error == pytest.approx((4 * 0.4 + 1 * 0.4) / 5)
    assert found.loss == pytest.approx(-np.log([0.9, 0.9, 0.1, 0.1, 0.6]).mean())
    filled = [(b.images, b.accuracy, pytest.approx(b.confidence)) for b in found.bins if b.images]
    assert filled == [(1, 1, 0.6), (4, 0.5, 0.9)]
    assert all(b.low < b.confidence <= b.high for b in found.bins if b.images)


def test_bins_cover_all_probabilities():
    found = measures.calibration(np.array([[0.0, 0.0], [100.0, 0.0]]), np.array([0, 0]))
    assert len(found.bins) == 15 and (found.bins[0].low, found.bins[-1].high) == (0, 1)
    assert sum(b.images for b in found.bins) == 2 and found.bins[-1].images == 1
    assert found.bins[0].accuracy is None and found.bins[0].confidence is None


@pytest.mark.parametrize("temperature", [0.5, 1, 3])
def test_the_temperature_is_found_again(temperature):
    rng = np.random.default_rng(0)
    true = rng.normal(0, 2, (20_000, 5))
    probabilities = special.softmax(true, -1)
    labels = (probabilities.cumsum(-1) < rng.random((len(true), 1))).sum(-1)
    logits = temperature * true
    assert measures.fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)
    assert measures.calibration(logits, labels, temperature).expected_error < 0.015
    if temperature != 1:
        assert measures.calibration(logits, labels).expected_error > 0.05


def test_a_temperature_that_nothing_bounds_stays_finite():
    logits, labels = np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([0, 1])
    assert 0.05 <= measures.fit_temperature(logits, labels) < 0.1
    assert 10 < measures.fit_temperature(logits, 1 - labels) <= 20
