"""The page to draw on, as a person uses it: headless Chromium draws, clears, drops, chooses and clicks."""

import json
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from processes import Processes, wait_for

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

CHROMIUM, CHROMEDRIVER = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and CHROMEDRIVER), reason="chromium or chromedriver is not installed"),
]
SWITCHES = (
    *("headless=new", "no-sandbox", "disable-gpu", "no-first-run", "window-size=1100,900"),
    *("disable-background-networking", "disable-component-update", "disable-sync"),
)


def arc(centre, radii, first, last):
    """Points on an ellipse between two angles in degrees, clockwise from the right."""
    angles = np.radians(np.linspace(first, last, 16))
    return [(centre[0] + radii[0] * np.cos(a), centre[1] + radii[1] * np.sin(a)) for a in angles]


# Points as fractions of the paper, from left and top.
DIGITS = {
    "0": [arc((0.5, 0.5), (0.2, 0.3), -90, 270)],
    "1": [[(0.42, 0.3), (0.53, 0.2), (0.52, 0.8)]],
    "3": [arc((0.47, 0.35), (0.17, 0.15), -150, 90) + arc((0.47, 0.67), (0.2, 0.17), -90, 150)],
    "7": [[(0.3, 0.22), (0.68, 0.22), (0.6, 0.42), (0.45, 0.8)]],
}


@pytest.fixture(scope="module")
def url(folder):
    """The address of the demo, which runs as a person starts it."""
    with Processes(folder) as processes:
        command = (sys.executable, "-m", "emnist_jax.demo", "--model=mnist_squeeze_10", "--port=0", "--nobrowser")
        demo = processes.start(*command, devices=1)
        wait_for("is ready", folder / "output_0", demo)
        yield re.search(r"http://127\.0\.0\.1:\d+/", demo.output)[0]


@pytest.fixture(scope="module")
def browser(folder):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for switch in (*SWITCHES, f"user-data-dir={folder / 'profile'}"):
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(CHROMEDRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, url):
    browser.get(url)
    yield browser
    assert not [entry for entry in browser.get_log("browser") if "/read" not in entry["message"]]


def text_of(page, name: str) -> str:
    return page.find_element(By.ID, name).text


def wait_until(page, condition) -> None:
    WebDriverWait(page, 20, 0.05).until(lambda _: condition())


def draw(page, strokes) -> None:
    paper = page.find_element(By.ID, "canvas")
    actions = ActionChains(page, duration=10)
    for stroke in strokes:
        places = [(round((x - 0.5) * paper.size["width"]), round((y - 0.5) * paper.size["height"])) for x, y in stroke]
        actions.move_to_element_with_offset(paper, *places[0]).click_and_hold()
        for place in places[1:]:
            actions.move_to_element_with_offset(paper, *place)
        actions.release()
    actions.perform()


def drop(page, path) -> None:
    for kind in ("dragEnter", "dragOver", "drop"):
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        page.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 300, "data": data})


@pytest.fixture
def line(folder):
    """A picture of three digits in a line."""
    picture = Image.new("L", (600, 200), 240)
    for i, strokes in enumerate(DIGITS[name] for name in "370"):
        for stroke in strokes:
            ImageDraw.Draw(picture).line([(200 * (i + x), 200 * y) for x, y in stroke], 20, 14, "curve")
    picture.save(folder / "line.png")
    return folder / "line.png"


@pytest.mark.parametrize("digit", DIGITS)
def test_a_drawn_digit_is_read(page, digit):
    draw(page, DIGITS[digit])
    wait_until(page, lambda: text_of(page, "answer") == digit)
