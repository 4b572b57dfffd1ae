"""Two real processes over loopback compute what one does, end together and go on; and the files in launch/."""

import fcntl
import importlib
import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
import yaml
from absl import flags

import emnist_jax.main  # noqa: F401  defines the flags
from emnist_jax.errors import Stopped, UserError
from emnist_jax.training import hosts
from processes import MAIN, ROOT, TINY, Process, Processes, free_port, result_of, wait_for
from shared import damage, numbers_of, parameters_of

LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
STEPS = 30
# A workdir that cannot be.
UNSEEN = "--workdir=/dev/null/run"
# Stopped, or JAX' own abort: whichever notices first that another process is lost.
LOST = (75, 134)
LOST_LINE = re.compile(
    r"^lost another process \(.+\); the same command resumes$|JAX distributed service detected", re.M
)


def kubernetes(kind: str) -> dict:
    (found,) = (x for x in yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text()) if x["kind"] == kind)
    return found


def container() -> dict:
    (found,) = kubernetes("Job")["spec"]["template"]["spec"]["containers"]
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_are_strict(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert os.access(script, os.X_OK)
    assert "\nset -euo pipefail\n" in script.read_text()


def test_every_flag_of_the_launch_files_exists():
    texts = {path.name: path.read_text().replace("\\\n", "") for path in SCRIPTS}
    texts["kubernetes.yaml"] = " ".join((*container()["command"], *container()["args"])).replace("\n", " ")
    for name, text in texts.items():
        commands = re.findall(r"^[^#\n]*python -m (emnist_jax\.\w+)(.*)", text, re.M)
        assert commands, name
        for program, arguments in commands:
            importlib.import_module(program)
            known = {flag.name for flag in flags.FLAGS.flags_by_module_dict()[program]}
            known |= {"config", "workdir", "out"}  # several commands have these
            assert set(re.findall(r"--(\w+)", arguments)) <= known, (name, program)
            assert '"$@"' in arguments or program == "emnist_jax.results", name


@pytest.mark.parametrize("script", ["slurm.sh", "slurm_sweep.sh"])
def test_slurm_asks_for_what_the_run_needs(script):
    head = (LAUNCH / script).read_text().partition("\nset -e")[0]
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", head, re.M))
    assert options["nodes"] == "1"
    assert options["signal"] == "TERM@120"
    assert options["open-mode"] == "append"
    assert "requeue" in options
    if script == "slurm.sh":
        # JAX picks the GPU by SLURM_LOCALID, of those that the task sees.
        assert options["ntasks-per-node"] == options["gpus-per-node"] == "4"
        assert not {"gpus-per-task", "gpu-bind"} & options.keys()
    else:
        assert options["ntasks"] == options["gpus-per-node"] == "1"


def test_kubernetes_pods_find_each_other_and_come_back():
    job, service, claim = (kubernetes(kind) for kind in ("Job", "Service", "PersistentVolumeClaim"))
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    environment = {variable["name"]: variable["value"] for variable in container()["env"]}
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(environment["PROCESSES"])
    assert container()["resources"]["limits"] == {"nvidia.com/gpu": 4}

    name, subdomain = job["metadata"]["name"], service["metadata"]["name"]
    assert pod["subdomain"] == subdomain
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"] == {"job-name": name}
    assert re.search(rf":-{name}-0\.{subdomain}:\d+}}", " ".join(container()["command"]))

    rules = [(rule["action"], rule.get("onExitCodes", {}).get("values")) for rule in spec["podFailurePolicy"]["rules"]]
    assert rules == [("FailJob", [2]), ("Ignore", [*LOST, 143]), ("Ignore", None)]
    assert pod["restartPolicy"] == "Never"  # or there is no failure policy
    assert pod["terminationGracePeriodSeconds"] >= 60

    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in container()["volumeMounts"]}
    assert mounts.keys() == volumes.keys()
    assert volumes["data"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for path in (environment["TFDS_DATA_DIR"], *(x for x in container()["args"] if x.startswith("--workdir="))):
        assert path.removeprefix("--workdir=").startswith(mounts["data"] + "/")


@pytest.fixture
def processes(tmp_path):
    with Processes(tmp_path) as processes:
        yield processes


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError("Unable to initialize backend 'nonesuch'\nmore lines"),
            "Unable to initialize backend 'nonesuch'",
        ),
        (AssertionError(), "none for JAX_PLATFORMS=cpu"),
    ],
)
def test_a_missing_device_is_said_in_one_line(monkeypatch, error, reason):
    monkeypatch.setattr(jax, "devices", mock.Mock(side_effect=error))
    with pytest.raises(UserError, match=f"^JAX finds no device: {reason}$"):
        hosts.check_devices()


@pytest.mark.parametrize("platform", [pytest.param("nonesuch", marks=pytest.mark.slow), "cuda"])
def test_a_missing_device_ends_with_one_line_and_code_2(processes, platform):
    if platform == "cuda" and list(Path("/dev").glob("nvidia*")):
        pytest.skip("there is a GPU")
    process = processes.start(LAUNCH / "one_gpu.sh", *TINY, JAX_PLATFORMS=platform)
    assert process.code() == 2
    assert re.fullmatch(f"error: JAX finds no device: .*{platform}.*\n", process.output)
    assert ("or set JAX_PLATFORMS=cpu" in process.output) == (platform == "cuda")


def test_a_taken_port_is_named():
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at port {port} .*Address already in use"):
            hosts.join(f"localhost:{port}", 2, 0)


@pytest.mark.parametrize("address", ["localhost:99999", "localhost", ":8476", "localhost:x"])
def test_what_is_no_address_is_none(address):
    assert not hosts.is_address(address) and hosts.is_address("localhost:8476")


@pytest.mark.slow
def test_a_taken_port_ends_with_code_2(processes):
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        address = f"--coordinator_address=localhost:{taken.getsockname()[1]}"
        process = processes.start(*MAIN, *TINY, "--distributed", address, "--num_processes=2", "--process_id=0")
        assert process.code() == 2
    assert re.fullmatch(r"error: cannot listen at port \d+ .*Address already in use.*\n", process.output)


def test_a_coordinator_that_does_not_start_is_named(monkeypatch):
    monkeypatch.setattr(hosts, "START_TIMEOUT", 1e-3)
    with socket.create_server(("127.0.0.1", 0)) as coordinator:
        address = f"127.0.0.1:{coordinator.getsockname()[1]}"
        hosts._wait_for_port(address)
    with pytest.raises(Stopped, match=f"does not listen at --coordinator_address={address} .*refused"):
        hosts._wait_for_port(address)


def finished(path: Path, start) -> Path:
    """Runs what `start(processes, flags)` starts to its end; returns the workdir."""
    with Processes(path) as processes:
        for process in start(processes, (*TINY, f"--workdir={path / 'run'}")):
            assert process.code() == 0, process.output
    return path / "run"


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """The workdir of an uninterrupted run of one process with four devices."""
    path = tmp_path_factory.mktemp("alone")
    return finished(path, lambda processes, arguments: [processes.start(*MAIN, *arguments, devices=4)])


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """The workdir of an uninterrupted run of two processes with two devices each, of which the first alone sees it."""
    path = tmp_path_factory.mktemp("together")
    return finished(path, lambda processes, arguments: processes.start_two(*arguments, flags_of_1=[UNSEEN]))


def assert_same(workdir: Path, expected: Path):
    assert numbers_of(result_of(workdir)) == numbers_of(result_of(expected))
    np.testing.assert_array_equal(parameters_of(workdir, STEPS), parameters_of(expected, STEPS))


def assert_close(workdir: Path, expected: Path):
    found, wanted = (result_of(path) for path in (workdir, expected))
    assert found["history"][0]["train"] == pytest.approx(wanted["history"][0]["train"], rel=1e-5)
    assert found["test"]["examples"] == wanted["test"]["examples"] == 50
    assert found["test"]["loss"] == pytest.approx(wanted["test"]["loss"], rel=1e-3)
    # Equal to 1e-7, unless rounding makes a max-pooling choose otherwise among equals.
    np.testing.assert_allclose(parameters_of(workdir, STEPS), parameters_of(expected, STEPS), atol=5e-3)


@pytest.mark.slow
def test_two_processes_train_as_one(alone, together):
    assert result_of(alone)["device"] == result_of(together)["device"]
    assert_close(together, alone)


@pytest.mark.slow
def test_only_the_first_process_writes_and_tells(together):
    assert len(list(together.glob("events*"))) == 1
    log = (together / "log.txt").read_text()
    assert [log.count(f"epoch {epoch} ") for epoch in range(1, 7)] == [1] * 6
    first, second = (together.with_name(f"output_{i}").read_text() for i in (0, 1))
    assert "test top-1" in first and "epoch 1" in first
    noise = ("[Gloo]", "waiting for process 0")
    assert [line for line in second.splitlines() if line and not line.startswith(noise)] == []


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other_and_the_run_resumes(processes, together, alone, tmp_path, victim):
    workdir = tmp_path / "run"
    arguments = (*TINY, f"--workdir={workdir}")
    pair = processes.start_two(*arguments)
    wait_for("epoch 2 ", workdir / "log.txt", *pair)
    pair[victim].signal(signal.SIGKILL)
    survivor = pair[1 - victim]
    assert survivor.code(60) in LOST, survivor.output
    assert LOST_LINE.search(survivor.output)
    assert not (workdir / "result.json").exists()

    shutil.copytree(workdir, tmp_path / "alone/run")
    for process in processes.start_two(*arguments):
        assert process.code() == 0, process.output
    assert "resumed at step" in (workdir / "log.txt").read_text()
    assert_same(workdir, together)

    workdir = tmp_path / "alone/run"
    process = processes.start(*MAIN, *TINY, f"--workdir={workdir}", devices=4)
    assert process.code() == 0, process.output
    assert "resumed at step" in (workdir / "log.txt").read_text()
    assert_close(workdir, alone)


@pytest.mark.slow
def test_two_processes_go_on_from_the_checkpoint_before_a_damaged_one(processes, together, tmp_path):
    workdir = shutil.copytree(together, tmp_path / "run")
    (workdir / "result.json").unlink()
    damage(workdir / f"checkpoints/{STEPS}")
    for process in processes.start_two(*TINY, f"--workdir={workdir}", flags_of_1=[UNSEEN]):
        assert process.code() == 0, process.output
    assert f"resumed at step {STEPS - 5} " in (workdir / "log.txt").read_text()
    assert_same(workdir, together)


def main_after(statements: str) -> tuple[str, str, str]:
    """Returns the command that runs these statements, and then main."""
    return (MAIN[0], "-c", f'{statements}\nimport runpy\nrunpy.run_module("emnist_jax.main", run_name="__main__")')


SLOW_MAIN = main_after("""
import time
from emnist_jax import datasets
from emnist_jax.training import evaluation

def slow(function):
    return lambda *arguments: time.sleep(35) or function(*arguments)

datasets.load = slow(datasets.load)
evaluation.Evaluator = slow(evaluation.Evaluator)
""")
OTHER_CONFIG = main_after("import sys; sys.argv.append('--config.seed=1')")
OTHER_IMAGES = main_after("""
from emnist_jax import datasets
load = datasets.load

def load_others(config):
    dataset = load(config)
    dataset.train.images[0, 0, 0] ^= 1
    return dataset

datasets.load = load_others
""")
FULL_DISK = main_after("""
import shutil
shutil.disk_usage = lambda path: shutil._ntuple_diskusage(1, 1, 0)
""")
FAILING = main_after("""
from emnist_jax.training import evaluation

def measure(logits, labels):
    raise OSError(5, "Input/output error")

evaluation.measure = measure
""")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mains", "codes", "line"),
    [
        ((MAIN, OTHER_IMAGES), ([2], [2]), "the processes have read different images of synthetic/digits"),
        ((MAIN, OTHER_CONFIG), ([2], [2]), "the processes were given different configs"),
        ((FULL_DISK, MAIN), ([2], [2]), "process 0 cannot go on, and says why"),
        ((FAILING, MAIN), ([2], LOST), LOST_LINE),
        ((MAIN, FAILING), (LOST, [2]), r"\[Errno 5\] Input/output error; the same command resumes"),
    ],
    ids=["other images", "other config", "full disk", "first alone", "second alone"],
)
def test_an_error_of_one_process_keeps_its_code_and_ends_both(processes, tmp_path, mains, codes, line):
    pair = processes.start_two(*TINY, f"--workdir={tmp_path / 'run'}", mains=mains)
    for process, expected in zip(pair, codes, strict=True):
        assert process.code() in expected, process.output
    assert re.search(line, pair[1].output)


@pytest.mark.slow
def test_a_process_that_loads_and_compiles_slowly_is_waited_for(processes, tmp_path):
    arguments = (*TINY, f"--workdir={tmp_path / 'run'}", "--config.training.steps=2")
    for process in processes.start_two(*arguments, mains=(MAIN, SLOW_MAIN)):
        assert process.code() == 0, process.output


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_the_same_step(processes, tmp_path):
    pair = processes.start_two(*TINY, f"--workdir={tmp_path / 'run'}")
    wait_for("epoch 1 ", tmp_path / "run/log.txt", *pair)
    pair[1].signal(signal.SIGTERM)
    assert [process.code(60) for process in pair] == [75, 75], [process.output for process in pair]
    line = re.compile(rf"^stopped by SIGTERM at step (\d+) of {STEPS}; the same command resumes$", re.M)
    (step,), (same,) = (line.findall(process.output) for process in pair)
    assert step == same
    assert max(int(path.name) for path in (tmp_path / "run/checkpoints").iterdir()) == int(step)


@pytest.mark.slow
def test_a_signal_while_one_process_still_compiles_ends_both(processes, tmp_path):
    pair = processes.start_two(*TINY, f"--workdir={tmp_path / 'run'}", JAX_ENABLE_COMPILATION_CACHE="false")
    wait_for("parameters, on", tmp_path / "run/log.txt", *pair)
    pair[1].signal(signal.SIGTERM)
    assert pair[1].code() == 75, pair[1].output
    assert "stopped by SIGTERM" in pair[1].output
    assert pair[0].code(60) in LOST, pair[0].output


@pytest.mark.slow
def test_a_signal_while_a_process_waits_for_the_others_ends_it(processes, tmp_path):
    waiting = processes.start(
        *(*MAIN, *TINY, f"--workdir={tmp_path / 'run'}", "--distributed"),
        *(f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2", "--process_id=0"),
        GRPC_VERBOSITY="ERROR",
    )
    with pytest.raises(AssertionError, match="still running"):
        waiting.code(10)
    waiting.signal(signal.SIGTERM)
    assert waiting.code(20) == 75
    waited, stopped = waiting.output.splitlines()
    assert waited.startswith("waiting for the others at 127.0.0.1:")
    assert stopped == "stopped by SIGTERM; the same command resumes"


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_bad_input_of_one_process_ends_both_with_code_2(processes, tmp_path, failing):
    workdir = tmp_path / "run"
    workdir.mkdir()
    with open(workdir / "lock", "w") as lock:
        if failing == 0:
            fcntl.flock(lock, fcntl.LOCK_EX)
        flags_of_1 = ("--config.dataset.data_dir=nowhere",) if failing == 1 else ()
        pair = processes.start_two(*TINY, f"--workdir={workdir}", flags_of_1=flags_of_1)
        assert [process.code() for process in pair] == [2, 2], [process.output for process in pair]
    said = [re.findall("^error: (.+)", process.output, re.M) for process in pair]
    assert said[1 - failing] == [f"process {failing} cannot go on, and says why"]
    (reason,) = said[failing]
    assert ("another process trains in" if failing == 0 else "reads no --config.dataset.data_dir") in reason


@pytest.mark.slow
def test_processes_with_other_numbers_of_devices_are_refused(processes, tmp_path):
    one_device = main_after(
        "import os; os.environ['XLA_FLAGS'] = os.environ['XLA_FLAGS'].replace('count=2', 'count=1')"
    )
    for process in processes.start_two(*TINY, f"--workdir={tmp_path / 'run'}", mains=(MAIN, one_device)):
        assert process.code() == 2
        assert "error: the processes must have equal numbers of devices\n" in process.output


def test_the_exit_code_does_not_depend_on_where_the_message_goes(processes):
    command = f"exec {MAIN[0]} -m emnist_jax.main --config=nonesuch.py 2>/dev/full"
    assert processes.start("bash", "-c", command).code() == 2


@pytest.mark.slow
@pytest.mark.parametrize(("script", "devices"), [("one_gpu.sh", 1), ("four_gpus.sh", 4)])
def test_the_scripts_for_one_host(processes, tmp_path, script, devices):
    arguments = (*TINY, f"--workdir={tmp_path / 'run'}", "--config.training.steps=2")
    process = processes.start(LAUNCH / script, *arguments, devices=devices)
    assert process.code() == 0, process.output
    assert result_of(tmp_path / "run")["device"].startswith(f"{devices} x CPU")


SRUN = """#!/usr/bin/env bash
# As srun: starts the tasks of one node, each with its own variables, and returns the highest exit code.
set -u
while [[ $1 == --* ]]; do shift; done
if [[ -n ${END_WITH:-} ]]; then
  echo "$@" >"$0.calls"
  exit "$END_WITH"
fi
pids=()
for i in 0 1; do
  SLURM_STEP_NODELIST=localhost SLURM_STEP_NUM_NODES=1 SLURM_NTASKS=2 SLURM_PROCID=$i SLURM_LOCALID=$i "$@" &
  pids+=($!)
done
echo "${pids[@]}" >"$0.pids"
highest=0
for pid in "${pids[@]}"; do
  wait "$pid" || { code=$?; ((code > highest)) && highest=$code; }
done
exit "$highest"
"""


# As scontrol: a requeued job's script is killed, which no code of its own can follow.
SCONTROL = """#!/bin/sh
echo "$@" >>"$0.calls"
kill -9 $PPID
"""
REQUEUED = 137


@pytest.fixture
def slurm(processes, tmp_path):
    """Returns `slurm(*flags)`, which starts slurm.sh as a job of two tasks with two devices each.

    With END_WITH, its tasks only note the command and end with this code.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, content in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(content)
        (folder / name).chmod(0o755)

    def start(*arguments, script="slurm.sh", **environment) -> Process:
        # JAX takes the port from the job's number.
        lowest = 2**16 - 2**12
        return processes.start(
            *(LAUNCH / script, *arguments),
            PATH=f"{folder}:{Path(MAIN[0]).parent}:{os.environ['PATH']}",
            SLURM_JOB_ID=str(2**12 + free_port(lowest) - lowest),
            SLURM_CPUS_PER_TASK="1",
            **environment,
        )

    return start


@pytest.mark.parametrize(("script", "codes"), [("slurm.sh", {75, 134, 137, 143}), ("slurm_sweep.sh", {75, 137, 143})])
def test_slurm_requeues_after_these_codes_alone(slurm, tmp_path, script, codes):
    array = {"TASK_ID": "3", "TASK_MIN": "1", "TASK_MAX": "4", "TASK_COUNT": "4"}
    array = {f"SLURM_ARRAY_{name}": value for name, value in array.items()}
    calls, requeued = tmp_path / "bin/scontrol.calls", set()
    for code in (0, 1, 2, 75, 134, 137, 139, 143):
        job = slurm("--config=FILE", script=script, END_WITH=str(code), **array)
        assert job.code() == (REQUEUED if code in codes else code), job.output
        requeued |= {code} if calls.exists() else set()
        calls.unlink(missing_ok=True)
    assert requeued == codes
    job = slurm("--config=FILE", script=script, END_WITH="75", SLURM_RESTART_COUNT="2", MAX_RESTARTS="2", **array)
    assert job.code() == 75 and not calls.exists()
    assert job.output == "started again 2 times: the same command resumes\n"
    job = slurm("--config=FILE", script=script, END_WITH="75", MAX_RESTARTS="0", **array)
    assert job.code() == 75 and job.output == "started again 0 times: the same command resumes\n"
    command = {"slurm.sh": "main --distributed", "slurm_sweep.sh": "sweep --shard=2/4"}[script]
    assert (tmp_path / "bin/srun.calls").read_text() == f"python -m emnist_jax.{command} --config=FILE\n"


def test_a_sweep_that_is_no_array_says_so(slurm):
    job = slurm("--config=FILE", script="slurm_sweep.sh", END_WITH="0")
    assert job.code() == 1 and job.output.endswith("SLURM_ARRAY_TASK_ID: pass --array=0-7 to sbatch\n")
    array = {"TASK_ID": "2", "TASK_MIN": "0", "TASK_MAX": "6", "TASK_COUNT": "4"}  # --array=0-6:2
    array = {f"SLURM_ARRAY_{name}": value for name, value in array.items()}
    job = slurm("--config=FILE", script="slurm_sweep.sh", END_WITH="0", **array)
    assert job.code() == 2 and "without gaps" in job.output


@pytest.mark.slow
def test_slurm_requeues_what_was_stopped(slurm, together, tmp_path):
    workdir, calls = tmp_path / "run", tmp_path / "bin/scontrol.calls"
    job = slurm(*TINY, f"--workdir={workdir}")
    wait_for("epoch 2 ", workdir / "log.txt", job)
    # As --signal=TERM does: to the tasks, not to the script.
    for pid in (tmp_path / "bin/srun.pids").read_text().split():
        os.kill(int(pid), signal.SIGTERM)
    assert job.code() == REQUEUED, job.output
    assert re.fullmatch(r"requeue \d+\n", calls.read_text())

    job = slurm(*TINY, f"--workdir={workdir}")
    assert job.code() == 0, job.output
    assert calls.read_text().count("\n") == 1
    assert "resumed at step" in (workdir / "log.txt").read_text()
    assert_same(workdir, together)


@pytest.mark.slow
@pytest.mark.parametrize(("code", "restarts", "requeued"), [(2, 0, False), (137, 19, True), (137, 20, False)])
def test_slurm_requeues_what_lost_a_process_but_not_for_ever(slurm, tmp_path, code, restarts, requeued):
    workdir = tmp_path / "run"
    flags = ("--config.model.name=densnet",) if code == 2 else ()
    job = slurm(*TINY, f"--workdir={workdir}", *flags, SLURM_RESTART_COUNT=str(restarts))
    if code == 137:
        wait_for("epoch 1 ", workdir / "log.txt", job)
        os.kill(int((tmp_path / "bin/srun.pids").read_text().split()[1]), signal.SIGKILL)
    assert job.code() == (REQUEUED if requeued else code), job.output
    assert (tmp_path / "bin/scontrol.calls").exists() == requeued


@pytest.mark.slow
def test_the_pods_of_kubernetes(processes, together, tmp_path):
    environment = {variable["name"]: variable["value"] for variable in container()["env"]}
    environment |= {
        "COORDINATOR_ADDRESS": f"127.0.0.1:{free_port()}",
        "JAX_PLATFORMS": "cpu",
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    }
    command = (*container()["command"], *TINY, f"--workdir={tmp_path / 'run'}")
    pods = [processes.start(*command, **environment, JOB_COMPLETION_INDEX=str(i)) for i in (0, 1)]
    for pod in pods:
        assert pod.code() == 0, pod.output
        assert "Kubernetes environment detected" not in pod.output
    assert_same(tmp_path / "run", together)
