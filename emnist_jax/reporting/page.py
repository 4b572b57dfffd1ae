"""HTML pages that hold all that they show: no scripts, no files beside them."""

import base64
import io
from pathlib import Path

import jinja2
import markupsafe
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from emnist_jax.reporting import figures

# Becomes the page's text colour, which is dark on light or light on dark.
_INK = "#010203"
STYLE = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK),
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    "legend.framealpha": 0,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # the browser's fonts, in which one can search
    "svg.hashsalt": "emnist_jax",  # the same page in every run
}


def percent(fraction: float | None, digits: int = 2) -> str:
    """Formats a fraction as percent; None is a dash."""
    return "–" if fraction is None else f"{100 * fraction:.{digits}f} %"


def svg(figure: Figure) -> markupsafe.Markup:
    """Returns a figure that was drawn within `matplotlib.rc_context(STYLE)`, for a page."""
    with matplotlib.rc_context(STYLE), figures.any_letters(), io.StringIO() as text:
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
        _, start, rest = text.getvalue().partition("<svg ")
    return markupsafe.Markup((start + rest).replace(_INK, "currentColor"))


def picture(image: np.ndarray) -> str:
    """Returns the address of an image uint8 `[H, W]` that is its content."""
    with io.BytesIO() as file:
        Image.fromarray(image).save(file, "PNG", optimize=True)
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def write(path: Path, template: str, **values) -> None:
    """Fills a template of `pages/` with values, and writes it."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "pages"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "picture": picture}
    path.write_text(environment.get_template(template).render(values), encoding="utf-8")
