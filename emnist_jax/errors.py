"""How a program ends early: something that the user can mend, or a stop that loses nothing. One line each."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input, configuration or environment; the message says what to do, in one line. Exit code 2."""

    def __init__(self, message: str):
        # A file's name may hold a line break.
        super().__init__(" ".join(message.splitlines()))


class NotFiniteError(UserError):
    """A loss, gradient or update that is not finite: the same command would meet it again."""


class Stopped(Exception):
    """Stopped before the end, with all saved: the same command resumes. Exit code 75, sysexits' EX_TEMPFAIL."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UserError:
    """Returns the error for `name`, which is none of `known`, naming the nearest ones.

    Args:
      kind: What the name stands for, e.g. "data set".
      name: What the user wrote.
      known: The right names.
    """
    known = sorted(known)
    # Two letters or digits resemble too much.
    nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5) if len(str(name)) > 2 else []
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(known)}"
    return UserError(f"unknown {kind} {name!r}; {hint}")


def first_line(error: Exception) -> str:
    """Returns what an exception is and says, in one line; of a UserError, its message alone."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    return f"{kind}{error}".strip().partition("\n")[0]
