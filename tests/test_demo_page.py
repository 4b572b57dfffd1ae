"""The page to draw on, as a person uses it: headless Chromium draws, clears, drops, chooses and clicks."""

import contextlib
import json
import re
import shutil
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from processes import Processes, wait_for

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
from selenium.common.exceptions import TimeoutException  # noqa: E402
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
    """The page, freshly opened; at the end it has logged no error but the answers that say what is wrong."""
    browser.get(url)
    yield browser
    assert not [entry["message"] for entry in browser.get_log("browser") if "422 (UNPROC" not in entry["message"]]


@pytest.fixture(scope="module")
def line(folder):
    """A picture of three digits in a line."""
    picture = Image.new("L", (600, 200), 240)
    for i, name in enumerate("370"):
        for stroke in DIGITS[name]:
            ImageDraw.Draw(picture).line([(200 * (i + x), 200 * y) for x, y in stroke], 16, 14, "curve")
    picture.save(folder / "line.png")
    return folder / "line.png"


def text_of(page, name: str) -> str:
    return page.find_element(By.ID, name).text


def wait_until(page, condition) -> None:
    WebDriverWait(page, 60, 0.05).until(lambda _: condition())


def wait_for_text(page, name: str, text: str) -> None:
    with contextlib.suppress(TimeoutException):
        wait_until(page, lambda: text_of(page, name) == text)
    assert text_of(page, name) == text


def places(page, stroke):
    """A stroke's points in pixels, from the middle of the paper."""
    side = page.find_element(By.ID, "canvas").size["width"]
    return [(round((x - 0.5) * side), round((y - 0.5) * side)) for x, y in stroke]


def draw(page, strokes, release=True) -> None:
    paper = page.find_element(By.ID, "canvas")
    actions = ActionChains(page, duration=10)
    for stroke in strokes:
        first, *others = places(page, stroke)
        actions.move_to_element_with_offset(paper, *first).click_and_hold()
        for place in others:
            actions.move_to_element_with_offset(paper, *place)
        if release:
            actions.release()
    actions.perform()


def drop(page, path) -> None:
    for kind in ("dragEnter", "dragOver", "drop"):
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        page.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 300, "data": data})


def choose(page, path) -> None:
    page.find_element(By.ID, "file").send_keys(str(path))


def paste(page, path) -> None:
    content = list(path.read_bytes())
    page.execute_script(
        """const clipboardData = new DataTransfer();
        clipboardData.items.add(new File([new Uint8Array(arguments[0])], "pasted.png"));
        document.body.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));""",
        content,
    )


def boxes(page) -> list:
    return page.find_elements(By.CSS_SELECTOR, "#picture button")


def first_in_top(page) -> str:
    return text_of(page, "top").partition("\n")[0]


def is_blank(page) -> bool:
    """Whether paper and answer are empty."""
    is_white = page.execute_script(
        """const canvas = document.getElementById("canvas");
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return data.every((value) => value === 255);"""
    )
    return is_white and not (text_of(page, "answer") + text_of(page, "top") + text_of(page, "error"))


def hold_answers(page) -> None:
    """Keeps back all answers of the server until `release_answers`."""
    page.execute_script(
        """window.sent = 0;
        const free = new Promise((resolve) => { window.release = resolve; });
        const real = window.fetch;
        window.fetch = async (...request) => {
          window.sent++;
          const answer = await real(...request);
          await free;
          return answer;
        };"""
    )


def release_answers(page) -> None:
    page.execute_script("window.release()")


@pytest.mark.parametrize("digit", DIGITS)
def test_a_drawn_digit_is_read(page, digit):
    draw(page, DIGITS[digit])
    wait_for_text(page, "answer", digit)
    names, percents = text_of(page, "top").split("\n")[::2], text_of(page, "top").split("\n")[1::2]
    assert names[0] == digit and len(set(names)) == 5
    shares = [float(percent.removesuffix(" %")) for percent in percents]
    assert shares == sorted(shares, reverse=True) and sum(shares) <= 100.3


def test_a_finger_on_a_phone_draws(page):
    metrics = {"width": 320, "height": 640, "deviceScaleFactor": 3, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= 320
        paper = page.find_element(By.ID, "canvas").rect
        middle = (paper["x"] + paper["width"] / 2, paper["y"] + paper["height"] / 2)
        for i, (x, y) in enumerate(places(page, DIGITS["3"][0])):
            finger = {"x": middle[0] + x, "y": middle[1] + y}
            touch = {"type": "touchMove" if i else "touchStart", "touchPoints": [finger]}
            page.execute_cdp_cmd("Input.dispatchTouchEvent", touch)
        page.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        wait_for_text(page, "answer", "3")
        assert page.execute_script("return document.getElementById('canvas').width") == round(3 * paper["width"])
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_answer_changes_before_the_stroke_ends(page):
    draw(page, [[(0.5, 0.2), (0.5, 0.8)]], release=False)
    wait_for_text(page, "answer", "1")
    draw(page, [])
    ActionChains(page).release().perform()


def test_only_the_newest_drawing_is_sent_after_an_answer(page):
    hold_answers(page)
    draw(page, DIGITS["1"])
    assert page.execute_script("return window.sent") == 1
    release_answers(page)
    wait_for_text(page, "answer", "1")
    assert page.execute_script("return window.sent") == 2


@pytest.mark.parametrize("way", ["button", "key"])
def test_a_drawing_is_cleared(page, way):
    draw(page, DIGITS["3"])
    wait_for_text(page, "answer", "3")
    if way == "button":
        page.find_element(By.ID, "clear").click()
    else:
        ActionChains(page).send_keys(Keys.ESCAPE).perform()
    assert is_blank(page)
    draw(page, DIGITS["7"])
    wait_for_text(page, "answer", "7")


def test_an_answer_about_a_cleared_drawing_is_not_shown(page):
    draw(page, DIGITS["3"])
    wait_for_text(page, "answer", "3")
    hold_answers(page)
    draw(page, [[(0.47, 0.5), (0.5, 0.5)]])
    page.find_element(By.ID, "clear").click()
    page.execute_script(
        """window.shown = [];
        const answer = document.getElementById("answer");
        new MutationObserver(() => shown.push(answer.textContent)).observe(answer, { childList: true });"""
    )
    release_answers(page)
    draw(page, DIGITS["7"])
    wait_for_text(page, "answer", "7")
    assert "3" not in page.execute_script("return window.shown")


@pytest.mark.parametrize("way", [drop, choose, paste])
def test_a_picture_of_a_line_is_read(page, line, way):
    draw(page, DIGITS["1"])
    way(page, line)
    wait_for_text(page, "answer", "370")
    left, width = (page.find_element(By.ID, "picture").rect[key] for key in ("x", "width"))
    for i, box in enumerate(boxes(page)):
        # Each digit stands in the middle of its third.
        middle = (box.rect["x"] + box.rect["width"] / 2 - left) / width
        assert abs(middle - (i + 0.5) / 3) < 0.03 and box.rect["width"] < width / 3
    assert not page.find_element(By.ID, "canvas").is_displayed()
    ActionChains(page).send_keys(Keys.ESCAPE).perform()
    assert page.find_element(By.ID, "canvas").is_displayed() and is_blank(page) and not boxes(page)


def test_the_character_under_the_mouse_is_shown(page, line):
    drop(page, line)
    wait_for_text(page, "answer", "370")
    assert (first_in_top(page), text_of(page, "heading")) == ("3", "Character 1 of 3")
    images = {page.find_element(By.ID, "image").get_attribute("src")}
    ActionChains(page).move_to_element(boxes(page)[1]).perform()
    assert (first_in_top(page), text_of(page, "heading")) == ("7", "Character 2 of 3")
    images.add(page.find_element(By.ID, "image").get_attribute("src"))
    boxes(page)[1].send_keys(Keys.TAB)
    assert (first_in_top(page), text_of(page, "heading")) == ("0", "Character 3 of 3")
    images.add(page.find_element(By.ID, "image").get_attribute("src"))
    assert len(images) == 3 and boxes(page)[2].accessible_name == "Character 3: 0"


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("notes.txt", lambda path: path.write_text("no picture"), "no picture in a known format, such as PNG or JPEG"),
        ("blank.png", lambda path: Image.new("L", (90, 90), 255).save(path), "no character was found: nothing stands"),
        ("large.png", lambda path: path.write_bytes(bytes(10_000_001)), "a picture may have 10 MB at most"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_and_the_drawing_stays(page, folder, name, write, message):
    draw(page, DIGITS["3"])
    wait_for_text(page, "answer", "3")
    write(folder / name)
    drop(page, folder / name)
    wait_until(page, lambda: text_of(page, "error"))
    assert text_of(page, "error").startswith(f"{name}: {message}")
    assert text_of(page, "answer") == "3" and page.find_element(By.ID, "canvas").is_displayed()


def test_everything_that_can_be_used_is_named_and_reached_by_key(page):
    reached = []
    for _ in range(2):
        ActionChains(page).send_keys(Keys.TAB).perform()
        reached.append(page.switch_to.active_element.accessible_name)
    assert reached == ["Clear Esc", "Open a picture"]
    assert page.find_element(By.ID, "canvas").accessible_name == "Paper to draw one character on"
    assert page.find_element(By.ID, "answer").aria_role == "status"


def test_no_request_leaves_this_computer(page, url, line):
    page.get_log("performance")
    page.refresh()
    draw(page, DIGITS["3"])
    wait_for_text(page, "answer", "3")
    drop(page, line)
    wait_for_text(page, "answer", "370")
    events = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    requests = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert {f"{url}{name}" for name in ("", "style.css", "script.js", "read", "read?single")} <= set(requests)
    assert not [request for request in requests if not request.startswith((url, "data:", f"blob:{url}"))]


def test_a_program_that_has_ended_is_told(page):
    page.execute_cdp_cmd("Network.enable", {})
    page.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*/read*"]})
    try:
        draw(page, DIGITS["1"])
        wait_for_text(page, "error", "the program does not answer; start it again")
    finally:
        page.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
        page.get_log("browser")
