"""What the commands share: flags, help, and ends of one line, with exit code 2 for an error and 75 for a stop.

A command imports what takes long (jax) within its `main`, so that Ctrl-C, --help and wrong flags are answered at once.
"""

import contextlib
import functools
import hashlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from emnist_jax import signals
from emnist_jax.config import ConfigDict, base, experiment_name, flatten
from emnist_jax.errors import Stopped, UserError, first_line, unknown

# The flags that are defined here are those of the command that asks for them, also in its help.
flags.disclaim_key_flags()

COMMANDS = ("main", "predict", "demo", "evaluate", "export", "summary", "sweep", "results", "audit", "benchmark")
_EXPERIMENT = """\
  --config: Experiment file, with its variant: configs/quickstart.py, configs/densenet.py:layer_1
  --config.KEY: Another value for a key, e.g. --config.training.epochs=5; emnist_jax/config.py says all keys
"""
_HELP = {
    "required": _EXPERIMENT,
    "optional": _EXPERIMENT,
    "sweep": "  --config: Sweep file, e.g. configs/sweeps/mnist.py\n",
    None: "",
}


def config_name() -> str:
    """Returns the name of the experiment, for files."""
    return experiment_name(config_flags.get_config_filename(flags.FLAGS["config"]))


def define_network_flags() -> Callable[[], str]:
    """Defines `--model` and `--workdir`, which name a trained network, and returns what gives its name."""
    flags.DEFINE_string(
        "model", "characters", "Trained network: its name, or a safetensors file that export wrote", allow_override=True
    )
    flags.DEFINE_string("workdir", None, "Folder of a finished run, instead of --model", allow_override=True)

    def named() -> str:
        if flags.FLAGS.workdir and flags.FLAGS["model"].present:
            raise UserError("pass --model or --workdir, not both")
        if flags.FLAGS.workdir and not os.path.isdir(os.path.expanduser(flags.FLAGS.workdir)):
            raise UserError(f"--workdir={flags.FLAGS.workdir} is no folder")
        return flags.FLAGS.workdir or flags.FLAGS.model

    return named


def file_name(network: str) -> str:
    """Returns a name for files about a network; a sweep's folders are ROW/seedN."""
    path = Path(network).resolve()
    name = path.name.removesuffix(".safetensors")
    return f"{path.parent.name}_{name}" if name.startswith("seed") else name


@contextlib.contextmanager
def own_flags():
    """Says what is wrong with a data set in terms of a command's own flags, not of training's."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("--config.dataset.", "--")) from error


def run(main: Callable, config: str | None = "required", positional: bool = False) -> None:
    """Parses the flags and calls `main(config, *arguments)`; a UserError or a wrong flag ends with one line and code 2.

    Args:
      main: The command.
      config: What `--config` names: "required" or "optional": an experiment; "sweep": a sweep; None: there is no such
        flag. If it is not passed, `main` gets None.
      positional: Whether the command takes arguments that are no flags.
    """

    resumes = "; the same command resumes" if config in ("required", "sweep") else ""

    def parse_or_exit(argv: list[str]) -> list[str]:
        try:
            return parse(argv, config, positional)
        except UserError as error:
            _exit_with_error(str(error))

    def guarded(argv: list[str]) -> None:
        from jax.errors import JaxRuntimeError

        try:
            main(*([flags.FLAGS.config] if config else []), *argv[1:])
        except UserError as error:
            _exit_with_error(str(error))
        except OSError as error:
            _exit_with_error(f"{error}{resumes}")
        except (MemoryError, JaxRuntimeError) as error:
            if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                advice = "lower config.training.batch_size or evaluation.batch_size"
                _exit_with_error(f"out of memory ({first_line(error)}); {advice}")
            import jax

            if jax.process_count() == 1:
                raise
            _exit(f"lost another process ({first_line(error)}); the same command resumes", os.EX_TEMPFAIL, others=False)
        except Stopped as stop:
            _exit(f"{stop}; the same command resumes", os.EX_TEMPFAIL)

    keep_compiled_programs()
    # Outside of training, which handles signals by itself, there is nothing to save.
    signals.handle(functools.partial(_exit_on_signal, resumes))
    if {"--help", "-help", "--helpshort", "-h", "-?"} & set(sys.argv[1:]):
        own = flags.FLAGS.main_module_help().partition(".py:\n")[2]
        with contextlib.suppress(BrokenPipeError):  # of `| head`
            print(f"{sys.modules['__main__'].__doc__}\nflags:\n{_HELP[config]}{own}")
            print("\nall commands: python -m emnist_jax", flush=True)
        os._exit(0)
    logging.set_verbosity(logging.WARNING)
    logging.get_absl_handler().setFormatter(None)  # the message alone
    # orbax logs every step of a save and, as tensorstore does in its own threads, pages about one that fails.
    logging.get_absl_logger().disabled = True
    sys.unraisablehook = _unraisablehook
    app.run(guarded, flags_parser=parse_or_exit)


def keep_compiled_programs() -> None:
    """Lets JAX keep what it compiles in the user's cache folder, at most 1 GiB, unless its own variables say otherwise.

    To be called before JAX is imported.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    with contextlib.suppress(OSError, RuntimeError):  # no home, or one that cannot be written: compile each time
        # A home may be shared by machines, and a program for one processor may end another's process.
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        processor = "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emnist_jax"
        folder = cache / f"programs_{hashlib.sha256(processor.encode()).hexdigest()[:8]}"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            if os.environ.get("JAX_COMPILATION_CACHE_MAX_SIZE") != "-1":  # without a limit, JAX notes no times
                _remove_half_written(folder)
            os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
            os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(2**30))
            os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")


def _remove_half_written(folder: Path) -> None:
    """Removes programs whose writer was killed before it had noted the time: JAX would take no further ones."""
    for program in folder.glob("*-cache"):
        noted = program.with_name(program.name.removesuffix("-cache") + "-atime")
        with contextlib.suppress(FileNotFoundError):  # another process has removed it
            if not noted.exists() and program.stat().st_mtime < time.time() - 60:  # not one that is just being written
                program.unlink()


def parse(
    argv: list[str],
    config: str | None = "required",
    positional: bool = False,
    flag_values: flags.FlagValues = flags.FLAGS,
) -> list[str]:
    """Parses the flags, which are the program's own and `--config` with its overrides.

    Args:
      argv: The program and its arguments.
      config: What `--config` names, as in `run`.
      positional: Whether the command takes arguments that are no flags.
      flag_values: Takes the values.

    Returns:
      What is no flag: the program, and the positional arguments.

    Raises:
      UserError: A flag or the experiment file is wrong.
    """
    try:
        for argument in argv:
            if argument.encode(errors="replace").decode() != argument:
                raise UserError(f"{argument!r} is no UTF-8")  # TensorBoard takes nothing else
        if config:
            # Not earlier: it reads the flags that a --flagfile names.
            config_flags.DEFINE_config_file("config", None, "see --help", flag_values, sys_argv=argv)
        if config in ("required", "optional"):
            _check_keys(argv)
        rest = flag_values(argv)
        if len(rest) > 1 and not positional:
            advice = f": pass --config={rest[1]}" if config and ".py" in rest[1] else ""
            raise UserError(f"unexpected argument {rest[1]!r}{advice}")
        given = flag_values.config if config else None
        if given is None and config in ("required", "sweep"):
            example = "sweeps/mnist" if config == "sweep" else "quickstart"
            raise UserError(f"pass --config=FILE, e.g. --config=configs/{example}.py")
        if config == "sweep" and "rows" not in given:
            raise UserError("--config names no sweep, such as configs/sweeps/mnist.py")
        if given is not None and config != "sweep":
            # An experiment file may return anything.
            flag_values.config = base()
            flag_values.config.update(given.to_dict())
        return rest
    except OSError as error:
        # ml_collections: "Failed loading config file NAME\n  Attempted ...\n [Errno 2] ... : 'path'".
        raise UserError(f"cannot read the config file, from the folder {Path.cwd()}: {_last_line(error)}") from error
    # An experiment file may raise anything; ml_collections puts a traceback before its message.
    except Exception as error:
        message = _last_line(error)
        if "get_config() takes 0 positional arguments" in message:
            message = "this config has no variants: leave out the colon and what follows it"
        raise UserError(message) from error


def read_sweep(sweep: str) -> ConfigDict:
    """Returns what the file of a sweep, with its variant, says: see `config.sweep`."""
    values = flags.FlagValues()
    parse(["sweep", f"--config={sweep}"], config="sweep", flag_values=values)
    return values.config


def _check_keys(argv: list[str]) -> None:
    """Raises UserError for the first `--config.key` that the base config does not have, or has as a section."""
    for argument in argv:
        if (match := re.match(r"--?([^=]*\.[^=]*)", argument)) and match[1] in flatten(base().to_dict()):
            raise UserError(f"unknown flag --{match[1]}; did you mean --config.{match[1]}?")
        if match := re.match(r"--?(?:no)?config\.([^=]*)", argument):
            key, node = match[1], base()
            for part in key.split("."):
                if not hasattr(node, "keys") or part not in node:
                    raise unknown(f"config key in --config.{key}:", part, node.keys() if hasattr(node, "keys") else ())
                node = node[part]
            if hasattr(node, "keys"):
                raise UserError(f"--config.{key} is a section; set its keys, e.g. --config.{key}.{min(node)}")


def _last_line(error: Exception) -> str:
    text = error.args[0] if isinstance(error, KeyError) and error.args else error  # its own text is one line in quotes
    lines = str(text).strip().splitlines() or [repr(error)]
    return lines[-1].strip().removeprefix("emnist_jax.errors.UserError: ")


def _unraisablehook(unraisable) -> None:
    if threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(unraisable)


def _exit_on_signal(resumes: str, number: int, frame) -> None:
    # An exception instead would be lost if the signal comes during a callback from C++, such as jax's to the
    # garbage collector.
    with contextlib.suppress(OSError, RuntimeError):  # the signal came while it was being flushed
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(2, f"stopped by {signal.Signals(number).name}{resumes}\n".encode())
    os._exit(os.EX_TEMPFAIL)


def _exit_with_error(message: str) -> NoReturn:
    _exit(f"error: {message}", 2)


def _exit(message: str, code: int, others: bool = True) -> NoReturn:
    """Ends with one line; `others`: the other processes, if any, are there and end as well."""
    signals.handle(signal.SIG_IGN)
    for file, text in ((sys.stdout, ""), (sys.stderr, f"{message}\n")):
        with contextlib.suppress(OSError):
            print(text, end="", file=file, flush=True)
    if others and "jax" in sys.modules:
        # Shut down together, so that no process reports another as lost. If the others do not, JAX would abort this
        # process after a longer time.
        leaving = threading.Thread(target=_leave_other_processes, daemon=True)
        leaving.start()
        leaving.join(10)
    # A normal end would wait for the other processes, which may wait for this one, and after a failed save for
    # orbax' threads, which wait for each other for minutes.
    os._exit(code)


def _leave_other_processes() -> None:
    import jax

    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.distributed.shutdown()
