"""Tables and plots of finished runs, from their result.json files."""

import json
import statistics
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

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
            measured(result)[1]["top1"], result["config"]["seed"], result["history"]  # raises if one is missing
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is no result of a run: {error!r}") from error
        name, seed = path.relative_to(folder).parts[:2]
        if seed.removesuffix(".json") != f"seed{result['seed']}":
            raise UserError(f"{path} holds the result of seed {result['seed']}")
        results.setdefault(name, []).append(result)
    return results


def tested(results: dict[str, list[dict]]) -> dict[str, list[dict]]:
    """Returns the rows all of whose runs have test figures."""
    return {name: found for name, found in results.items() if all(result["test"] for result in found)}


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


def command_of(row: dict) -> str:
    """Returns the command that runs a row's first seed, in a workdir that no other row's command has."""
    overrides = "".join(f" --config.{key}={value}" for key, value in row["overrides"].items())
    if row["overrides"].get("dataset.name") == "emnist_pool":
        overrides += " --config.dataset.data_dir=FOLDER"
    command = f"python -m emnist_jax.main --config={row['config']}{overrides}"
    if first_half := row["pretraining"]:
        folder = f"runs/{row['name']}"  # as a sweep's
        pretrained = f"{folder}/pretrained_seed0"
        first = f"python -m emnist_jax.main --config={first_half} --workdir={pretrained}"
        return f"{first} && {command} --config.init_from={pretrained} --workdir={folder}/seed0"
    return command if row["name"] == experiment_name(row["config"]) else f"{command} --workdir=runs/{row['name']}"


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
    seeds = {}
    for row in rows:
        seeds.setdefault(row["name"], []).extend(row["seeds"])
    for row in {row["name"]: row for row in rows}.values():
        name, asked = f"`{row['name']}`", seeds[row["name"]]
        found = [result for result in results.get(row["name"], ()) if result["seed"] in asked]
        failed = "; ".join((failures or {}).get(row["name"], []))
        reported = " ".join(filter(None, (_percent(row["reported"]), row["remark"])))
        if not found:
            state = f"failed: {failed}" if failed else "not yet run"
            line = [name, "", reported, *[""] * (len(splits) - 1), state, f"0 of {len(asked)}"]
            lines.append([*line, *[""] * (len(columns) - len(line) - 1), f"`{command_of(row)}`"])
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
        line.append("; ".join(f"{minutes:.2g}" + f" ({device})" * several for device, minutes in by_device.items()))
        commits = {result["device"]: set() for result in found}
        for result in found:
            commits[result["device"]].update(result["commit"].split(", "))
        line.append(
            "; ".join(f"{device}, {', '.join(sorted(of_device))}" for device, of_device in sorted(commits.items()))
        )
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def training_minutes(results: list[dict]) -> dict[str, float]:
    """Returns, for each device, the median epoch's minutes, times the epochs.

    The median, as a run may have been suspended, or have shared its cores.
    """
    by_device = {}
    for result in sorted(results, key=lambda result: result["device"]):
        by_device.setdefault(result["device"], []).append(result)
    return {
        device: statistics.median(epoch["seconds"] for result in found for epoch in result["history"])
        * statistics.mean(result["epochs"] for result in found)
        / 60
        for device, found in by_device.items()
    }


def headlines(rows: list[dict], results: dict[str, list[dict]], count: int) -> str:
    """Returns a short Markdown table of the first rows that have test figures."""
    results = tested(results)
    lines = ["| config | parameters | seeds | test accuracy, % | reported, % |", "|---|---|---|---|---|"]
    with_results = {row["name"]: row for row in rows if row["name"] in results}
    for name, row in list(with_results.items())[:count]:
        found = results[name]
        test = mean_and_deviation([result["test"]["top1"] for result in found]) + of_leak(found)
        config = row["config"].removeprefix("configs/")
        parameters, reported = found[0]["trainable_parameters"], _percent(row["reported"])
        lines.append(f"| `{config}` | {parameters:,} | {len(found)} | {test} | {reported} |")
    return "\n".join(lines)


def has_plot(rows: list[dict], results: dict[str, list[dict]]) -> bool:
    """Tells whether at least two rows have test figures, for `plot`."""
    return len({row["name"] for row in rows} & tested(results).keys()) > 1


def plot(
    rows: list[dict], results: dict[str, list[dict]], path: Path, elsewhere: dict[int, float] | None = None
) -> None:
    """Draws the test errors of all rows that have any against their parameters, and against their training time.

    Args:
      rows: Of the sweep.
      results: What has been run.
      path: Takes the picture.
      elsewhere: Parameters -> top-1 in percent of networks that are not ours to compare with.
    """
    results = tested(results)
    figure = Figure(figsize=(12, 6), layout="constrained")
    by_size, by_time = figure.subplots(1, 2, sharey=True)
    for parameters, top1 in (elsewhere or {}).items():
        by_size.plot(parameters, 100 - top1, marker="x", color="gray", linestyle="")
    colors, with_circles = {}, False
    for row in {row["name"]: row for row in rows}.values():
        if found := results.get(row["name"]):
            config = Path(row["config"].partition(":")[0]).stem
            label = config if config not in colors else None  # once in the legend
            color = colors.setdefault(config, f"C{len(colors)}")
            errors = [100 * (1 - result["test"]["top1"]) for result in found]
            error, test = statistics.mean(errors), found[0]["test"]
            of_one = 100 * standard_error(test["top1"], test["examples"])
            spread = statistics.stdev(errors) if len(errors) > 1 else of_one
            parameters = found[0]["trainable_parameters"]
            if row["reported"] and "validation" not in row["remark"]:
                ends = [error, 100 - row["reported"]]
                by_size.plot([parameters] * 2, ends, color=color, linewidth=0.8, linestyle=":")
                by_size.plot(parameters, ends[1], marker="o", color=color, fillstyle="none")
                with_circles = True
            points = [(by_size, parameters), *((by_time, minutes) for minutes in training_minutes(found).values())]
            for axes, x in points:
                axes.errorbar(x, error, spread, marker="o", elinewidth=0.8, color=color, label=label)
                which = row["name"].removeprefix(config).replace("_pool", "").strip("_").replace("_", " ")
                which += of_leak(found)
                axes.annotate(which, (x, error), fontsize=8, xytext=(5, 3), textcoords="offset points")
    by_size.set(xscale="log", yscale="log", xlabel="trainable parameters", ylabel="test error, %")
    by_time.set(xscale="log", xlabel="training time, minutes (median epoch x epochs), on the devices of the table")
    title = "dots: ours, with the deviation over seeds (one seed: the standard error)"
    title += "; circles: reported" * with_circles + "; crosses: elsewhere" * bool(elsewhere)
    figure.suptitle(title, fontsize=9)
    by_time.legend(loc="upper right")
    for axis, subs in ((by_size.xaxis, (1, 3)), (by_time.xaxis, (1, 2, 3, 5)), (by_size.yaxis, range(1, 10))):
        axis.set_major_locator(LogLocator(subs=subs))
        axis.set_major_formatter("{x:,.10g}")
        axis.set_minor_locator(NullLocator())
    for axes in (by_size, by_time):
        axes.margins(x=0.25)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
