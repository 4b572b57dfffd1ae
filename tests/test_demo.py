"""The server of the page to draw on: what it answers, to whom, and the ends of the command."""

import base64
import io
import re
import socket
import sys
from unittest import mock

import numpy as np
import pytest
import waitress
from absl import flags
from absl.testing.flagsaver import flagsaver
from PIL import Image, ImageDraw, ImageOps
from werkzeug.test import Client

from emnist_jax import demo, errors
from emnist_jax.inference import classifier
from emnist_jax.serving import server
from processes import run

# Points as fractions of a square.
STROKES = {
    "1": [(0.5, 0.2), (0.5, 0.8)],
    "4": [(0.4, 0.2), (0.33, 0.55), (0.68, 0.55), (0.58, 0.55), (0.62, 0.25), (0.56, 0.8)],
    "7": [(0.3, 0.22), (0.68, 0.22), (0.45, 0.8)],
}


def picture_of(text: str, side: int = 100) -> Image.Image:
    """Draws digits, spaces and lines, each character in a square."""
    lines = text.split("\n")
    picture = Image.new("L", (side * max(map(len, lines)), side * len(lines)), 235)
    for row, line in enumerate(lines):
        for column, digit in enumerate(line):
            if digit != " ":
                points = [((column + x) * side, (row + y) * side) for x, y in STROKES[digit]]
                ImageDraw.Draw(picture).line(points, 40, side // 12, "curve")
    return picture


def content_of(picture: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def pixels_of(url: str) -> np.ndarray:
    assert url.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


@pytest.fixture(scope="module")
def network():
    network = classifier.load("mnist_squeeze_10")
    server.warm_up(network)
    return network


@pytest.fixture(scope="module")
def client(network):
    return Client(server.application(network, {"127.0.0.1", "::1", "localhost"}))


def read(client, content: bytes, url: str = "/read", **headers):
    return client.post(url, data=content, headers=headers)


def test_a_line_is_answered_with_text_places_and_probabilities(client):
    content = content_of(picture_of("174 7\n1"))
    found = read(client, content).json
    assert (found["text"], found["width"], found["height"]) == ("174 7\n1", 500, 200)
    middles = [((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in boxes(found)]
    assert np.allclose(middles, [(0.1, 0.25), (0.3, 0.25), (0.5, 0.25), (0.9, 0.25), (0.1, 0.75)], atol=0.03)
    for character, digit in zip(found["characters"], "17471", strict=True):
        names, probabilities = zip(*character["top"], strict=True)
        assert names[0] == digit and len(set(names)) == 5
        assert sum(probabilities) <= 1 + 1e-6 and list(probabilities) == sorted(probabilities, reverse=True)


def boxes(found: dict) -> list:
    return [character["box"] for character in found["characters"]]


def test_places_are_fractions_of_the_whole_picture_if_it_is_reduced(client):
    small, large = (read(client, content_of(picture_of("17", side))).json for side in (200, 2000))
    assert (large["width"], large["height"]) == (1600, 800)
    assert np.allclose(boxes(small), boxes(large), atol=0.02)


def test_the_picture_is_shown_as_it_was_read(client):
    ink = ImageOps.invert(picture_of("17"))
    content = content_of(Image.merge("LA", (Image.new("L", ink.size, 255), ink)), "TIFF")
    np.testing.assert_array_equal(pixels_of(read(client, content).json["picture"]), np.asarray(ink))


def test_all_ink_of_a_drawing_is_one_character(client):
    content = content_of(picture_of("11"))
    assert len(read(client, content).json["characters"]) == 2
    assert len(read(client, content, "/read?single").json["characters"]) == 1


def test_the_images_are_those_of_the_network(client, network):
    (character,) = read(client, content_of(picture_of("4")), "/read?single").json["characters"]
    seen, saliency = pixels_of(character["image"]), pixels_of(character["saliency"])
    assert network.classify(seen[None]).top()[0][0] == (character["top"][0][0], pytest.approx(character["top"][0][1]))
    assert (saliency[..., 3] == np.round(255 * network.saliency(seen, 4))).all() and saliency[..., 3].max() == 255
    assert (saliency[..., :3] == saliency[0, 0, :3]).all()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats_of_pictures(client, kind):
    assert read(client, content_of(picture_of("7"), kind)).json["text"] == "7"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no picture in a known format, such as PNG or JPEG"),
        (b"no picture", "no picture in a known format, such as PNG or JPEG"),
        (content_of(picture_of("7"))[:200], "cannot be read: OSError: image file is truncated"),
        (content_of(Image.new("L", (90, 90))), "no character was found: nothing stands out from the background"),
        # Pillow would start Ghostscript.
        (content_of(picture_of("7"), "EPS"), "no picture in a known format, such as PNG or JPEG"),
    ],
)
def test_what_cannot_be_read_is_said(client, content, message):
    response = read(client, content)
    assert response.status_code == 422 and response.json["error"].startswith(message)


def test_a_picture_has_ten_megabytes_at_most(client):
    content = content_of(picture_of("7"))
    full = content + bytes(server.MOST_BYTES - len(content))
    assert read(client, full).json["text"] == "7"
    response = read(client, full + b"\0")
    assert (response.status_code, response.json) == (413, {"error": "a picture may have 10 MB at most"})


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        *[("GET", "/read", 405), ("PUT", "/read", 405), ("POST", "/", 405), ("DELETE", "/script.js", 405)],
        *[("GET", "/index.html", 404), ("GET", "/../server.py", 404), ("GET", "/%2e%2e/server.py", 404)],
        *[("GET", "/", 200), ("HEAD", "/", 200)],
    ],
)
def test_only_what_the_page_needs_is_answered(client, method, path, status):
    response = client.open(path, method=method)
    assert response.status_code == status
    # No script from elsewhere, in no frame, and no part of another page.
    assert response.headers["Content-Security-Policy"].startswith("default-src 'self';")
    assert "frame-ancestors 'none'" in response.headers["Content-Security-Policy"]
    assert response.headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_the_files_that_the_page_names_are_there_and_name_no_other_host(client):
    names = re.findall(r'(?:href|src)="([^"]+)"', client.get("/").text)
    kinds = {name: client.get(f"/{name}", buffered=True).mimetype for name in names}
    assert set(kinds.values()) == {"image/svg+xml", "text/css", "text/javascript"}
    assert {path.name for path in server.PAGE_FOLDER.iterdir()} == {*names, "index.html"}
    files = "".join(path.read_text() for path in server.PAGE_FOLDER.iterdir())
    assert set(re.findall(r"\w+://[\w.]+", files)) == {"http://www.w3.org"}  # SVG's namespace


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *[("127.0.0.1:8000", 200), ("localhost:8000", 200), ("LOCALHOST", 200), ("[::1]:8000", 200)],
        *[("evil.example:8000", 403), ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403)],
        *[("", 403), ("evil.example#@localhost", 403), ("[", 403), ("localhost:x", 403)],
    ],
)
def test_the_page_is_asked_for_by_this_computers_name(client, host, status):
    """DNS rebinding: evil.example has this computer's address, so a browser takes both for the same origin."""
    assert client.get("/", headers={"Host": host}).status_code == status
    content = content_of(picture_of("7"))
    assert read(client, content, Host=host, Origin=f"http://{host}").status_code == status


def test_the_command_guards_a_page_for_this_computer_alone(network, monkeypatch):
    served = []

    def create_server(application, sockets, **_):
        sockets[0].close()
        served.append(application)
        return mock.Mock()

    monkeypatch.setattr(waitress, "create_server", create_server)
    monkeypatch.setattr(classifier, "load", lambda source: network)
    flags.FLAGS.mark_as_parsed()
    for host, status in (("127.0.0.1", 403), ("0.0.0.0", 200)):
        with flagsaver(host=host, port=0, browser=False):
            demo.main()
        client = Client(served.pop())
        assert client.get("/", headers={"Host": "localhost"}).status_code == 200
        assert client.get("/", headers={"Host": "evil.example"}).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        *[("http://localhost:8000", 200), ("http://localhost:9000", 403), ("http://127.0.0.1:8000", 403)],
        *[("http://evil.example", 403), ("null", 403), ("http://[", 403)],
    ],
)
def test_another_page_cannot_use_this_one(client, origin, status):
    response = read(client, content_of(picture_of("7")), Host="localhost:8000", Origin=origin)
    assert response.status_code == status


def test_any_name_will_do_if_other_computers_may_use_the_page(network):
    client = Client(server.application(network, None))
    assert client.get("/", headers={"Host": "desk.example:8000"}).status_code == 200
    content = content_of(picture_of("7"))
    assert read(client, content, Host="desk.example", Origin="http://desk.example").status_code == 200
    assert read(client, content, Host="desk.example", Origin="http://evil.example").status_code == 403


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {},
            "^mnist_squeeze_10, 6,022 trainable parameters, trained on mnist: 99.34 % of 10,000 .* correctly.$",
        ),
        ({"synthetic": True}, "correctly. The images are synthetic, so this is not a result.$"),
        ({"leaked": True}, "correctly. Leaked: images that it is tested on, .* were trained on.$"),
        ({"leaked": None}, "correctly. Leaked: not known: nobody compared"),
        ({"dataset": "<b>&"}, "trained on &lt;b&gt;&amp;: "),
        (
            {"test": None, "validation": {"top1": 0.987, "examples": 1234}},
            "98.70 % of 1,234 validation images are classified correctly.$",
        ),
    ],
)
def test_the_page_says_what_its_network_is_and_how_good(network, changes, text):
    changed = classifier.Classifier(
        network.model, network.variables, network.config, network.class_names, network.result | changes
    )
    page = Client(server.application(changed, None)).get("/").text
    assert re.search(text, re.search(r"<footer>(.*)</footer>", page)[1])


def test_a_port_in_use_ends_with_one_line_and_code_2():
    with demo.listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        done = run("demo", f"--port={port}")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: cannot listen at 127.0.0.1, port {port}: Address already in use; "
        "pass another --port, or --port=0 for any that is free\n"
    )


@pytest.mark.parametrize("host", ["192.0.2.1", "name with spaces", "2001:db8::1"])
def test_a_host_that_is_not_this_computer_ends_with_one_line(host):
    with pytest.raises(errors.UserError, match=f"^cannot listen at {host}, port 0: .*; pass an address of this comp"):
        demo.listen(host, 0)


@pytest.mark.parametrize(("host", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_both_kinds_of_address_can_be_listened_at(host, family):
    with demo.listen(host, 0) as listener:
        assert (listener.family, listener.getsockname()[0]) == (family, host)


def test_an_empty_host_is_refused():
    done = run("demo", "--host=")
    assert (done.returncode, done.stderr.startswith("error: --host is empty: pass 127.0.0.1")) == (2, True)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "waitress", None)
    with pytest.raises(errors.UserError, match=r"^waitress is missing.*; pip install -e '\.\[demo\]'$"):
        demo.main()
