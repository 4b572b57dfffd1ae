"""Tables and plots of finished runs, from their result.json files."""

import dataclasses
import hashlib
import json
import statistics
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox
from PIL import Image

from emnist_jax.config import experiment_name
from emnist_jax.errors import UserError
from emnist_jax.reporting.terminal import measured, standard_error


def read(folder: Path, pattern: str = "*/seed*.json") -> dict[str, list[dict]]:
    """Reads results: the name of each row -> what the result.json of each of its seeds holds.

    Raises:
      UserError: A file is no result.
    """
    results = {}
    for path in sorted(folder.glob(pattern)):
        try:
            result = json.loads(path.read_text())
            for key in ("config", "seed", "history"):
                result[key]  # raises if it is missing
            measured(result)[1]["top1"], result["history"][-1]
        except (LookupError, TypeError, ValueError) as error:
            raise UserError(f"{path} is no result of a run: {error!r}") from error
        name, seed = path.relative_to(folder).parts[:2]
        if seed.removesuffix(".json") != f"seed{result['seed']}":
            raise UserError(f"{path} holds the result of seed {result['seed']}")
        results.setdefault(name, []).append(result)
    return results


def seeds_of(rows: list[dict]) -> dict[str, list[int]]:
    """Returns the name of each row -> the seeds that the rows of this name ask for."""
    seeds = {}
    for row in rows:
        seeds.setdefault(row["name"], []).extend(row["seeds"])
    return seeds


def of_rows(rows: list[dict], results: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Returns the name of each row -> the results of the seeds that it asks for, if there are any."""
    asked = seeds_of(rows).items()
    found = {name: [result for result in results.get(name, ()) if result["seed"] in seeds] for name, seeds in asked}
    return {name: of_row for name, of_row in found.items() if of_row}


def measured_on(split: str, results: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Returns the rows all of whose runs have figures of a split."""
    return {name: found for name, found in results.items() if all(result[split] for result in found)}


def _percent(reported: float | None) -> str:
    return "–" if reported is None else f"{reported:.2f}"


def mean_and_deviation(values: list[float]) -> str:
    """Formats fractions as percent: their mean, and if there are several, their standard deviation."""
    text = f"{100 * statistics.mean(values):.2f}"
    return f"{text} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else text


# The MNIST networks' sources ask for this in the last epochs.
BAR = 0.994
LAST_EPOCHS = 5


def epochs_at_bar(results: list[dict]) -> str:
    """Says how many of the last 5 epochs reach 99.4 % of the validation images, as a mean over seeds."""
    last = [result["history"][-LAST_EPOCHS:] for result in results]
    if not all("validation" in epoch for epochs in last for epoch in epochs):
        return "–"
    return f"{statistics.mean(sum(epoch['validation']['top1'] >= BAR for epoch in epochs) for epochs in last):.2g}"


def command_of(row: dict, seed: int) -> str:
    """Returns the command that runs a row's seed, in a workdir that no other row's or seed's command has."""
    overrides = "".join(f" --config.{key}={value}" for key, value in row["overrides"].items())
    if row["overrides"].get("dataset.name") == "emnist_pool":
        overrides += " --config.dataset.data_dir=FOLDER"
    of_seed = f" --config.seed={seed}" if seed else ""
    command = f"python -m emnist_jax.main --config={row['config']}{overrides}{of_seed}"
    folder = f"runs/{row['name']}"
    if first_half := row["pretraining"]:
        pretrained = f"{folder}/pretrained_seed{seed}"  # as a sweep's
        first = f"python -m emnist_jax.main --config={first_half}{of_seed} --workdir={pretrained}"
        return f"{first} && {command} --config.init_from={pretrained} --workdir={folder}/seed{seed}"
    if seed:
        return f"{command} --workdir={folder}_seed{seed}"
    return command if row["name"] == experiment_name(row["config"]) else f"{command} --workdir={folder}"


def of_leak(results: list[dict]) -> str:
    """Returns what is to be said beside an accuracy if training saw images of the test split, or nobody knows."""
    leaked = {result.get("leaked", False) for result in results}
    return " (leaked)" if True in leaked else " (leaked or not: not known)" if None in leaked else ""


def markdown(
    rows: list[dict],
    results: dict[str, list[dict]],
    split: str = "test",
    failures: dict[str, list[str]] | None = None,
    with_bar: bool = False,
) -> str:
    """Returns a Markdown table of a sweep's rows.

    Args:
      rows: Of the sweep.
      results: What has been run; of a row, the seeds that the sweep asks for count.
      split: "test", or "validation": then no test accuracy is shown.
      failures: What has failed, by the row's name.
      with_bar: Whether there is a column of `epochs_at_bar`.
    """
    splits = ["validation", *["test"] * (split == "test")]
    columns = ["run", "parameters", "reported, %", *(f"{each} top-1, %" for each in splits), "seeds", "epoch"]
    columns += [*["of the last 5 at 99.4 %"] * with_bar, "minutes", "device, commit, or command"]
    lines = [columns, ["---"] * len(columns)]
    seeds, run = seeds_of(rows), of_rows(rows, results)
    for row in {row["name"]: row for row in rows}.values():
        name, asked, found = f"`{row['name']}`", seeds[row["name"]], run.get(row["name"])
        failed = "; ".join((failures or {}).get(row["name"], []))
        reported = " ".join(filter(None, (_percent(row["reported"]), row["remark"])))
        if not found:
            state = f"failed: {failed}" if failed else "not yet run"
            line = [name, "", reported, *[""] * (len(splits) - 1), state, f"0 of {len(asked)}"]
            lines.append([*line, *[""] * (len(columns) - len(line) - 1), f"`{command_of(row, asked[0])}`"])
            continue
        line = [name, f"{found[0]['trainable_parameters']:,}", reported]
        by_validation = found[0]["config"]["training"]["select"] == "best"
        for each in splits:
            known = all(result[each] for result in found)
            text = mean_and_deviation([result[each]["top1"] for result in found]) + of_leak(found) if known else "–"
            if each == "validation" and by_validation:
                last = statistics.mean(result["history"][-1][each]["top1"] for result in found)
                text += f"; last epoch {100 * last:.2f}"
            line.append(text)
        line.append(f"{len(found)} of {len(asked)}" + f"; failed: {failed}" * bool(failed))
        line.append("best by validation" if by_validation else "last")
        line += [epochs_at_bar(found)] * with_bar
        by_device = training_minutes(found)
        several = len(by_device) > 1
        rounded = {device: f"{float(f'{minutes:.2g}'):g}" for device, minutes in by_device.items()}
        line.append("; ".join(minutes + f" ({device})" * several for device, minutes in rounded.items()))
        commits = {result["device"]: set() for result in found}
        for result in found:
            commits[result["device"]].update(result["commit"].split(", "))
        made = [f"{device}, {', '.join(sorted(of_device))}" for device, of_device in sorted(commits.items())]
        if missing := sorted(set(asked) - {result["seed"] for result in found}):
            made.append(f"next: `{command_of(row, missing[0])}`")
        line.append("; ".join(made))
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def leaks(records: dict[str, dict | None]) -> str:
    """Returns a Markdown table of what a leak is worth.

    Args:
      records: Network -> what launch/leak.py wrote, or None.
    """
    columns = ("network", "tested", "seen in pretraining, % right", "not seen, % right", "difference, points, by seed")
    lines = [f"| {' | '.join((*columns, 'device, commit'))} |", f"|{'---|' * (len(columns) + 1)}"]
    for network, record in records.items():
        if not record:
            command = f"python launch/leak.py --pool=FOLDER --model={network} --out=results/leak/{network}.json"
            lines.append(f"| `{network}` | not yet run: `{command}` | | | | |")
            continue
        made = f"{record['environment']['device']}, {record['environment']['commit']}"
        for when, of_networks in record["right"].items():
            # Both networks of a seed together: each image once among the seen, and once among the others.
            percent = 100 * np.reshape(of_networks, (record["seeds"], 2, 2)).sum(1) / record["images"]
            seen, other = percent.mean(0)
            by_seed = ", ".join(f"{seen - other:+.2f}" for seen, other in percent)
            when = when.replace("_", "-")
            lines.append(f"| `{network}` | {when} | {seen:.2f} | {other:.2f} | {by_seed} | {made} |")
    return "\n".join(lines)


def training_minutes(results: list[dict]) -> dict[str, float]:
    """Returns, for each device, the median epoch's minutes, times the number of epochs, also of one that is cut short.

    The median, as a run may have been suspended, or have shared its cores.
    """
    by_device = {}
    for result in sorted(results, key=lambda result: result["device"]):
        by_device.setdefault(result["device"], []).append(result)
    return {
        device: statistics.median(epoch["seconds"] for result in found for epoch in result["history"])
        * statistics.mean(len(result["history"]) for result in found)
        / 60
        for device, found in by_device.items()
    }


def headlines(rows: list[dict], results: dict[str, list[dict]], count: int) -> str:
    """Returns a short Markdown table of the first rows that have test figures."""
    results = measured_on("test", of_rows(rows, results))
    lines = ["| config | parameters | seeds | test accuracy, % | reported, % |", "|---|---|---|---|---|"]
    with_results = {row["name"]: row for row in rows if row["name"] in results}
    for name, row in list(with_results.items())[:count]:
        found = results[name]
        test = mean_and_deviation([result["test"]["top1"] for result in found]) + of_leak(found)
        config = row["config"].removeprefix("configs/")
        parameters, reported = found[0]["trainable_parameters"], _percent(row["reported"])
        lines.append(f"| `{config}` | {parameters:,} | {len(found)} | {test} | {reported} |")
    return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Point:
    """What the plot shows of a row.

    Attributes:
      name: Of the row.
      config: The experiment file's name.
      parameters: That are trained.
      errors: Of each seed, in percent.
      deviation: Of these; of one seed, the standard error.
      reported: The source's error on the same split, in percent; None if it gives none.
      minutes: Of the training, for each device.
      leak: `of_leak`.
    """

    name: str
    config: str
    parameters: int
    errors: tuple[float, ...]
    deviation: float
    reported: float | None
    minutes: tuple[float, ...]
    leak: str

    @property
    def error(self) -> float:
        return statistics.mean(self.errors)


def points(rows: list[dict], results: dict[str, list[dict]], split: str = "test") -> list[Point]:
    """Returns what `plot` shows of the rows all of whose runs have figures of the split, "test" or "validation"."""
    results, found_points = measured_on(split, of_rows(rows, results)), []
    for row in {row["name"]: row for row in rows}.values():
        if found := results.get(row["name"]):
            errors = tuple(100 * (1 - result[split]["top1"]) for result in found)
            first = found[0][split]
            of_one = 100 * standard_error(first["top1"], first["examples"])
            of_split = row["reported"] and ("validation" in row["remark"]) == (split == "validation")
            found_points.append(
                Point(
                    row["name"],
                    Path(row["config"].partition(":")[0]).stem,
                    found[0]["trainable_parameters"],
                    errors,
                    statistics.stdev(errors) if len(errors) > 1 else of_one,
                    100 - row["reported"] if of_split else None,
                    tuple(training_minutes(found).values()),
                    of_leak(found),
                )
            )
    return found_points


def digest(shown: list[Point], elsewhere: dict[int, float] | None = None) -> str:
    """Returns what `plot` writes as its file's description, by which `is_plot_of` knows what it shows."""
    return hashlib.sha256(repr((shown, elsewhere)).encode()).hexdigest()


def is_plot_of(path: Path, shown: list[Point], elsewhere: dict[int, float] | None = None) -> bool:
    """Tells whether a file is there and was drawn by `plot` from the same points."""
    if not path.exists():
        return False
    with Image.open(path) as picture:
        return picture.info.get("Description") == digest(shown, elsewhere)


def plot(shown: list[Point], path: Path, split: str = "test", elsewhere: dict[int, float] | None = None) -> None:
    """Draws the errors of rows against their parameters, and against their training time.

    Args:
      shown: From `points`.
      path: Takes the picture, a PNG.
      split: That of the errors.
      elsewhere: Parameters -> top-1 in percent of networks that are not ours to compare with.
    """
    figure = Figure(figsize=(13.5, 8), layout="constrained")
    by_size, by_time = figure.subplots(1, 2, sharey=True)
    for parameters, top1 in (elsewhere or {}).items():
        by_size.plot(parameters, 100 - top1, marker="x", color="gray", linestyle="")
    colors = {}
    labels = {by_size: [], by_time: []}
    for point in shown:
        label = point.config if point.config not in colors else None  # once in the legend
        color = colors.setdefault(point.config, f"C{len(colors)}")
        if point.reported is not None:
            ends = [point.error, point.reported]
            by_size.plot([point.parameters] * 2, ends, color=color, linewidth=0.8, linestyle=":")
            by_size.plot(point.parameters, point.reported, marker="o", color=color, fillstyle="none")
        for axes, x in ((by_size, point.parameters), *((by_time, minutes) for minutes in point.minutes)):
            axes.errorbar(x, point.error, point.deviation, marker="o", elinewidth=0.8, color=color, label=label)
            which = point.name.removeprefix(point.config)
            which = which.replace("_pool", "").replace("_stem_stride_2", "").strip("_").replace("_", " ")
            labels[axes].append((which + point.leak, x, point.error))
    by_size.set(xscale="log", yscale="log", xlabel="trainable parameters", ylabel=f"{split} error, %")
    by_time.set(xscale="log", xlabel="training time, minutes (median epoch x epochs), on the devices of the table")
    title = "dots: ours, with the deviation over seeds (one seed: the standard error)"
    title += "; circles: reported" * any(point.reported is not None for point in shown)
    figure.suptitle(title + "; crosses: elsewhere" * bool(elsewhere), fontsize=9)
    figure.legend(*by_time.get_legend_handles_labels(), loc="outside right upper")
    for axis, subs in ((by_size.xaxis, (1, 3)), (by_time.xaxis, (1, 2, 3, 5)), (by_size.yaxis, range(1, 10))):
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter(EngFormatter(sep="") if axis is by_size.xaxis else "{x:g}")
        axis.set_minor_locator(NullLocator())
    for axes in (by_size, by_time):
        axes.margins(x=0.25)
        axes.grid(alpha=0.3)
    figure.draw_without_rendering()  # for the extents of texts
    for axes in (by_size, by_time):
        place_labels(axes, labels[axes])
    figure.savefig(path, dpi=120, metadata={"Description": digest(shown, elsewhere)})


def place_labels(axes: Axes, labels: list[tuple[str, float, float]]) -> None:
    """Writes each text beside its x and y: within the axes, off dots and other texts, if there is such a place."""
    dots = [axes.transData.transform(xy) for _, *xy in labels]
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in dots]
    for (text, *xy), (x, _) in zip(labels, dots, strict=True):
        label = axes.annotate(text, xy, (0, 0), textcoords="offset points", fontsize=8, in_layout=False)
        sides = [("left", 5), ("right", -5)]
        if x > (axes.bbox.x0 + axes.bbox.x1) / 2:  # towards the middle, so that long names stay within the axes
            sides.reverse()
        places = [(*side, *height) for height in (("bottom", 1), ("top", -1), ("bottom", 9)) for side in sides]
        for horizontal, right, vertical, up in (*places, places[0]):
            label.set(ha=horizontal, va=vertical, position=(right, up))
            box = label.get_window_extent()
            if axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 and not box.count_overlaps(taken):
                break
        taken += [box] * bool(text)
