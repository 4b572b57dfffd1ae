"""Flags shared by the programs, and their ends: one line, and exit code 2 for an error or 75 for a stop."""

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from emnist_jax.config import base
from emnist_jax.errors import Stopped, UserError, unknown
from emnist_jax.training import signals


def config_name() -> str:
    """Returns the experiment's name: "configs/densenet.py:layer_1" is "densenet_layer_1"."""
    path, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return "_".join(filter(None, (Path(path).stem, argument)))


def run(main: Callable, config_required: bool = True, positional: bool = False) -> None:
    """Parses the flags and calls `main(config, *arguments)`; a UserError or a wrong flag ends with one line and code 2.

    Args:
      main: The program. Without `--config` it gets None where the config is not required.
      config_required: Whether `--config` must be there.
      positional: Whether it takes arguments that are no flags.
    """

    def parse_or_end(argv: list[str]) -> list[str]:
        try:
            return parse(argv, config_required, positional=positional)
        except UserError as error:
            _stop(str(error))

    def guarded(argv: list[str]) -> None:
        try:
            main(flags.FLAGS.config, *argv[1:])
        except UserError as error:
            _stop(str(error))
        except OSError as error:
            _stop(f"{error}; the same command resumes")
        except (MemoryError, jax.errors.JaxRuntimeError) as error:
            if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
                _stop(f"out of memory ({first_line(error)}); lower config.training.batch_size or evaluation.batch_size")
            if jax.process_count() == 1:
                raise
            _end(f"lost another process ({first_line(error)}); the same command resumes", os.EX_TEMPFAIL)
        except Stopped as stop:
            _end(f"{stop}; the same command resumes", os.EX_TEMPFAIL, together=True)

    # Outside of training, which handles them by itself, there is nothing to save.
    signals.handle(_end_at_once)
    logging.set_verbosity(logging.WARNING)
    # orbax tells of every step of a save and, as tensorstore does in its own threads, on pages of one that fails.
    logging.get_absl_logger().disabled = True
    sys.unraisablehook = _unraisablehook
    app.run(guarded, flags_parser=parse_or_end)


def parse(
    argv: list[str],
    config_required: bool = True,
    flag_values: flags.FlagValues = flags.FLAGS,
    positional: bool = False,
) -> list[str]:
    """Parses the flags, which are the program's own and `--config` with its overrides.

    Args:
      argv: The program and its arguments.
      config_required: Whether `--config` must be there.
      flag_values: Takes the values.
      positional: Whether arguments that are no flags may follow or precede them.

    Returns:
      What is no flag: the program, and the positional arguments.

    Raises:
      UserError: A flag or the experiment file is wrong.
    """
    try:
        for argument in argv:
            if argument.encode(errors="replace").decode() != argument:
                raise UserError(f"{argument!r} is no UTF-8")  # TensorBoard takes nothing else
        # Not earlier: it reads the flags that a --flagfile names.
        config_flags.DEFINE_config_file(
            "config", None, "Experiment file, e.g. configs/densenet.py", flag_values, sys_argv=argv
        )
        _check_keys(argv)
        rest = flag_values(argv)
        if flag_values.config is None and config_required:
            raise UserError("pass --config=FILE, e.g. --config=configs/quickstart.py")
        if len(rest) > 1 and not positional:
            raise UserError(f"unexpected argument {rest[1]!r}")
        if flag_values.config is not None:
            # An experiment file may return anything.
            config = base()
            config.update(flag_values.config.to_dict())
            flag_values.config = config
        return rest
    except OSError as error:
        # ml_collections: "Failed loading config file NAME\n  Attempted ...\n [Errno 2] ... : 'path'".
        raise UserError(f"cannot read the config file: {_last_line(error)}") from error
    # An experiment file may raise anything; ml_collections puts a traceback before its message.
    except Exception as error:
        raise UserError(_last_line(error)) from error


def _check_keys(argv: list[str]) -> None:
    """Raises UserError for the first `--config.key` that the base config does not have, or has as a section."""
    for argument in argv:
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


def first_line(error: Exception) -> str:
    """Returns what an exception says, in one line."""
    return str(error).strip().partition("\n")[0]


def _stop(message: str) -> NoReturn:
    _end(f"error: {message}", 2, together=True)


def _unraisablehook(unraisable) -> None:
    if threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(unraisable)


def _end_at_once(number: int, frame) -> None:
    # An exception instead would be lost where the signal comes during a callback from C++, such as jax's to the
    # garbage collector.
    with contextlib.suppress(OSError, RuntimeError):  # the signal came while it was being flushed
        sys.stdout.flush()
    with contextlib.suppress(OSError):
        os.write(2, f"stopped by {signal.Signals(number).name}; the same command resumes\n".encode())
    os._exit(os.EX_TEMPFAIL)


def _end(message: str, code: int, together: bool = False) -> NoReturn:
    signals.handle(signal.SIG_IGN)
    for file, text in ((sys.stdout, ""), (sys.stderr, f"{message}\n")):
        with contextlib.suppress(OSError):
            print(text, end="", file=file, flush=True)
    if together:
        # Where all end, as most often, none should take another for lost. Where the others do not, JAX would abort this
        # process after its own, longer, time.
        shutdown = threading.Thread(target=_shut_down, daemon=True)
        shutdown.start()
        shutdown.join(10)
    # A normal end would wait for the other processes, which may wait for this one, and after a failed save for
    # orbax' threads, which wait for each other for minutes.
    os._exit(code)


def _shut_down() -> None:
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        jax.distributed.shutdown()
