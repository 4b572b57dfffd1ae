"""The report on one network: a page with pictures, and a short table for the terminal."""

import dataclasses
import datetime
from pathlib import Path

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from emnist_jax.datasets import Dataset, preparation
from emnist_jax.environment import environment
from emnist_jax.inference.classifier import Classifier
from emnist_jax.inference.examination import Examination
from emnist_jax.inference.measures import ClassScore
from emnist_jax.reporting import figures, page
from emnist_jax.reporting.terminal import LEAKED

_MOST_CLASSES_WITH_COUNTS = 12  # counts of more would not fit into the confusion matrix


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is examined, with what, and when.

    Attributes:
      network: Its name, or that of its folder.
      model: Name of its kind, a key of `models.MODELS`.
      parameters: Those that are trained.
      trained_on: Name of a data set.
      training_commit: Of the code that trained it.
      dataset: Name of the data set that is read.
      split: "test" or "validation".
      synthetic: Whether its images were rendered. An accuracy on them is no result.
      same_images: Whether all images of the data set are those of the training; None: it is another data set.
      leaked: Whether the network was trained on images of the test split, by the record of its training; None: unknown.
      commit: Of the code that examines.
      device: That it runs on.
      versions: Of the packages.
      date: With the time, in UTC.
    """

    network: str
    model: str
    parameters: int
    trained_on: str
    training_commit: str
    dataset: str
    split: str
    synthetic: bool
    same_images: bool | None
    leaked: bool | None
    commit: str
    device: str
    versions: dict[str, str]
    date: str


def subject(network: str, classifier: Classifier, dataset: Dataset, split: str) -> Subject:
    """Returns what is examined."""
    result, config = classifier.result, classifier.config
    trained_on = config.dataset.name
    # Images are left out of the training of a transfer, which changes their digest.
    comparable = dataset.name == trained_on and not config.transfer.target and result.get("dataset_sha256")
    same_images = dataset.sha256 == result["dataset_sha256"] if comparable else None
    leaked = None
    is_target = dataset.name == config.transfer.target and dataset.sha256 == result.get("target_sha256")
    if is_target or (dataset.name == trained_on and same_images is not False):
        leaked = result.get("leaked", False)
    elif dataset.synthetic != result["synthetic"] and not config.init_from:
        leaked = False
    return Subject(
        network=network,
        model=result["model"],
        parameters=sum(leaf.size for leaf in jax.tree.leaves(classifier.variables["params"])),
        trained_on=trained_on,
        training_commit=result["commit"],
        dataset=dataset.name,
        split=split,
        synthetic=dataset.synthetic,
        same_images=same_images,
        leaked=leaked,
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **environment(),
    )


def title_of(dataset: str) -> str:
    """Returns the name of a data set for readers."""
    return "the EMNIST pool" if dataset == "emnist_pool" else dataset


def table(subject: Subject, examination: Examination) -> Table:
    """Returns what the terminal shows."""
    accuracy, synthetic = examination.accuracy, " (synthetic images: not a result)" if subject.synthetic else ""
    found = Table(title=f"{subject.network} on {title_of(subject.dataset)}{synthetic}", show_header=False)
    found.add_row(f"{subject.split} accuracy", f"{page.percent(accuracy.fraction)} of {accuracy.images:,} images")
    found.add_row("Wilson's 95 % interval", f"{page.percent(accuracy.low)} to {page.percent(accuracy.high)}")
    if subject.leaked is not False:
        found.add_row("leaked", "images of training are read" if subject.leaked else "not known")
    ece = page.percent(examination.calibration.expected_error)
    if examination.calibration_at_temperature:
        scaled = page.percent(examination.calibration_at_temperature.expected_error)
        ece += f", {scaled} with temperature {examination.temperature:.2f}"
    found.add_row("calibration error (ECE)", ece)
    worst = [f"{score.name} ({page.percent(score.f1, 1)})" for score in _worst_first(examination)[:5]]
    found.add_row("worst classes (F1)", ", ".join(worst))
    pairs = [f"{pair.first}/{pair.second} ({pair.mistakes})" for pair in examination.pairs[:5]]
    found.add_row("most confused", ", ".join(pairs) or "none")
    return found


def _worst_first(examination: Examination) -> list[ClassScore]:
    return sorted(examination.classes, key=lambda score: 1 if score.f1 is None else score.f1)


def write(path: Path, subject: Subject, examination: Examination) -> None:
    """Writes the page."""
    mistakes = examination.accuracy.images - examination.accuracy.correct
    every = examination.uncorrupted.images == examination.accuracy.images
    with matplotlib.rc_context(page.STYLE):
        drawn = {
            "confusion_figure": _confusions(examination),
            "reliability_figure": _reliability(examination),
            "corruption_figure": _corruptions(examination),
        }
    page.write(
        path,
        "examination.html",
        title=f"{subject.network} on {title_of(subject.dataset)}",
        subject=subject,
        dataset_title=title_of(subject.dataset),
        examination=examination,
        notes=_notes(subject),
        facts=_facts(subject),
        worst_first=_worst_first(examination),
        confused=page.percent(sum(pair.mistakes for pair in examination.pairs) / max(mistakes, 1), 0),
        temperature_note=_temperature_note(subject, examination),
        which_corrupted="" if every else " that seed 0 draws",
        **{name: page.svg(figure) for name, figure in drawn.items()},
    )


def _notes(subject: Subject) -> list[str]:
    """Returns what a reader must know before the figures."""
    notes = []
    if subject.synthetic:
        notes.append("These images are synthetic: a program rendered them. An accuracy on them is not a result.")
    if subject.dataset == "emnist_pool":
        notes.append(
            "The EMNIST pool has EMNIST's images, in splits of its own. An accuracy on it is none on EMNIST Balanced."
        )
    if subject.same_images is False:
        notes.append(
            f"These are not the images that the network's record names, though both are called {subject.dataset}. "
            "It may have been trained on some of them."
        )
    if subject.leaked:
        notes.append(f"Leaked: {LEAKED[True]}. The accuracy is too high.")
    if subject.split == "validation" and subject.dataset == subject.trained_on:
        notes.append("Training may have chosen its epoch by the validation images, so their accuracy may be too high.")
    if subject.split == "test":
        notes.append("This is a report. Choose nothing by the test images, but by the validation images.")
    return notes


def _facts(subject: Subject) -> list[tuple[str, str]]:
    same_preparation = preparation(subject.dataset) == preparation(subject.trained_on)
    if subject.leaked is None and not same_preparation:
        leaked = "not known: the same character has other pixels in these two sets"
    elif subject.leaked is None and subject.dataset != subject.trained_on:
        audit = f"python -m emnist_jax.audit {subject.trained_on}:train {subject.dataset}:{subject.split}"
        leaked = f"not known: `{audit}` counts the images that both have"
    elif subject.same_images is False:
        leaked = "not known: the network was trained on other files"
    else:
        leaked = LEAKED[subject.leaked] or "no, by the record of its training"
    return [
        ("network", f"{subject.model}, {subject.parameters:,} trainable parameters"),
        ("trained on", f"{title_of(subject.trained_on)}, with commit {subject.training_commit}"),
        ("data set", f"{title_of(subject.dataset)}, {subject.split} split"),
        ("synthetic", "yes: not a result" if subject.synthetic else "no"),
        ("leaked", leaked),
        ("examined", f"{subject.date}, with commit {subject.commit}, on {subject.device}"),
    ]


def _temperature_note(subject: Subject, examination: Examination) -> str:
    if examination.temperature is None:
        return (
            "There is no temperature: it is fitted on validation images, and there are none. On test images, nothing "
            "is fitted."
        )
    note = (
        f"The temperature divides the logits. It was fitted on the {examination.fitted_on:,} validation images of "
        f"{title_of(subject.dataset)}, never on test images. It changes no prediction."
    )
    if subject.split == "validation":
        note += " Its row is measured on the images that it was fitted on, and looks better than it is."
    return note


def _confusions(examination: Examination) -> Figure:
    counts = examination.confusions
    names = tuple(score.name for score in examination.classes)
    with matplotlib.rc_context({"axes.grid": False}):
        figure = figures.confusion_figure(counts, names, "")
    if len(names) <= _MOST_CLASSES_WITH_COUNTS:
        for true, predicted in np.argwhere(counts):
            color = "black" if true == predicted else "white"
            count = counts[true, predicted]
            figure.axes[0].text(predicted, true, count, color=color, fontsize=7, ha="center", va="center")
    return figure


def _reliability(examination: Examination) -> Figure:
    figure = Figure(figsize=(5, 4.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], ":", color="gray")
    for calibration, marker, label in (
        (examination.calibration, "o-", "as it is"),
        (examination.calibration_at_temperature, "s--", "with the temperature"),
    ):
        if calibration:
            bins = [b for b in calibration.bins if b.images]
            above.plot([b.confidence for b in bins], [b.accuracy for b in bins], marker, label=label, markersize=4)
    above.legend(loc="upper left")
    above.set(ylabel="share read right", xlim=(0, 1.01), ylim=(0, 1.02))
    bins = examination.calibration.bins
    below.bar([b.low for b in bins], [b.images for b in bins], bins[0].high, align="edge", color="C0", alpha=0.6)
    below.set(xlabel="probability of the class that is read", ylabel="images", yscale="log")
    return figure


def _corruptions(examination: Examination) -> Figure:
    figure = Figure(figsize=(5.5, 0.27 * len(examination.corrupted) + 0.8), layout="constrained")
    axes = figure.subplots()
    axes.axvline(100 * examination.uncorrupted.fraction, linestyle=":", color="gray")
    kinds = list(dict.fromkeys(corrupted.name for corrupted in examination.corrupted))
    for i, corrupted in enumerate(examination.corrupted):
        accuracy, color = corrupted.accuracy, f"C{kinds.index(corrupted.name)}"
        axes.hlines(i, 100 * accuracy.low, 100 * accuracy.high, color=color, linewidth=3, alpha=0.5)
        axes.plot(100 * accuracy.fraction, i, "o", color=color, markersize=5)
    axes.set_yticks(range(len(examination.corrupted)), [corrupted.title for corrupted in examination.corrupted])
    axes.invert_yaxis()
    axes.set(xlabel="accuracy, %", xlim=(0, 101))
    return figure
