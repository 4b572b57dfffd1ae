"""Corrupted images are what the names say, and the same in every run."""

import itertools

import numpy as np
import pytest

from emnist_jax.datasets import synthetic
from emnist_jax.inference.corruptions import CORRUPTIONS, shifted

(_, _), (IMAGES, _), _ = synthetic.render("synthetic/digits", 5, 3, seed=0)
BY_KIND = {name: list(of_kind) for name, of_kind in itertools.groupby(CORRUPTIONS, lambda corruption: corruption.name)}
A_BAR = np.zeros((8, 28, 28), np.uint8)
A_BAR[:, 6:22, 12:16] = 255


@pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda c: f"{c.name} {c.amount}")
def test_a_corruption_changes_images_in_the_same_way_in_every_run(corruption):
    before = IMAGES.copy()
    changed = corruption(IMAGES)
    assert changed.shape == IMAGES.shape and changed.dtype == np.uint8
    np.testing.assert_array_equal(IMAGES, before)
    np.testing.assert_array_equal(corruption(IMAGES), changed)
    assert (changed != IMAGES).any((1, 2)).all()


@pytest.mark.parametrize("kind", BY_KIND)
def test_a_greater_amount_changes_more(kind):
    distances = [np.abs(corruption(IMAGES) - IMAGES.astype(float)).mean() for corruption in BY_KIND[kind]]
    assert len(distances) > 1 and distances == sorted(distances)


def test_shifted_goes_down_and_to_the_right():
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 5, 7] = 200
    assert np.argwhere(shifted(image, 1, 0)).tolist() == [[0, 6, 7]]
    assert np.argwhere(shifted(image, 0, -3)).tolist() == [[0, 5, 4]]
    assert shifted(image, 1, 0).max() == 200
    assert not shifted(image, 28, 0).any()


@pytest.mark.parametrize("corruption", BY_KIND["shift"], ids=lambda c: str(c.amount))
def test_shifts_go_to_all_sides_by_their_pixels(corruption):
    centres = np.array([np.argwhere(image).mean(0) for image in corruption(np.tile(A_BAR, (8, 1, 1)))])
    offsets = {tuple(offset) for offset in (centres - np.argwhere(A_BAR[0]).mean(0)).round(6).tolist()}
    amount = float(corruption.amount)
    assert offsets == {(amount, 0), (-amount, 0), (0, amount), (0, -amount)}


@pytest.mark.parametrize("corruption", BY_KIND["rotation"], ids=lambda c: str(c.amount))
def test_rotations_go_to_both_sides_by_their_degrees(corruption):
    angles = []
    for image in corruption(A_BAR):
        y, x = np.indices(image.shape)
        weights = image / image.sum()
        y, x = y - (weights * y).sum(), x - (weights * x).sum()
        xx, yy, xy = ((weights * of_both).sum() for of_both in (x * x, y * y, x * y))
        angles.append(np.degrees(0.5 * np.arctan2(2 * xy, yy - xx)))
    assert np.abs(angles) == pytest.approx(corruption.amount, abs=1)
    assert min(angles) < 0 < max(angles)


@pytest.mark.parametrize(("kind", "sign"), [("thinner strokes", -1), ("thicker strokes", 1)])
def test_strokes_change_by_their_pixels(kind, sign):
    for corruption in BY_KIND[kind]:
        widths = (corruption(A_BAR)[:, 14] > 0).sum(-1)
        assert widths.tolist() == [4 + sign * corruption.amount] * len(A_BAR)


def test_noise_has_its_deviation():
    grey = np.full((4, 28, 28), 128, np.uint8)
    for corruption in BY_KIND["noise"][:2]:  # more would be cut off at black and white
        assert (corruption(grey) / 255).std() == pytest.approx(corruption.amount, rel=0.05)


def test_blur_keeps_the_ink():
    for corruption in BY_KIND["blur"]:
        assert corruption(A_BAR).sum() == pytest.approx(A_BAR.sum(), rel=0.01)
        assert corruption(A_BAR).max() <= 255 and (corruption(A_BAR)[:, 14] > 0).sum(-1).min() > 4
