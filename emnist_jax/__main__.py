"""Lists the commands: `python -m emnist_jax`."""

import ast
import re
from pathlib import Path

from emnist_jax.command_line import COMMANDS

for name in COMMANDS:
    docstring = ast.get_docstring(ast.parse(Path(__file__).with_name(f"{name}.py").read_text()))
    print(f"python -m emnist_jax.{name:<10} {re.match('[^:`.]+', docstring)[0]}")
print("\nEach says more with --help.")
