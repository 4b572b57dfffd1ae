"""Times contenders in turn: each in a process of its own, so that none shares threads or memory with another."""

import dataclasses
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Sequence

from emnist_jax import signals
from emnist_jax.benchmarking.contenders import Setting
from emnist_jax.errors import first_line


@dataclasses.dataclass
class Outcome:
    """What was measured of a contender.

    Attributes:
      name: Of the contender.
      first_batch_seconds: To the end of its first batch, in a process that has Python running: its imports, data,
        network and compilation.
      images_per_second: Of each round.
      peak_bytes: Most memory at a time: of the GPU, or of the process on a CPU.
      error: Why there is none of the others; "" if there is.
    """

    name: str
    first_batch_seconds: float = 0.0
    images_per_second: list[float] = dataclasses.field(default_factory=list)
    peak_bytes: int = 0
    error: str = ""


def race(contenders: Sequence[Callable], setting: Setting, rounds: int, seconds: float) -> list[Outcome]:
    """Gives each contender a turn of about so many seconds in each round; every second round goes backwards."""
    context = multiprocessing.get_context("spawn")
    outcomes, pipes, batches = [Outcome(contender.__name__) for contender in contenders], [], []
    processes = []
    for contender in contenders:
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, contender, setting))
        process.start()
        theirs.close()
        processes.append(process)
        pipes.append(ours)
        # One after the other, since compiling takes all cores.
        outcome = outcomes[len(pipes) - 1]
        answer = _ask(ours, None)
        if isinstance(answer, str):
            outcome.error = answer
            batches.append(0)
        else:
            outcome.first_batch_seconds, of_a_batch = answer
            batches.append(max(1, round(seconds / of_a_batch)))
    order = list(range(len(contenders)))
    for number in range(rounds):
        for i in order if number % 2 == 0 else reversed(order):
            if not outcomes[i].error:
                answer = _ask(pipes[i], batches[i])
                if isinstance(answer, str):
                    outcomes[i].error = answer
                else:
                    taken, outcomes[i].peak_bytes = answer
                    outcomes[i].images_per_second.append(batches[i] * setting.batch_size / taken)
    for process, pipe in zip(processes, pipes, strict=True):
        pipe.close()
        process.join()
    return outcomes


def _ask(pipe, batches: int | None):
    """Returns what a contender's process answers, or why it does not."""
    try:
        if batches is not None:
            pipe.send(batches)
        return pipe.recv()
    except (EOFError, OSError):
        return "its process ended"


def _serve(pipe, contender: Callable, setting: Setting) -> None:
    """Answers with (seconds of the first batch, of a later one), then for each number of batches (seconds, bytes)."""
    signals.leave_to_parent()
    try:
        started = time.perf_counter()
        run = contender(setting)
        run(1)
        first = time.perf_counter() - started
        run(2)
        started = time.perf_counter()
        run(3)
        pipe.send((first, (time.perf_counter() - started) / 3))
        while True:
            batches = pipe.recv()
            started = time.perf_counter()
            run(batches)
            pipe.send((time.perf_counter() - started, _peak_bytes()))
    except EOFError:  # all rounds are over
        return
    except Exception as error:  # whatever a library raises is the contender's result
        pipe.send(first_line(error))


def _peak_bytes() -> int:
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        return sys.modules["torch"].cuda.max_memory_allocated()
    if "torch" not in sys.modules:
        import jax

        if statistics_of_device := jax.local_devices()[0].memory_stats():
            return statistics_of_device["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
