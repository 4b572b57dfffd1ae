"""Pictures as people make them: their ink, their characters, and the images that networks see."""

import contextlib
import os

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

import emnist_jax
from emnist_jax.datasets import official, synthetic
from emnist_jax.errors import UserError
from emnist_jax.handwriting import characters, pictures
from shared import REAL_DATA, needs_real_data

GLYPHS, GLYPH_RANGES = synthetic._glyphs(tuple("3AEHiT"))


def drawing(text: str = "3", enlarged: int = 3, gap: int = 12) -> Image.Image:
    """Returns characters side by side, dark on light."""
    side = 56 * enlarged
    picture = Image.new("L", (80 + len(text) * (side + gap), side + 80), 255)
    for i, name in enumerate(text):
        if name != " ":
            glyph = ImageOps.invert(Image.fromarray(GLYPHS[GLYPH_RANGES["3AEHiT".index(name), 0, 0]]))
            picture.paste(glyph.resize((side, side)), (40 + i * (side + gap), 40))
    return picture


def seen(picture, style: str = "emnist") -> np.ndarray:
    return characters.one_character(pictures.ink_of(pictures.open_picture(picture)), style).image


def read_boxes(picture) -> list[characters.Character]:
    return characters.characters(pictures.ink_of(pictures.open_picture(picture)), "emnist")


CLEAN = seen(drawing())


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def with_alpha(ink: int) -> Image.Image:
    alpha = ImageOps.invert(drawing())
    shade = Image.new("L", alpha.size, ink)
    return Image.merge("RGBA", (shade, shade, shade, alpha))


def unevenly_lit() -> Image.Image:
    paper = np.asarray(drawing(), float) / 255 * 0.7 + 0.2
    height, width = paper.shape
    light = np.linspace(0.3, 1, width) * np.linspace(1, 0.6, height)[:, None]
    noise = np.random.default_rng(0).normal(0, 0.01, paper.shape)
    return Image.fromarray(np.uint8(255 * np.clip(paper * light + noise, 0, 1)))


def moved() -> Image.Image:
    page = Image.new("L", (900, 700), 255)
    page.paste(drawing(), (600, 20))
    return page


def framed() -> Image.Image:
    picture = drawing()
    ImageDraw.Draw(picture).rectangle((8, 8, picture.width - 9, picture.height - 9), outline=0, width=4)
    return picture


def in_a_corner_of_a_frame() -> Image.Image:
    page = Image.new("L", (1200, 1200), 255)
    page.paste(drawing(), (60, 60))
    ImageDraw.Draw(page).rectangle((8, 8, 1191, 1191), outline=0, width=6)
    return page


def beside_a_dark_table() -> Image.Image:
    picture = ImageOps.expand(drawing(), (150, 0, 0, 0), 30)
    return picture.filter(ImageFilter.GaussianBlur(1))


def on_a_table(shade: int, degrees: int, left: int = 150) -> Image.Image:
    """Returns a sheet of paper with a character, photographed askew; if left is negative, the picture cuts it off."""
    paper = drawing().point(lambda x: x * 0.9)
    table = Image.new("L", (paper.width + 300, paper.height + 300), shade)
    mask = Image.new("L", paper.size, 255).rotate(degrees, expand=True)
    table.paste(paper.rotate(degrees, Image.Resampling.BICUBIC, expand=True), (left, 150), mask)
    grain = np.random.default_rng(0).normal(0, 5, table.size[::-1])
    return Image.fromarray(np.uint8(np.clip(np.asarray(table) + grain, 0, 255))).filter(ImageFilter.GaussianBlur(1))


HOLES = drawing().size[::-1]
AWKWARD = {
    "light on dark": lambda: ImageOps.invert(drawing()),
    "small": lambda: drawing(enlarged=1),
    "large": lambda: drawing(enlarged=30),
    "RGB": lambda: drawing().convert("RGB"),
    "coloured": lambda: ImageOps.colorize(drawing(), "darkblue", "khaki"),
    "palette": lambda: drawing().convert("P"),
    "1 bit": lambda: drawing().convert("1", dither=Image.Dither.NONE),
    "16 bits": lambda: Image.fromarray(np.asarray(drawing(), np.uint16) * 257),
    "floats with holes": lambda: Image.fromarray(np.where(np.eye(*HOLES), np.nan, np.asarray(drawing(), np.float32))),
    "floats": lambda: Image.fromarray(np.asarray(drawing(), np.float32) * 3),
    "dark on a transparent ground": lambda: with_alpha(0),
    "light on a transparent ground": lambda: with_alpha(255),
    "faint": lambda: drawing().point(lambda x: 150 + x // 8),
    "uneven light": unevenly_lit,
    "off-centre": moved,
    "framed": framed,
    "in a corner of a frame": in_a_corner_of_a_frame,
    "beside a dark table": beside_a_dark_table,
    "paper on a dark table": lambda: on_a_table(50, 0),
    "paper askew on a light table": lambda: on_a_table(180, 3),
    "paper that the picture cuts off": lambda: on_a_table(50, 3, left=-20),
    "array": lambda: np.asarray(drawing()),
    "array of floats": lambda: np.asarray(drawing(), np.float32)[..., None] / 255,
    "array of bools": lambda: np.asarray(drawing()) > 127,
}


@pytest.mark.parametrize("make", AWKWARD.values(), ids=AWKWARD)
def test_a_character_looks_the_same_however_it_comes(make):
    assert similarity(seen(make()), CLEAN) > 0.96


SQUARE = [(20, 20), (220, 20), (220, 220), (20, 220)]
BOLD = {
    "0 with corners": (SQUARE, [(60, 60), (180, 60), (180, 180), (60, 180)]),
    "O": [
        [(120 + radius * np.cos(turn), 120 + radius * np.sin(turn)) for turn in np.linspace(0, 2 * np.pi, 60)]
        for radius in (100, 50)
    ],
    "U": (SQUARE, [(90, 20), (150, 20), (150, 120), (90, 120)]),
    "I": (SQUARE, [(0, 0), (1, 0), (1, 1)]),
}


@pytest.mark.parametrize("outline, hole", BOLD.values(), ids=BOLD)
def test_a_bold_character_is_no_paper(outline, hole):
    picture = Image.new("L", (240, 240), 255)
    ImageDraw.Draw(picture).polygon(outline, fill=0)
    ImageDraw.Draw(picture).polygon(hole, fill=255)
    brightness = pictures.open_picture(picture)
    assert pictures.ink_of(brightness)[brightness == 0].mean() > 0.9


def test_a_photo_is_turned_as_its_camera_says(tmp_path):
    turned = drawing().rotate(90, expand=True)
    assert similarity(seen(turned), CLEAN) < 0.6
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "photo.jpg", exif=exif)
    assert similarity(seen(tmp_path / "photo.jpg"), CLEAN) > 0.96


def test_thin_strokes_become_as_wide_as_those_of_the_data_sets():
    page = Image.new("L", (600, 600), 255)
    ImageDraw.Draw(page).line([(200, 100), (200, 500)], fill=0, width=3)
    assert 2 <= (seen(page) > 127).sum(1).max() <= 4


@pytest.mark.parametrize("side, width", [(200, 1), (800, 1), (800, 4), (1600, 1), (1600, 10)])
def test_a_character_is_the_same_whatever_pen_drew_it(side, width):
    def seven(side, width):
        page = Image.new("L", (side, side), 255)
        corners = [(0.2, 0.2), (0.8, 0.2), (0.5, 0.8)]
        ImageDraw.Draw(page).line([(side * x, side * y) for x, y in corners], fill=0, width=width, joint="curve")
        return seen(page)

    assert similarity(seven(side, width), seven(800, 60)) > 0.9


def test_mnist_has_its_centre_of_mass_in_the_middle_and_emnist_its_box():
    picture = drawing("T")
    rows, columns = (np.flatnonzero(seen(picture, "mnist").max(axis)) for axis in (1, 0))
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    image = seen(picture, "mnist").astype(float)
    assert (image.sum(1) @ np.arange(28)) / image.sum() == pytest.approx(14, abs=0.5)
    rows, columns = (np.flatnonzero(seen(picture).max(axis) > 127) for axis in (1, 0))
    assert 22 <= max(np.ptp(rows), np.ptp(columns)) + 1 <= 24
    assert abs(rows[0] - (27 - rows[-1])) <= 1 and abs(columns[0] - (27 - columns[-1])) <= 1


def printed(text: str, spacing: int = 10, size: int = 60) -> Image.Image:
    """Returns lines of print, dark on light."""
    page = Image.new("L", (900, 500), 255)
    font = ImageFont.load_default(size)
    ImageDraw.Draw(page).multiline_text((100, 100), text, fill=0, font=font, spacing=spacing)
    return page


@pytest.mark.parametrize("spacing", [30, 0, -8])
def test_lines_that_stand_close_are_not_glued_together(spacing):
    found = read_boxes(printed("12345\n67890\n24680", spacing))
    assert [character.line for character in found] == [0] * 5 + [1] * 5 + [2] * 5


@pytest.mark.parametrize("degrees", [-10, -6, 6, 10])
def test_lines_may_slant(degrees):
    straight = printed("24680 13579\n97531 86420", 40)
    found = read_boxes(straight.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=255))
    assert [character.line for character in found] == [0] * 10 + [1] * 10
    lefts = [character.box[1] for character in found]
    assert lefts[:10] == sorted(lefts[:10]) and lefts[10:] == sorted(lefts[10:])


@pytest.mark.parametrize("size", [40, 60, 90])
def test_words_of_print_are_told_apart(size):
    found = read_boxes(printed("THE FOX RAN OFF", size=size))
    assert [i for i, character in enumerate(found) if character.after_space] == [3, 6, 9]


def test_two_tone_pictures_are_reduced_like_others():
    """Large ones, as scanners make them: Pillow leaves out their pixels."""
    large = printed("24680").resize((4500, 2500))
    grey = pictures.open_picture(large)
    assert np.abs(pictures.open_picture(large.convert("1")) - grey).max() < 0.5
    np.testing.assert_array_equal(pictures.open_picture(large.convert("P")), grey)


def test_pictures_of_12_bits_are_read():
    dim = np.asarray(drawing(), np.uint16) * 16
    for picture in (dim, Image.fromarray(dim)):
        assert similarity(seen(picture), CLEAN) > 0.99


def test_a_line_is_cut_in_reading_order():
    line = drawing("3A EH")
    page = Image.new("L", (line.width, 2 * line.height), 255)
    page.paste(line, (0, 0))
    page.paste(line, (0, line.height))
    found = read_boxes(page)
    assert [character.line for character in found] == [0] * 4 + [1] * 4
    assert [character.after_space for character in found] == [False, False, True, False] * 2
    lefts = [character.box[1] for character in found]
    assert lefts[:4] == sorted(lefts[:4]) and lefts[4:] == lefts[:4]
    for character, name in zip(found, "3AEH3AEH", strict=True):
        assert similarity(character.image, seen(drawing(name))) > 0.96


def test_two_characters_far_apart_are_two_words():
    assert [character.after_space for character in read_boxes(drawing("3 A"))] == [False, True]
    assert [character.after_space for character in read_boxes(drawing("3A"))] == [False, False]


def test_a_dot_belongs_to_its_stem_and_specks_to_nothing():
    picture = drawing("i")
    stem_and_dot = read_boxes(picture)
    assert len(stem_and_dot) == 1 and stem_and_dot[0].box[3] - stem_and_dot[0].box[1] < 100
    draw = ImageDraw.Draw(picture)
    for x, y in ((5, 5), (200, 15), (210, 200)):
        draw.rectangle((x, y, x + 2, y + 2), fill=0)
    assert [character.box for character in read_boxes(picture)] == [character.box for character in stem_and_dot]


@pytest.mark.parametrize("side", [1, 32, 100, 256])
def test_two_tones_are_told_apart(side):
    picture = np.zeros((side, 2 * side), np.uint8)
    picture[:, side:] = 255
    ink = pictures.ink_of(pictures.open_picture(Image.fromarray(picture)))
    assert sorted({ink[:, :side].mean(), ink[:, side:].mean()}) == [0.0, 1.0]


@pytest.mark.parametrize("brightness", [0, 128, 255])
def test_paper_alone_holds_no_character(brightness):
    noise = np.random.default_rng(0).normal(brightness, 5, (200, 300))
    for paper in (np.full((200, 300), brightness, np.uint8), np.uint8(np.clip(noise, 0, 255))):
        with pytest.raises(UserError, match="no character was found"):
            seen(paper)


@pytest.mark.parametrize(
    "array, message",
    [
        (np.zeros((0, 28), np.uint8), "shape"),
        (np.zeros(28, np.uint8), "shape"),
        (np.zeros((28, 28, 2), np.uint8), "shape"),
        (np.zeros((28, 28), np.int64), "int64"),
        (np.full((28, 28), np.nan), "between 0 and 1"),
        (np.full((28, 28), 255.0), "between 0 and 1"),
    ],
)
def test_an_array_that_is_no_picture_is_refused(array, message):
    with pytest.raises(UserError, match=message):
        pictures.open_picture(array)


def test_a_file_that_is_no_picture_is_refused(tmp_path, monkeypatch):
    (tmp_path / "text.png").write_text("a letter")
    drawing().save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:300])
    os.mkfifo(tmp_path / "fifo.png")
    drawing().save(tmp_path / "bomb.png")
    for name, message in (
        ("text.png", "no picture in a known format"),
        ("cut.png", "cannot be read"),
        ("fifo.png", "no such file"),
        ("none.png", "no such file"),
        (".", "is a folder"),
    ):
        with pytest.raises(UserError, match=message):
            pictures.open_picture(tmp_path / name)
    monkeypatch.setattr(pictures, "MOST_PIXELS", 1000)
    with pytest.raises(UserError, match="are more than 1,000 pixels"):
        pictures.open_picture(tmp_path / "bomb.png")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (2, 2), (5, 7), (20, 20)], ids=str)
def test_pictures_of_a_few_pixels_are_read_or_refused(shape):
    rng = np.random.default_rng(0)
    for share in np.linspace(0, 1, 20):
        ink = pictures.ink_of((rng.random(shape) < share).astype(np.float32))
        for cut in (characters.characters, characters.one_character):
            with contextlib.suppress(UserError):
                cut(ink, "emnist")


def line_drawing(*strokes: list, width: int = 10) -> Image.Image:
    """Draws strokes, of which all but the first may have another width."""
    page = Image.new("L", (600, 300), 255)
    for i, points in enumerate(strokes):
        ImageDraw.Draw(page).line(points, fill=0, width=width if i else 10)
    return page


BAR = [(100, 100), (100, 200)]


def test_only_what_is_near_a_character_joins_it():
    (alone,) = read_boxes(line_drawing(BAR))
    for far_or_speck in ([(300, 100), (300, 120)], [(112, 150), (113, 150)]):
        (character,) = read_boxes(line_drawing(BAR, far_or_speck, width=4))
        assert character.box == alone.box
    for near, edge in (([(100, 70), (100, 85)], 0), ([(118, 110), (118, 140)], 3)):
        (character,) = read_boxes(line_drawing(BAR, near))
        assert [i for i in range(4) if abs(character.box[i] - alone.box[i]) > 5] == [edge]


def test_a_character_that_reaches_below_its_line_stays_in_it():
    lower = [(200, 150), (200, 250)]
    lines = [character.line for character in read_boxes(line_drawing(BAR, lower))]
    assert lines == [0, 0]
    lines = [character.line for character in read_boxes(line_drawing(BAR, [(200, 185), (200, 285)]))]
    assert lines == [0, 1]


def test_ink_of_a_neighbour_in_the_box_of_a_character_is_left_out():
    slanting = [(100, 200), (200, 100)], [(175, 200), (275, 100)]
    images = [character.image for character in read_boxes(line_drawing(*slanting))]
    (alone,) = (character.image for character in read_boxes(line_drawing(slanting[0])))
    assert len(images) == 2 and similarity(images[0], alone) > 0.99


@pytest.mark.parametrize("rise", [-12, 0, 12])
def test_a_line_under_a_word_goes(rise):
    page = printed("24 135\n678")
    boxes = [character.box for character in read_boxes(page)]
    ImageDraw.Draw(page).line([(90, 170), (200, 172 + rise // 2), (420, 170 + rise)], fill=0, width=6)
    assert [character.box for character in read_boxes(page)] == boxes


def test_what_is_under_one_stroke_or_more_than_a_stroke_high_stays():
    (character,) = read_boxes(line_drawing(BAR, [(60, 212), (140, 212)]))
    assert character.box[2] > 210, "the foot of a 1"
    page = line_drawing(BAR, [(200, 100), (200, 200)])
    ImageDraw.Draw(page).ellipse((60, 215, 340, 255), outline=0, width=6)
    assert max(character.box[2] for character in read_boxes(page)) > 250


def test_frames_within_frames_go():
    picture = drawing()
    for margin in (4, 14, 24):
        corners = (margin, margin, picture.width - 1 - margin, picture.height - 1 - margin)
        ImageDraw.Draw(picture).rectangle(corners, outline=0, width=3)
    (character,) = read_boxes(picture)
    assert similarity(character.image, CLEAN) > 0.96


def test_more_pieces_than_any_text_has_are_refused():
    page = np.full((400, 400), 255, np.uint8)
    for row in range(0, 400, 16):
        page[row : row + 8, 0::16] = page[row : row + 8, 1::16] = page[row : row + 8, 2::16] = 0
    with pytest.raises(UserError, match="625 pieces of ink: more than 500"):
        read_boxes(page)


def as_people_send_it(image: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Returns an image of a data set enlarged, moved, often inverted, often framed."""
    side = 28 * int(rng.integers(3, 9))
    page = Image.new("L", [int(side * rng.uniform(1.2, 2)) for _ in "xy"])
    corner = [int(rng.integers(0, length - side + 1)) for length in page.size]
    page.paste(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC), corner)
    if rng.random() < 0.5:
        page = ImageOps.expand(page, 24)
        ImageDraw.Draw(page).rectangle((8, 8, page.width - 9, page.height - 9), outline=255, width=3)
    return ImageOps.invert(page) if rng.random() < 0.5 else page


@pytest.mark.slow
@needs_real_data
@pytest.mark.parametrize("model, name", [("mnist_squeeze_10", "mnist"), ("characters", "emnist_pool")])
def test_real_images_are_read_as_well_as_the_data_sets_own(model, name):
    network = emnist_jax.load(model)
    images, labels = (rows[-2000:] for rows in official.read(name, str(REAL_DATA / name.replace("_", "-")))[1])
    rng = np.random.default_rng(0)
    sent = [as_people_send_it(image, rng) for image in images]
    direct = (network.classify(images).labels == labels).mean()
    names = [network.class_names[label] for label in labels]
    whole = np.mean([a == b for a, b in zip(network.predict(sent).class_names, names, strict=True)])
    cut = np.mean([network.read(picture).text == name for picture, name in zip(sent, names, strict=True)])
    print(f"{name}: direct {direct:.4f}, as one character {whole:.4f}, cut {cut:.4f}")
    assert whole > direct - 0.01 and cut > direct - 0.01
