"""What answers the page to draw on, `page/`: its files, and `POST /read`, a picture in and the answers as JSON out.

Only the page itself is answered. Another page in the same browser cannot use it.
"""

import base64
import html
import io
import json
from collections.abc import Callable, Collection
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from werkzeug.exceptions import Forbidden, HTTPException, RequestEntityTooLarge, UnprocessableEntity
from werkzeug.routing import Map, Rule
from werkzeug.utils import send_from_directory
from werkzeug.wrappers import Request, Response

from emnist_jax.errors import UserError
from emnist_jax.handwriting import pictures
from emnist_jax.inference.classifier import Classifier
from emnist_jax.reporting.terminal import LEAKED, measured

PAGE_FOLDER = Path(__file__).parent / "page"
MOST_BYTES = 10_000_000
_SALIENCY_COLOR = (255, 122, 0)
_URLS = Map(
    [
        Rule("/", endpoint="index", methods=["GET"]),
        Rule("/read", endpoint="read", methods=["POST"]),
        Rule('/<any("icon.svg", "script.js", "style.css"):name>', endpoint="file", methods=["GET"]),
    ]
)
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def answer(classifier: Classifier, picture: pictures.Picture, single: bool) -> dict:
    """Reads a picture, for the page.

    Args:
      classifier: The network.
      picture: As in `Classifier.read`.
      single: Whether all ink is one character.

    Returns:
      "text"; "width" and "height" of the picture; "picture", its brightness as it was read, a PNG as a data URL; and
      "characters". Each of these has its "box" (left, top, right, bottom, as fractions of the picture), "top" (five
      names with their probabilities), and two PNGs of 28 x 28 pixels: "image", which the network saw, and "saliency",
      whose opacity is `Classifier.saliency` of the most probable class.

    Raises:
      UserError: The picture cannot be read, or holds no ink.
    """
    reading = classifier.read(picture, single)
    height, width = reading.brightness.shape
    predictions = reading.predictions
    found = []
    for character, label, top in zip(reading.characters, predictions.labels, predictions.top(), strict=True):
        upper, left, lower, right = character.box
        overlay = np.full((*character.image.shape, 4), (*_SALIENCY_COLOR, 0), np.uint8)
        overlay[..., 3] = np.round(255 * classifier.saliency(character.image, label))
        found.append(
            {
                "box": [left / width, upper / height, right / width, lower / height],
                "top": top,
                "image": _data_url(character.image),
                "saliency": _data_url(overlay),
            }
        )
    picture = _data_url(np.round(255 * reading.brightness).astype(np.uint8))
    return {"text": reading.text, "width": width, "height": height, "picture": picture, "characters": found}


def _data_url(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def warm_up(classifier: Classifier) -> None:
    """Compiles what `answer` runs, so that the first answer is as fast as the others."""
    two_bars = np.ones((64, 64), np.float32)
    two_bars[16:48, 16:20] = two_bars[16:48, 44:48] = 0
    for single in (True, False):
        answer(classifier, two_bars, single)


def about(classifier: Classifier) -> str:
    """Returns what the page says of its network: name, data and accuracy, and what is wrong with that."""
    result = classifier.result
    split, figures = measured(result)
    text = (
        f"{result['model']}, {result['trainable_parameters']:,} trainable parameters, trained on {result['dataset']}: "
        f"{100 * figures['top1']:.2f} % of {figures['examples']:,} {split} images are classified correctly."
    )
    if result["synthetic"]:
        text += " The images are synthetic, so this is not a result."
    if leaked := LEAKED[result.get("leaked", False)]:
        text += f" Leaked: {leaked}."
    return text


def application(classifier: Classifier, hosts: Collection[str] | None) -> Callable:
    """Returns the WSGI application.

    Args:
      classifier: The network that answers.
      hosts: The names and addresses that the page may be asked for by, as protection against DNS rebinding, with which
        another page gives its own name this computer's address; None: any.
    """
    index = (PAGE_FOLDER / "index.html").read_text()
    index = index.format(about=html.escape(about(classifier)), most_bytes=MOST_BYTES)

    def respond(request: Request) -> Response:
        hostname = urlsplit(f"//{request.host}").hostname
        if hosts is not None and hostname not in hosts:
            raise Forbidden(f"this page is not at {hostname}")
        origin = request.headers.get("Origin")
        if origin is not None and origin not in (f"http://{request.host}", f"https://{request.host}"):
            raise Forbidden("another page cannot use this one")
        endpoint, arguments = _URLS.bind_to_environ(request.environ).match()
        if endpoint == "index":
            return Response(index, mimetype="text/html")
        if endpoint == "file":
            return send_from_directory(PAGE_FOLDER, arguments["name"], request.environ)
        if (request.content_length or 0) > MOST_BYTES:
            raise RequestEntityTooLarge(f"a picture may have {MOST_BYTES // 1_000_000} MB at most")
        try:
            content = answer(classifier, request.get_data(), "single" in request.args)
        except UserError as error:
            raise UnprocessableEntity(str(error).removeprefix("the picture: ")) from error
        return Response(json.dumps(content), mimetype="application/json")

    @Request.application
    def guarded(request: Request) -> Response:
        try:
            response = respond(request)
        except HTTPException as error:
            response = error.get_response()
            response.data, response.mimetype = json.dumps({"error": error.description}), "application/json"
        response.headers.update(_HEADERS)
        return response

    return guarded
