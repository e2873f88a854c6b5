"""A sheet of sample predictions with their images: right and wrong, open and closed."""

import random
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medvqa.data.example import Example, ImageSource
from medvqa.data.image import load_rgb
from medvqa.evaluation.figure import SERIES

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

NUM_SAMPLES, COLUMNS = 12, 4
DPI = 130  # of the file
MAX_IMAGES = 4  # of one question; the sheet says how many more there are
CELL_IN, IMAGE_IN, MARGIN_IN, LINE_IN, TITLE_IN = 3.2, 2.3, 0.14, 0.15, 0.45
BOX_PX = (round((CELL_IN - 2 * MARGIN_IN) * DPI), round(IMAGE_IN * DPI))  # of one picture
# All characters of this font have one width, so that texts are wrapped by counting.
FONT, FONT_PT, LINE_CHARACTERS = "DejaVu Sans Mono", 7.5, 46
MAX_LINES = {"Q": 4, "reference": 3, "answer": 4}
RIGHT, WRONG = SERIES[:2]
# For characters that the font lacks (SLAKE in Chinese); the first installed one is used.
OTHER_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "PingFang SC")


def choose_samples(
    rows: Sequence[Mapping[str, Any]], *, num: int, seed: int
) -> list[Mapping[str, Any]]:
    """Return a seeded choice with an equal share of each kind: open/closed, right/wrong.

    The other kinds fill the places of a kind with too few rows. The order is by kind, then as in
    the file.
    """
    kinds: dict[tuple[bool, bool], list[int]] = {
        (is_open, is_right): [] for is_open in (True, False) for is_right in (True, False)
    }
    for index in random.Random(seed).sample(range(len(rows)), len(rows)):
        row = rows[index]
        kinds[row["answer_type"] == "open", bool(row["exact_match"])].append(index)
    # One of each kind in turn.
    by_turn = sorted(
        (turn, kind, i) for kind, m in enumerate(kinds.values()) for turn, i in enumerate(m)
    )
    return [rows[i] for _, i in sorted((kind, i) for _, kind, i in by_turn[:num])]


def draw_samples(
    rows: Sequence[Mapping[str, Any]], examples: Sequence[Example], *, set_name: str, seed: int
) -> "Figure":
    """Draw rows of the final predictions.jsonl with the images of the same examples."""
    import numpy as np
    from matplotlib.figure import Figure
    from matplotlib.font_manager import get_font_names
    from matplotlib.patches import Rectangle

    by_id = {example.id: example for example in examples}
    chosen = choose_samples(rows, num=NUM_SAMPLES, seed=seed)
    cells = [(row, by_id[row["id"]].images) for row in chosen]
    texts = [cell_lines(row, len(images)) for row, images in cells]
    num_columns = min(COLUMNS, len(cells))
    cell_height = IMAGE_IN + 3 * MARGIN_IN + LINE_IN * max(map(len, texts))
    width = CELL_IN * num_columns
    height = TITLE_IN + cell_height * -(-len(cells) // num_columns)
    figure = Figure(figsize=(width, height), dpi=DPI)
    fonts = [FONT, *[name for name in OTHER_FONTS if name in set(get_font_names())][:1]]

    def write(left_in: float, top_in: float, lines: Sequence[str], **style: Any) -> None:
        text = "\n".join(lines)
        figure.text(left_in / width, top_in / height, text, va="top", family=fonts,
                    fontsize=FONT_PT, linespacing=1.25, parse_math=False, **style)  # fmt: skip

    num_right = sum(bool(row["exact_match"]) for row in rows)
    title = f"{set_name}, final: {len(cells)} of {len(rows):,} questions (seed {seed}); "
    title += f"exactly right are {num_right:,} of {len(rows):,}"
    write(MARGIN_IN, height - MARGIN_IN, wrapped(title, num_columns * LINE_CHARACTERS, 2))
    for number, ((row, images), lines) in enumerate(zip(cells, texts, strict=True)):
        left = MARGIN_IN + CELL_IN * (number % num_columns)
        bottom = height - TITLE_IN - cell_height * (number // num_columns) - IMAGE_IN
        colour = RIGHT if row["exact_match"] else WRONG
        picture = collage(images[:MAX_IMAGES])
        # Axes, which scale each picture once more, would take 100 ms longer.
        x = round(left * DPI + (BOX_PX[0] - picture.width) / 2)
        y = round(bottom * DPI + (BOX_PX[1] - picture.height) / 2)
        figure.figimage(np.asarray(picture.convert("RGBA")), x, y)
        figure.add_artist(Rectangle((x, y), *picture.size, transform=None, fill=False,
                                    color=colour, linewidth=1.5))  # fmt: skip
        write(left, bottom - MARGIN_IN, lines[:1], color=colour, fontweight="bold")
        write(left, bottom - MARGIN_IN - LINE_IN, lines[1:])
    return figure


def collage(images: Sequence[ImageSource]) -> "Image":
    """Return one picture, or several side by side, two in a row, as large as the box allows."""
    from PIL import Image, ImageOps

    if len(images) == 1:
        return ImageOps.contain(load_rgb(images[0], enough_px=min(BOX_PX)), BOX_PX)
    side = min(BOX_PX[0] // 2, BOX_PX[1] // -(-len(images) // 2))
    sheet = Image.new("RGB", (side * 2, side * -(-len(images) // 2)), "white")
    for number, source in enumerate(images):
        picture = ImageOps.contain(load_rgb(source, enough_px=side), (side - 4, side - 4))
        sheet.paste(picture, (number % 2 * side, number // 2 * side))
    return sheet


def cell_lines(row: Mapping[str, Any], num_images: int) -> list[str]:
    """Return the verdict, question, reference and answer, wrapped to the cell.

    A text that is too long ends with an ellipsis; predictions.jsonl holds all of it.
    """
    verdict = "✓ right" if row["exact_match"] else "✗ wrong"
    hidden = f" · {num_images - MAX_IMAGES} more images" if num_images > MAX_IMAGES else ""
    more = len(row["references"]) - 1
    reference = row["references"][0] + (f" (or {more} more)" if more else "")
    lines = [f"{verdict} · {row['answer_type']} · F1 {row['f1']:.2f}{hidden}"]
    texts = {"Q": row["question"], "reference": reference, "answer": row["prediction"] or "(empty)"}
    for name, text in texts.items():
        lines += wrapped(f"{name}: {text}", LINE_CHARACTERS, MAX_LINES[name])
    return lines


def wrapped(text: str, num_characters: int, max_lines: int) -> list[str]:
    """Break a text into lines; one with Chinese, whose characters are wider, into shorter ones."""
    if any(unicodedata.east_asian_width(character) in "WF" for character in text):
        num_characters //= 2
    return textwrap.wrap(
        text, num_characters, max_lines=max_lines, placeholder="…", break_on_hyphens=False
    )
