"""Tables and plots of finished runs, from their result.json files."""

import json
import statistics
from pathlib import Path

from matplotlib.figure import Figure

from emnist_jax.errors import UserError


def read(folder: Path, pattern: str = "*/seed*.json") -> dict[str, list[dict]]:
    """Reads results: the name of each row -> what the result.json of each of its seeds holds.

    Raises:
      UserError: A file is no result.
    """
    results = {}
    for path in sorted(folder.glob(pattern)):
        try:
            result = json.loads(path.read_text())
            result["test"]["top1"], result["config"]["seed"], result["history"]  # raises if one is missing
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is no result of a run: {error!r}") from error
        name, seed = path.relative_to(folder).parts[:2]
        if seed.removesuffix(".json") != f"seed{result['seed']}":
            raise UserError(f"{path} holds the result of seed {result['seed']}")
        results.setdefault(name, []).append(result)
    return results


def _percent(reported: float | None) -> str:
    return "–" if reported is None else f"{reported:.2f}"


def mean_and_deviation(values: list[float]) -> str:
    """Formats fractions as percent: their mean, and if there are several, their standard deviation."""
    text = f"{100 * statistics.mean(values):.2f}"
    return f"{text} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else text


def markdown(
    rows: list[dict], results: dict[str, list[dict]], split: str = "test", failures: dict[str, list[str]] | None = None
) -> str:
    """Returns a Markdown table of the rows of a sweep: what of them has been run, and what has failed."""
    lines = [
        f"| run | parameters | reported, % | {split} top-1, % | seeds | epoch | s an epoch | device, commit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    seeds = {}
    for row in rows:
        seeds.setdefault(row["name"], []).extend(row["seeds"])
    for row in {row["name"]: row for row in rows}.values():
        found, asked = results.get(row["name"]), len(seeds[row["name"]])
        reported = " ".join(filter(None, (_percent(row["reported"]), row["remark"])))
        if not found:
            state = f"not yet run: `python -m emnist_jax.main --config={row['config']}`"
            if row["name"] in (failures or {}):
                state = f"failed: {failures[row['name']][0]}"
            lines.append(f"| `{row['name']}` | | {reported} | {state} | 0 of {asked} | | | |")
            continue
        top1 = mean_and_deviation([result[split]["top1"] for result in found])
        chosen = "best by validation" if found[0]["config"]["training"]["select"] == "best" else "last"
        seconds = statistics.mean(result["seconds_per_epoch"] for result in found)
        made_with = sorted({f"{result['device']}, {result['commit']}" for result in found})
        lines.append(
            f"| `{row['name']}` | {found[0]['trainable_parameters']:,} | {reported} | {top1} | "
            f"{len(found)} of {asked} | {chosen} | {seconds:.3g} | {'; '.join(made_with)} |"
        )
    return "\n".join(lines)


def headlines(rows: list[dict], results: dict[str, list[dict]], count: int) -> str:
    """Returns a short Markdown table of the first rows that have results."""
    lines = ["| config | parameters | seeds | test accuracy, % | reported, % |", "|---|---|---|---|---|"]
    with_results = {row["name"]: row for row in rows if row["name"] in results}
    for name, row in list(with_results.items())[:count]:
        found = results[name]
        test = mean_and_deviation([result["test"]["top1"] for result in found])
        config = row["config"].removeprefix("configs/")
        parameters, reported = found[0]["trainable_parameters"], _percent(row["reported"])
        lines.append(f"| `{config}` | {parameters:,} | {len(found)} | {test} | {reported} |")
    return "\n".join(lines)


def plot(rows: list[dict], results: dict[str, list[dict]], path: Path) -> None:
    """Draws the test errors of all rows that have results against their parameters."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for row in {row["name"]: row for row in rows}.values():
        if found := results.get(row["name"]):
            errors = [100 * (1 - result["test"]["top1"]) for result in found]
            spread = statistics.stdev(errors) if len(errors) > 1 else 0
            parameters = found[0]["trainable_parameters"]
            axes.errorbar(parameters, statistics.mean(errors), spread, marker="o", capsize=3, color="C0")
            if row["reported"]:
                axes.plot(parameters, 100 - row["reported"], marker="o", color="C1", fillstyle="none", linestyle="")
            axes.annotate(
                row["name"],
                (parameters, statistics.mean(errors)),
                fontsize=8,
                xytext=(5, 3),
                textcoords="offset points",
            )
    axes.set(xscale="log", xlabel="trainable parameters", ylabel="test error, %")
    axes.set_title("ours: mean and standard deviation over seeds; circles: reported")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
