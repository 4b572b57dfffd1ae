"""Lists the commands: `python -m emnist_jax`."""

import ast
import re
from pathlib import Path

from emnist_jax.command_line import COMMANDS


def _purpose(name: str) -> str:
    """Returns the beginning of a command's docstring, without importing what the command needs."""
    docstring = ast.get_docstring(ast.parse(Path(__file__).with_name(f"{name}.py").read_text()))
    return re.match("[^:`.]+", docstring)[0]


lines = [f"python -m emnist_jax.{name:<10} {_purpose(name)}" for name in COMMANDS]
print("\n".join([*lines, "", "Each says more with --help."]))
