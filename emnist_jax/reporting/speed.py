"""Tables of what `emnist_jax.benchmark` measured."""

import importlib.util
import platform
import statistics
from importlib.metadata import version
from pathlib import Path

import jax

from emnist_jax import environment as of_runs

COLUMNS = (
    "network",
    "batch",
    "task",
    "ours, images/s",
    "PyTorch",
    "channels last",
    "compiled",
    "DataLoader",
    "ours / best PyTorch, round by round",
    "share of the limit (estimate)",
    "first batch, s: ours, PyTorch, compiled",
    "peak, MB: ours, PyTorch",
)
HEADER = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def environment() -> dict:
    """Returns what `emnist_jax.environment` tells, the processor's name, JAX's platform, and PyTorch's version."""
    found = of_runs.environment()
    if importlib.util.find_spec("torch"):
        found["versions"]["torch"] = version("torch")
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = {line.partition(":")[2].strip() for line in lines if line.startswith("model name")}
    processor = ", ".join(names) or platform.processor()
    return found | {"processor": processor, "platform": jax.default_backend()}


def describe(record: dict) -> str:
    """Returns a sentence about the device and its limits."""
    found, device = record["environment"], record["device"]
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in ("jax", "torch") if name in found["versions"])
    return (
        f"{found['device']} ({found['processor']}), {versions}, commit {found['commit']}. Measured limits: "
        f"{2 * device['multiply_adds'] / 1e9:,.0f} GFLOP/s, {device['bytes'] / 1e9:,.0f} GB/s."
    )


def _median(outcome: dict | None) -> float:
    return statistics.median(outcome["images_per_second"]) if outcome and not outcome["error"] else 0.0


def ratio(row: dict) -> tuple[float, float, float] | None:
    """Returns our speed over the fastest PyTorch's with images on the device: median, least and most of rounds."""
    found = row["contenders"]
    rivals = [found[name] for name in ("pytorch", "pytorch_channels_last", "pytorch_compiled") if name in found]
    best = max(rivals, key=_median, default=None)
    if not _median(best) or not _median(found["emnist_jax"]):
        return None
    pairs = zip(found["emnist_jax"]["images_per_second"], best["images_per_second"], strict=True)
    ratios = [ours / theirs for ours, theirs in pairs]
    return statistics.median(ratios), min(ratios), max(ratios)


def _ratio(row: dict) -> str:
    ratios = ratio(row)
    return f"{ratios[0]:.2f} ({ratios[1]:.2f} to {ratios[2]:.2f})" if ratios else "–"


def line(row: dict) -> str:
    """Returns a row of the Markdown table."""
    found = row["contenders"]

    def of_each(names: tuple[str, ...], text) -> str:
        return ", ".join(text(found[name]) if _median(found.get(name)) else "–" for name in names)

    def speed(name: str) -> str:
        return of_each((name,), lambda outcome: f"{_median(outcome):,.0f}")

    cells = [
        f"`{row['model']}`",
        f"{row['batch_size']:,}",
        row["task"] + ("" if row["dtype"] == "float32" else f", {row['dtype']}"),
        *map(speed, ("emnist_jax", "pytorch", "pytorch_channels_last", "pytorch_compiled", "pytorch_dataloader")),
        _ratio(row),
        of_each(("emnist_jax",), lambda outcome: f"{_median(outcome) / row['limit_images_per_second']:.0%}"),
        of_each(("emnist_jax", "pytorch", "pytorch_compiled"), lambda outcome: f"{outcome['first_batch_seconds']:.1f}"),
        of_each(("emnist_jax", "pytorch"), lambda outcome: f"{outcome['peak_bytes'] / 1e6:,.0f}"),
    ]
    return f"| {' | '.join(cells)} |"


def table(record: dict) -> str:
    """Returns the description and the Markdown table of a record."""
    return "\n".join([describe(record), "", HEADER, *map(line, record["rows"])])


HEADLINES = ("mnist_squeeze_10", "lenet5", "densenet")


def headlines(record: dict) -> str:
    """Returns a short Markdown table: our speeds, and their ratios to the fastest PyTorch's, of what was measured."""
    lines = ["| network | training, images/s | / PyTorch | inference, images/s | / PyTorch |", "|---|---|---|---|---|"]
    rows = {(row["model"], row["task"]): row for row in record["rows"]}
    for name in HEADLINES:
        cells = [f"`{name}`"]
        for task in ("training", "inference"):
            row = rows.get((name, task))
            cells.append(f"{_median(row['contenders']['emnist_jax']):,.0f}" if row else "–")
            cells.append(_ratio(row) if row else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
