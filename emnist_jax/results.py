"""Writes the tables and plots of results/ into the docs: `python -m emnist_jax.results [--check]`.

results/ROW/seedN.json are the result.json files of finished runs (`emnist_jax.sweep --results=results`). The rows, and
what their sources report, stand in configs/sweeps/. results/speed/NAME.json are what `emnist_jax.benchmark --out`
wrote, results/leak/NETWORK.json what `launch/leak.py --out` did. Run it in the repository's folder.
"""

import json
import re
from pathlib import Path

from absl import flags

from emnist_jax import command_line
from emnist_jax.command_line import read_sweep
from emnist_jax.config import ConfigDict
from emnist_jax.errors import UserError

_CHECK = flags.DEFINE_bool(
    "check", False, "Write nothing: fail if a table is not what the files say, or a file is wrong"
)

# The study's own comparisons: variants of configs/sweeps/study.py.
STUDY = ("rates_2048", "rates_1024", "activation", "dropout", "augmentation", "layers", "transfer")
# Name of the table -> its sweep.
SWEEPS = {
    "mnist": "configs/sweeps/mnist.py",
    "emnist": "configs/sweeps/emnist.py",
    "emnist pool": "configs/sweeps/emnist.py:pool",
    "onecycle rate": "configs/sweeps/onecycle_rate.py",
    **{f"study {variant}": f"configs/sweeps/study.py:{variant}" for variant in STUDY},
}
PAGES = ("README.md", "docs/data.md", "docs/results.md", "docs/speed.md", "docs/study.md")
# Name of a file in results/speed/ -> what writes it.
SPEED = {
    "cpu": "python -m emnist_jax.benchmark --out=results/speed/cpu.json",
    **dict.fromkeys(("gpu_densenet", "gpu_tiny"), "launch/benchmark_gpu.sh"),
}
# Networks of which it is measured what a leak is worth.
LEAKS = ("lenet5", "densenet")
# Trainable parameters -> top-1 in percent of small networks for MNIST, as their authors give it: docs/results.md.
ELSEWHERE = {575: 98.0, 697: 99.03, 1936: 99.13, 3197: 99.25, 4862: 99.18}
# Tables that have a plot below them.
PLOTTED = ("mnist", "emnist", "emnist pool")
# Rows of the README's table.
HEADLINES = 5


def main() -> None:
    import jax

    from emnist_jax.reporting import tables

    if not Path("results").is_dir():
        raise UserError("there is no folder results/ here: run it in the repository's folder")
    jax.config.update("jax_platforms", "cpu")  # it counts parameters: a GPU is left to a training
    results = tables.read(Path("results"))
    sweeps = {name: read_sweep(sweep) for name, sweep in SWEEPS.items()}
    check_results([row for sweep in sweeps.values() for row in sweep.rows], results)
    tables_by_mark = marked_tables(sweeps, results, Path("results"))
    for page in PAGES:
        path = Path(page)
        before = path.read_text()
        after = with_tables(before, tables_by_mark)
        if _CHECK.value and after != before:
            raise UserError(f"{page} is not what results/ says: run `python -m emnist_jax.results`")
        if after != before:
            path.write_text(after)
    check_figures(Path("README.md").read_text(), results)
    for name in PLOTTED:
        path, elsewhere = Path("docs", picture(name)), ELSEWHERE if name == "mnist" else None
        shown = tables.points(sweeps[name].rows, results)
        if len(shown) < 2:
            continue
        if not _CHECK.value:
            tables.plot(shown, path, elsewhere=elsewhere)
        elif not tables.is_plot_of(path, shown, elsewhere):
            raise UserError(f"{path} does not show what results/ says: run `python -m emnist_jax.results`")
    runs = sum(map(len, results.values()))
    print(f"{runs} runs of {len(results)} rows: {'as the tables say' if _CHECK.value else 'written'}")


def marked_tables(sweeps: dict[str, ConfigDict], results: dict[str, list[dict]], folder: Path) -> dict[str, str]:
    """Returns all tables, by the mark that stands before them; `folder`: that of results, with speed/ and leak/."""
    from emnist_jax.reporting import speed, tables

    marked = {}
    for name, sweep in sweeps.items():
        marked[name] = tables.markdown(sweep.rows, results, sweep.split, with_bar=name == "mnist")
        if name in PLOTTED and len(tables.points(sweep.rows, results)) > 1:
            marked[name] += f"\n\n![Error against parameters and against training time]({picture(name)})"
    marked["mnist headlines"] = tables.headlines(sweeps["mnist"].rows, results, HEADLINES)
    for name, command in SPEED.items():
        marked[f"speed {name}"] = f"Not yet measured: `{command}`"
        if record := _read_record(folder / "speed" / f"{name}.json"):
            marked[f"speed {name}"] = speed.table(record)
            if name == "cpu":
                marked["speed cpu headlines"] = speed.headlines(record)
    marked["leak"] = tables.leaks({name: _read_record(folder / "leak" / f"{name}.json") for name in LEAKS})
    return marked


def _read_record(path: Path) -> dict | None:
    """Returns what a measurement's file holds, or None if there is none.

    Raises:
      UserError: No commit holds the code that it was made with.
    """
    from emnist_jax.environment import check_commit

    if not path.exists():
        return None
    record = json.loads(path.read_text())
    check_commit(str(path), record["environment"]["commit"])
    return record


def picture(name: str) -> str:
    """Returns the file name of a table's plot."""
    return f"accuracy_{name.replace(' ', '_')}.png"


def with_tables(text: str, tables_by_mark: dict[str, str]) -> str:
    """Returns a page with the tables between their marks, if it has them."""
    for mark, table in tables_by_mark.items():
        begin, end = f"<!-- {mark}: python -m emnist_jax.results -->\n", f"<!-- end of {mark} -->"
        before, found, rest = text.partition(begin)
        if found:
            if end not in rest:
                raise UserError(f"a page has no {end!r} after {begin.strip()!r}")
            text = f"{before}{begin}{table}\n{end}{rest.partition(end)[2]}"
    return text


def check_results(rows: list[dict], results: dict[str, list[dict]]) -> None:
    """Raises UserError for the first result that is not what its name says."""
    from emnist_jax.datasets import official
    from emnist_jax.environment import check_commit
    from emnist_jax.models.summary import summarize
    from emnist_jax.reporting import tables
    from emnist_jax.sweep import check_config, experiment_of
    from emnist_jax.training.run import network

    known = {row["name"]: row for row in rows}
    seeds = tables.seeds_of(rows)
    images = {}  # data set and size of its validation split -> a file, and the digest of its images
    for name, of_row in results.items():
        if name not in known:
            raise UserError(f"results/{name} is no row of {' or '.join(SWEEPS.values())}")
        trainable = summarize(network(experiment_of(known[name], 0, []))).trainable
        for result in of_row:
            where = f"results/{name}/seed{result['seed']}.json"
            if result["seed"] not in seeds[name]:
                raise UserError(f"{where} has a seed that no row of this name asks for")
            check_config(where, known[name], result, [])
            if result["trainable_parameters"] != trainable:
                raise UserError(f"{where} has {result['trainable_parameters']:,} parameters, its network {trainable:,}")
            if not result.get("dataset_sha256") or result["synthetic"]:
                raise UserError(f"{where} does not say which real images it was made with")
            dataset = result["config"]["dataset"]["name"]
            named = dataset, result["config"]["dataset"]["validation_examples"]
            first, digest = images.setdefault(named, (where, result["dataset_sha256"]))
            if digest != result["dataset_sha256"]:
                raise UserError(f"{where} was made with other images of {dataset} than {first}")
            of_set = official.SETS[dataset].test_examples
            if result["test"] and result["test"]["examples"] != of_set:
                raise UserError(f"{where} counts {result['test']['examples']:,} of the {of_set:,} test images")
            check_commit(where, result["commit"])


def check_figures(page: str, results: dict[str, list[dict]]) -> None:
    """Raises UserError for the first accuracy in a page's prose, such as 99.36 %, that no row of results has."""
    from emnist_jax.reporting import tables

    tested = tables.measured_on("test", results)
    accuracies = {tables.mean_and_deviation([each["test"]["top1"] for each in found]) for found in tested.values()}
    known = {accuracy.partition(" ")[0] for accuracy in accuracies}
    for figure in re.findall(r"(\d+\.\d+) ?%", re.sub("`[^`]*`", "", page)):
        if figure not in known:
            raise UserError(f"the README says {figure} %, which no row of results/ has")


if __name__ == "__main__":
    command_line.run(main, config=None)
