"""Reads pictures: `python -m emnist_jax.predict [--model=mnist_squeeze_10 | --workdir=runs/densenet] my.png ...`.

A picture may be a photo, a scan or a drawing of one character, a word or several lines, dark on light or light on dark.
It prints the five most probable classes of each character. Pictures that cannot be read are named; the others are
answered, and the exit code is 2.
"""

import json
import os
import sys
from pathlib import Path

from absl import flags

from emnist_jax import command_line
from emnist_jax.errors import UserError

_NETWORK = command_line.define_network_flags()
_SINGLE = flags.DEFINE_bool("single", False, "Take each picture as one character, and do not cut it")
_JSON = flags.DEFINE_bool("json", False, "Print JSON instead of tables", allow_override=True)
# Of a picture's height: matplotlib draws no more than twice as many.
_MOST_PIXELS = 2**15
_SHOW = flags.DEFINE_string("show", None, "Picture to write: what was cut out, and what the network saw")


def main(*paths: str) -> None:
    if not paths:
        raise UserError("name pictures, e.g. `python -m emnist_jax.predict my.png`")
    show = Path(os.path.expanduser(_SHOW.value)) if _SHOW.value else None
    if show:
        _check_writable(show)
        if show.resolve() in (Path(path).resolve() for path in paths):
            raise UserError(f"--show={show} would overwrite a picture that is read")
    from emnist_jax.inference import classifier
    from emnist_jax.reporting import figures, readings

    network = classifier.load(_NETWORK())
    paths = list(dict.fromkeys(paths))
    answers, failures = {}, {}
    for path in paths:
        try:
            answers[path] = network.read(path, _SINGLE.value)
        except UserError as error:
            failures[path] = str(error)
            if len(paths) > 1:
                print(f"error: {error}", file=sys.stderr)
            continue
        if not _JSON.value:
            readings.print_reading(path, answers[path])
    if _JSON.value:
        print(json.dumps([readings.as_dict(path, answers.get(path), failures.get(path)) for path in paths]))
    if show and answers:
        figure = readings.draw(answers)
        with figures.any_letters():
            figure.savefig(show, dpi=min(150, _MOST_PIXELS / figure.get_figheight()))
    if failures:
        several = f"{len(failures)} of {len(paths)} pictures could not be read"
        raise UserError(several if len(paths) > 1 else failures[paths[0]])


def _check_writable(picture: Path) -> None:
    """Raises UserError for a picture that could not be written, before anything takes long."""
    from matplotlib.figure import Figure

    known = Figure().canvas.get_supported_filetypes()
    if picture.suffix.removeprefix(".").lower() not in known:
        raise UserError(f"--show={picture} must end in one of .{', .'.join(sorted(known))}")
    if not picture.absolute().parent.is_dir():
        raise UserError(f"--show={picture}: there is no folder {picture.parent}")


if __name__ == "__main__":
    command_line.run(main, config=None, positional=True)
