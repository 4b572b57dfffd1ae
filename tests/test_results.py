"""The tables in README and docs are what the files in results/ say, and these are what their names say."""

import copy
import itertools
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from emnist_jax import environment, results
from emnist_jax.command_line import read_sweep
from emnist_jax.config import experiment_name, row
from emnist_jax.errors import UserError
from emnist_jax.reporting import speed, tables
from emnist_jax.sweep import experiment_of

ROOT = Path(__file__).parent.parent
ROW = row("configs/mnist_gap.py:v5", seeds=2, reported=99.44)


def result_of(seed: int, top1: float) -> dict:
    config = json.loads(json.dumps(experiment_of(ROW, seed, []).to_dict()))
    return {
        "config": config,
        "seed": seed,
        "test": {"top1": top1, "examples": 10_000},
        "validation": None,
        "history": [*[{"train": {"top1": top1}, "seconds": 2.0}] * 14, {"train": {"top1": top1}, "seconds": 900.0}],
        "dataset_sha256": "ab",
        "synthetic": False,
        "commit": "0123456789ab",
        "device": "1 x GPU",
        "trainable_parameters": 5893,
        "epochs": 15.0,
    }


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", *who, *arguments], cwd=folder, capture_output=True, text=True).stdout.strip()


def test_another_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="in the repository's folder"):
        results.main()


def test_the_repository_holds_what_its_tables_say():
    # CI's `results --check` compares each file with its row, too.
    sweeps = {name: read_sweep(f"{ROOT}/{sweep}") for name, sweep in results.SWEEPS.items()}
    found = tables.read(ROOT / "results")
    results.check_figures((ROOT / "README.md").read_text(), found)
    tables_by_mark = results.marked_tables(sweeps, found, ROOT / "results")
    for page in results.PAGES:
        text = (ROOT / page).read_text()
        assert results.with_tables(text, tables_by_mark) == text, f"{page}: run `python -m emnist_jax.results`"
        for mark in re.findall("<!-- (.*): python -m emnist_jax.results -->", text):
            assert mark in tables_by_mark, f"{page}: no files for {mark!r}"


def test_the_commits_that_results_name_are_this_repositorys():
    if git(ROOT, "rev-parse", "--is-shallow-repository") != "false":
        pytest.skip("the history is not here")
    history = git(ROOT, "rev-list", "HEAD").split()
    texts = [path.read_text() for path in (ROOT / "results").rglob("*.json")]
    named = set(", ".join(re.findall('"commit": "(.+?)"', "".join(texts))).split(", "))
    assert {name for name in named if not any(commit.startswith(name) for commit in history)} == set()


def test_a_result_that_is_what_its_name_says_is_accepted():
    results.check_results([ROW], {"mnist_gap_v5": [result_of(0, 0.99), result_of(1, 0.98)]})


def test_only_changed_code_makes_a_commit_dirty(tmp_path, monkeypatch):
    files = [tmp_path / name for name in ("emnist_jax/environment.py", "configs/a.py", "README.md")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("a")
    monkeypatch.setattr(environment, "__file__", str(files[0]))
    commit = environment.commit.__wrapped__
    assert commit() == "unknown"
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "another project, whose folder holds an installed copy")
    assert commit() == "unknown"
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "a")
    clean = commit()
    assert len(clean) == 12
    for file, expected in zip(files, (f"{clean}-dirty", f"{clean}-dirty", clean), strict=True):
        file.write_text("b")
        assert commit() == expected
        git(tmp_path, "checkout", ".")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "config.optimizer.learning_rate",
            0.2,
            "its row's .optimizer.learning_rate was 0.2, is 0.1",
        ),
        ("config.seed", 1, "its row's .seed was 1, is 0"),
        ("rollbacks", [{}], "went on after a rollback"),
        ("trainable_parameters", 5733, "has 5,733 parameters, its network 5,893"),
        ("commit", "0123456789ab-dirty", "no commit holds"),
        ("dataset_sha256", None, "does not say which real images"),
        ("synthetic", True, "does not say which real images"),
        ("dataset_sha256", "cd", "seed0.json was made with other images of mnist than results/mnist_gap_v5/seed1.json"),
        ("test.examples", 9_984, "counts 9,984 of the 10,000 test images"),
    ],
)
def test_a_result_that_is_not_what_its_name_says_is_refused(key, value, message):
    result = copy.deepcopy(result_of(0, 0.99))
    *sections, last = key.split(".")
    section = result
    for part in sections:
        section = section[part]
    section[last] = value
    with pytest.raises(UserError, match=message):
        results.check_results([ROW], {"mnist_gap_v5": [result_of(1, 0.98), result]})
    with pytest.raises(UserError, match="results/mnist_gap_v6 is no row"):
        results.check_results([ROW], {"mnist_gap_v6": [result]})


def test_the_last_five_epochs_are_counted_on_validation():
    history = [{"validation": {"top1": top1}} for top1 in (0.999, 0.999, 0.993, 0.994, 0.9941, 0.9, 0.995)]
    none = [{"validation": {"top1": 0.9}}]
    assert tables.epochs_at_bar([{"history": history}]) == "3"
    assert tables.epochs_at_bar([{"history": history}, {"history": none}]) == "1.5"


def test_tables_say_mean_deviation_and_what_is_missing():
    other = row("configs/mnist_gap.py:v4", remark="(a remark)")
    # Another table's row of this name has a third seed.
    found = {"mnist_gap_v5": [result_of(0, 0.99), result_of(1, 0.98), result_of(2, 0.5)]}
    table = tables.markdown([ROW, other], found, with_bar=True)
    assert (
        "| `mnist_gap_v5` | 5,893 | 99.44 | – | 98.50 ± 0.71 | 2 of 2 | last | – | 0.5 | 1 x GPU, 0123456789ab |"
        in table
    )
    command = "`python -m emnist_jax.main --config=configs/mnist_gap.py:v4`"
    assert f"| – (a remark) |  | not yet run | 0 of 1 |  |  |  | {command} |" in table
    found["mnist_gap_v5"][1] |= {"device": "1 x CPU", "history": [{"train": {"top1": 0.9}, "seconds": 6.0}] * 15}
    table = tables.markdown([ROW, other], found)
    assert "| 1.5 (1 x CPU); 0.5 (1 x GPU) | 1 x CPU, 0123456789ab; 1 x GPU, 0123456789ab |" in table
    failures = {"mnist_gap_v5": ["seed 1: b", "seed 2: c"], "mnist_gap_v4": ["seed 0: a"]}
    table = tables.markdown([ROW, other], found, failures=failures)
    assert "| 2 of 2; failed: seed 1: b; seed 2: c |" in table and "| failed: seed 0: a | 0 of 1 |" in table
    for result in found["mnist_gap_v5"]:
        result["validation"] = {"top1": 0.97}
    assert "| 97.00 ± 0.00 | 98.50 ± 0.71 | 2 of 2 |" in tables.markdown([ROW], found)
    assert "| 97.00 ± 0.00 | 2 of 2 |" in tables.markdown([ROW], found, "validation")
    page = "a\n<!-- mnist: python -m emnist_jax.results -->\nold\n<!-- end of mnist -->\nb\n"
    assert results.with_tables(page, {"mnist": "new"}) == page.replace("old", "new")
    with pytest.raises(UserError, match="no '<!-- end of mnist -->'"):
        results.with_tables(page.replace("end of", "end"), {"mnist": "new"})
    headlines = tables.headlines([other, ROW], {"mnist_gap_v5": found["mnist_gap_v5"][:2]}, 5).split("\n")
    assert headlines[2:] == ["| `mnist_gap.py:v5` | 5,893 | 2 | 98.50 ± 0.71 | 99.44 |"]


@pytest.mark.parametrize(
    ("leaked", "said"),
    [((False, False), ""), ((False, True), " (leaked)"), ((False, None), " (leaked or not: not known)")],
)
def test_tables_say_what_leaked(leaked, said):
    found = {"mnist_gap_v5": [result_of(seed, 0.99) | {"leaked": leaked[seed]} for seed in (0, 1)]}
    assert f"| 99.00 ± 0.00{said} | 2 of 2 |" in tables.markdown([ROW], found)
    assert f"| 99.00 ± 0.00{said} | 99.44 |" in tables.headlines([ROW], found, 1)


def test_no_two_rows_name_commands_of_one_workdir():
    rows = {each["name"]: each for sweep in results.SWEEPS.values() for each in read_sweep(sweep).rows}
    workdirs = {}
    for name, seed in itertools.product(rows, (0, 1)):
        command = tables.command_of(rows[name], seed).rpartition("&& ")[2]
        told = re.search("--workdir=runs/(.*)", command)
        workdirs[name, seed] = told[1] if told else experiment_name(rows[name]["config"])
        assert ("data_dir=FOLDER" in command) == ("emnist_pool" in command)
        assert ("--config.seed=1" in command) == seed
    assert len(set(workdirs.values())) == 2 * len(rows)


def test_a_pretraining_is_part_of_what_a_name_says():
    transfer = row("configs/mnist_gap.py:v5", pretraining="configs/mnist_gap.py:v4")
    assert tables.command_of(transfer, 2) == (
        "python -m emnist_jax.main --config=configs/mnist_gap.py:v4 --config.seed=2 "
        "--workdir=runs/mnist_gap_v5/pretrained_seed2 && "
        "python -m emnist_jax.main --config=configs/mnist_gap.py:v5 --config.seed=2 "
        "--config.init_from=runs/mnist_gap_v5/pretrained_seed2 --workdir=runs/mnist_gap_v5/seed2"
    )
    result = result_of(0, 0.99)
    with pytest.raises(UserError, match="init_from was None, is mnist_gap_v5/pretrained_seed0"):
        results.check_results([transfer], {"mnist_gap_v5": [result]})
    result["config"]["init_from"] = "another_row/pretrained_seed0"
    with pytest.raises(UserError, match="init_from was another_row/pretrained_seed0, is mnist_gap_v5/pretrained_seed0"):
        results.check_results([transfer], {"mnist_gap_v5": [result]})
    result["config"]["init_from"] = "elsewhere/mnist_gap_v5/pretrained_seed0"
    results.check_results([transfer], {"mnist_gap_v5": [result]})
    with pytest.raises(UserError, match="init_from was elsewhere/mnist_gap_v5/pretrained_seed0, is None"):
        results.check_results([ROW], {"mnist_gap_v5": [result]})


def test_an_accuracy_in_the_readme_needs_a_result():
    found = {"mnist_gap_v5": [result_of(0, 0.99), result_of(1, 0.98)]}
    results.check_figures("It reads 98.50 % of them; `test top-1 12.34 %` is code.", found)
    with pytest.raises(UserError, match="says 98.51 %"):
        results.check_figures("It reads 98.51 % of them.", found)


def test_a_seed_that_no_row_asks_for_is_refused_and_does_not_count():
    found = {"mnist_gap_v5": [result_of(0, 0.99), result_of(1, 0.98), result_of(2, 0.5)]}
    with pytest.raises(UserError, match="mnist_gap_v5/seed2.json has a seed that no row"):
        results.check_results([ROW], found)
    for result in found["mnist_gap_v5"]:
        result["test"]["examples"] = 10_000
    assert "98.50 ± 0.71" in tables.headlines([ROW], found, 1)
    assert tables.points([ROW], found)[0].error == pytest.approx(1.5)


def test_a_plot_tells_what_it_shows(tmp_path):
    results_of = {"mnist_gap_v5": [result_of(0, 0.99)]}
    (point,) = tables.points([ROW], results_of)
    assert point.reported == pytest.approx(0.56)
    path = tmp_path / "plot.png"
    assert not tables.is_plot_of(path, [point])
    tables.plot([point], path, elsewhere={575: 98.0})
    assert tables.is_plot_of(path, [point], {575: 98.0})
    assert not tables.is_plot_of(path, [point], {576: 98.0})
    others = tables.points([ROW], {"mnist_gap_v5": [result_of(0, 0.98)]})
    assert not tables.is_plot_of(path, others, {575: 98.0})


def test_labels_of_near_dots_lie_apart_and_within_the_axes():
    figure = Figure()
    axes = figure.subplots()
    axes.set(xlim=(0, 10), ylim=(0, 10))
    labels = [("one of the names", 9.0, 5.0), ("another of the names", 9.0, 5.1), ("a third one", 5.1, 5.0)]
    tables.place_labels(axes, labels)
    boxes = [text.get_window_extent() for text in axes.texts]
    dots = axes.transData.transform([xy for _, *xy in labels])
    assert len(boxes) == 3 and not any(box.contains(*dot) for box in boxes for dot in dots)
    assert not any(box.overlaps(other) for box, other in itertools.combinations(boxes, 2))
    assert all(axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 for box in boxes)


def test_points_of_the_validation_images_have_the_reported_figures_of_these():
    result = result_of(0, 0.5) | {"validation": {"top1": 0.97, "examples": 10_000}}
    rows = [{**ROW, "remark": remark} for remark in ("", "(validation)")]
    for split, reported in (("test", (0.56, None)), ("validation", (None, 0.56))):
        shown = [tables.points([row], {ROW["name"]: [result]}, split)[0].reported for row in rows]
        assert shown == [each and pytest.approx(each) for each in reported]


def flowing(page: str) -> str:
    return " ".join((ROOT / page).read_text().split())


def test_accuracies_in_prose_are_those_of_their_rows():
    found = tables.read(ROOT / "results")

    def of(name: str) -> str:
        return f"{100 * np.mean([result['test']['top1'] for result in found[name]]):.2f} %"

    densenet, lenet5 = of("densenet_fixed_pool_epochs_5"), of("lenet5_fixed_pool_epochs_5")
    readme, page = flowing("README.md"), flowing("docs/results.md")
    assert f"DenseNet reads {densenet} of the test images, its LeNet-5 {lenet5}, after 5 epochs" in readme
    assert f"Our network for digits and letters reads {of('characters_pool')} after 12" in readme
    assert f"After 5 epochs of one recipe of ours (`fixed`, one seed each), the DenseNet reads {densenet}" in page
    assert f"of the test images and LeNet-5 {lenet5}," in page
    assert f"After all 30 epochs of this recipe, LeNet-5 reads {of('lenet5_fixed_pool')}, still" in page
    assert of("lenet5_fixed_pool") < densenet
    with_the_study_s_stride = "densenet121_fixed_stem_stride_2", "resnet50_fixed_stem_stride_2"
    of_one = [of(f"{name}_pool_epochs_1") for name in (*with_the_study_s_stride, "densenet_fixed", "lenet5_fixed")]
    assert "DenseNet-121 reads {0}, the final DenseNet {2}, ResNet-50 {1} and LeNet-5 {3}. ".format(*of_one) in page
    assert (
        f"LeNet-5 reads {of('lenet5_pool')} after 61 epochs, and its RBF form {of('lenet5_rbf_pool')} after 68" in page
    )

    def in_minutes(name: str) -> str:
        (minutes,) = tables.training_minutes(found[name]).values()
        return f"{of(name)} after {minutes:.0f}"

    three = map(in_minutes, ("lenet5_fixed_pool", "densenet_fixed_pool_epochs_1", "densenet_fixed_pool_epochs_5"))
    assert "LeNet-5 reads {}, the DenseNet {} and {}. ".format(*three) in page
    names = ("dpn", "shufflenet", "mobilenet", "efficientnet_b1", "shufflenet_v2", "mobilenet_v2")
    of_candidates = [of(f"candidates_{name}_fixed_stem_stride_2_pool_epochs_1") for name in names]
    said = "DPN-68 reads {}, ShuffleNet {}, MobileNet {} and EfficientNet-B1 {} after 1 epoch of this recipe "
    said += "and with its stride of 2. "
    said += "Their successors, which it did not try, read {} (ShuffleNet v2) and {} (MobileNetV2). "
    said += "VGG16 with BatchNorm reads {} after a fifth of an epoch."
    assert said.format(*of_candidates, of("candidates_vgg16_fixed_pool_epochs_0.2")) in page
    seeds = sorted(found["mnist_gap_v2"], key=lambda result: result["seed"])
    first = [next(epoch["epoch"] for epoch in each["history"] if epoch["train"]["top1"] > 0.5) for each in seeds]
    tested = [round(100 * each["test"]["top1"], 2) for each in seeds]
    assert "from epochs {:g}, {:g} and {:g} on, and {:.2f}, {:.2f} and {:.2f} % of the".format(*first, *tested) in page
    epochs = {"lenet5_fixed_pool": 30, "lenet5_pool": 61, "lenet5_rbf_pool": 68, "characters_pool": 12}
    assert {name: found[name][0]["epochs"] for name in epochs} == epochs


def test_the_page_on_speed_counts_its_ratios():
    rows = json.loads((ROOT / "results/speed/cpu.json").read_text())["rows"]
    ratios = [speed.ratio(row)[0] for row in rows]
    page, won, cases = flowing("docs/speed.md"), sum(ratio >= 1 for ratio in ratios), len(ratios)
    assert f"Of these {cases} ratios, {won} are 1 or more" in page and f"| in {won} of {cases} cases |" in page
    assert f"| {max(ratios):.2f} times at most |" in page


def test_what_a_leak_is_worth_counts_each_image_as_seen_and_as_not_seen():
    # Of two seeds, two networks each; of two halves of two images each, how many are right: the seen, the others.
    right = {"fine_tuned": [[2, 1], [1, 1], [2, 0], [2, 0]]}
    made = {"environment": {"device": "1 x GPU", "commit": "0123456789ab"}}
    table = tables.leaks({"lenet5": {"right": right, "seeds": 2, "images": 4, **made}, "densenet": None}).split("\n")
    assert table[2] == "| `lenet5` | fine-tuned | 87.50 | 25.00 | +25.00, +100.00 | 1 x GPU, 0123456789ab |"
    assert table[3].startswith("| `densenet` | not yet run: `python launch/leak.py --pool=FOLDER --model=densenet ")


def test_the_candidates_figures_are_what_their_files_say():
    files = [json.loads(path.read_text()) for path in (ROOT / "results/candidates_one_change").glob("*.json")]
    accuracies = [
        [*(epoch["train"]["top1"] for epoch in each["history"][4::5]), each["test"]["top1"]] for each in files
    ]
    said = sorted([f"{100 * accuracy:.1f}" for accuracy in of_file] for of_file in accuracies)
    page = (ROOT / "docs/study.md").read_text()
    table = page.partition("| network | change | training top-1")[2].partition("\n\n")[0].splitlines()[2:]
    shown = [[cell.strip(" %") for cell in line.strip("|").split("|")][-len(said[0]) :] for line in table]
    assert sorted(shown) == said


def test_a_run_shorter_than_an_epoch_took_its_own_time():
    short = result_of(0, 0.9) | {"epochs": 0.2, "history": [{"seconds": 120.0}]}
    assert tables.training_minutes([short]) == {"1 x GPU": 2.0}


def test_what_was_not_tested_has_no_accuracy_but_that_of_validation():
    untested = result_of(0, 0.99) | {"test": None, "validation": {"top1": 0.97}}
    untested["config"]["evaluation"]["test"] = False
    found = {"mnist_gap_v5": [untested, result_of(1, 0.98)]}
    found["mnist_gap_v5"][1]["validation"] = {"top1": 0.97}
    with pytest.raises(UserError, match="evaluation.test was False, is True"):
        results.check_results([ROW], found)
    results.check_results([row("configs/mnist_gap.py:v5", 2, {"evaluation.test": False}, ROW["name"])], found)
    assert "| 97.00 ± 0.00 | – | 2 of 2 |" in tables.markdown([ROW], found)
    assert len(tables.headlines([ROW], found, 1).split("\n")) == 2
    other = row("configs/mnist_gap.py:v4")
    found["mnist_gap_v4"] = [result_of(0, 0.98)]
    found["mnist_gap_v4"][0]["test"]["examples"] = 10_000
    assert [point.name for point in tables.points([ROW, other], found)] == ["mnist_gap_v4"]
    with pytest.raises(UserError, match="says 97.00 %"):
        results.check_figures("It reads 97.00 % of them.", found)


def test_the_last_epoch_stands_beside_the_one_that_validation_chose():
    result = result_of(0, 0.99) | {"validation": {"top1": 0.97}}
    result["config"]["training"]["select"] = "best"
    result["history"] = [{"seconds": 1.0, "validation": {"top1": top1}} for top1 in (0.9, 0.97, 0.9612)]
    assert "| 97.00; last epoch 96.12 | 99.00 | 1 of 2 | best by validation |" in tables.markdown(
        [ROW], {ROW["name"]: [result]}
    )


def test_the_plot_shows_errors_against_parameters_and_minutes(monkeypatch, tmp_path):
    figures = []
    monkeypatch.setattr(tables.Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    result = result_of(0, 0.98) | {"trainable_parameters": 1_128_160}
    result["test"]["examples"] = 10_000
    tables.plot(tables.points([ROW], {"mnist_gap_v5": [result]}), tmp_path / "plot.png")
    by_size, by_time = figures[0].axes
    np.testing.assert_allclose(by_size.containers[0].lines[0].get_xydata(), [[1_128_160, 2.0]])
    np.testing.assert_allclose(by_time.containers[0].lines[0].get_xydata(), [[0.5, 2.0]])  # 15 epochs of 2 seconds
    figures[0].canvas.draw()
    assert "1M" in [label.get_text() for label in by_size.get_xticklabels()]
