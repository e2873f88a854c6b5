"""A sheet of sample predictions with their images: right and wrong, open and closed."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from medvqa.data.example import Example
from medvqa.data.image import load_rgb

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

NUM_SAMPLES, COLUMNS = 12, 4
DPI = 130  # of the file; the pictures are pasted as its pixels
MAX_IMAGES = 4  # of one question; the sheet says how many more there are
CELL_IN, IMAGE_IN, MARGIN_IN, LINE_IN, TITLE_IN = 3.2, 2.3, 0.14, 0.155, 0.45
FONT_PT = 8.5
LARGEST_PX = round((CELL_IN - 2 * MARGIN_IN) * DPI)  # a picture's longer side
MAX_LINES = {"Q": 4, "wanted": 3, "said": 4}
RIGHT, WRONG = "#0072B2", "#D55E00"
# What the built-in font lacks, Chinese first (SLAKE); the first one that is installed serves.
OTHER_FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei", "PingFang SC")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One sample: what is written below its images, line by line."""

    example: Example
    is_right: bool
    lines: Sequence[str]


def choose_samples(
    rows: Sequence[Mapping[str, Any]], *, num: int, seed: int
) -> list[Mapping[str, Any]]:
    """Return a seeded choice with an equal share of each kind: open/closed, right/wrong.

    What a kind lacks, the others give. The order is by kind, then as in the file.
    """
    order = random.Random(seed).sample(range(len(rows)), len(rows))
    kinds: dict[tuple[bool, bool], list[int]] = {
        (is_open, is_right): [] for is_open in (True, False) for is_right in (True, False)
    }
    for index in order:
        row = rows[index]
        kinds[row["answer_type"] == "open", bool(row["exact_match"])].append(index)
    chosen: list[int] = []
    # One of each kind in turn, so that a kind that runs out leaves its turns to the others.
    for turn in range(len(rows)):
        chosen += [members[turn] for members in kinds.values() if turn < len(members)]
        if len(chosen) >= num:
            break
    taken = set(chosen[:num])
    return [rows[i] for members in kinds.values() for i in sorted(members) if i in taken]


def draw_samples(
    rows: Sequence[Mapping[str, Any]], examples: Sequence[Example], *, set_name: str, seed: int
) -> "Figure":
    """Draw the sheet.

    Args:
        rows: Lines of the final predictions.jsonl.
        examples: The same questions with their images.
        set_name: For the title.
        seed: Chooses the samples.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

    chosen = choose_samples(rows, num=NUM_SAMPLES, seed=seed)
    by_id = {example.id: example for example in examples}
    font = FontProperties(family=["DejaVu Sans", *_other_fonts()], size=FONT_PT)
    renderer = FigureCanvasAgg(Figure(dpi=100)).get_renderer()  # type: ignore[no-untyped-call]

    def width_in(text: str) -> float:
        return float(renderer.get_text_width_height_descent(text, font, ismath=False)[0]) / 100

    cells = []
    for row in chosen:
        example = by_id[row["id"]]
        lines = cell_lines(row, len(example.images), CELL_IN - 2 * MARGIN_IN, width_in)
        cells.append(Cell(example=example, is_right=bool(row["exact_match"]), lines=lines))
    num_columns = min(COLUMNS, len(cells))
    sheet = [cells[i : i + num_columns] for i in range(0, len(cells), num_columns)]
    heights = [
        IMAGE_IN + 3 * MARGIN_IN + LINE_IN * max(len(cell.lines) for cell in row) for row in sheet
    ]
    top = sum(heights)
    figure = Figure(figsize=(CELL_IN * num_columns, top + TITLE_IN))
    num_right = sum(bool(row["exact_match"]) for row in rows)
    title = (
        f"{set_name}, final: {len(cells)} of {len(rows):,} questions (seed {seed}); "
        f"exactly right are {num_right:,} of {len(rows):,}"
    )
    figure.text(
        MARGIN_IN / (CELL_IN * num_columns),
        1 - TITLE_IN / 2 / (top + TITLE_IN),
        "\n".join(wrapped(title, CELL_IN * num_columns / 1.3, width_in, max_lines=2)),
        va="center",
        parse_math=False,
        fontproperties=font,
        fontsize=10.5,
    )
    for row_cells, height in zip(sheet, heights, strict=True):
        for column, cell in enumerate(row_cells):
            _draw_cell(figure, cell, column * CELL_IN, top, height, font)
        top -= height
    return figure


def _draw_cell(
    figure: "Figure", cell: Cell, left_in: float, top_in: float, height_in: float, font: Any
) -> None:
    """Draw images, texts and a frame; positions count from the sheet's lower left corner."""
    import numpy as np
    from matplotlib.patches import Rectangle

    width, height = figure.get_size_inches()
    colour = RIGHT if cell.is_right else WRONG
    frame = Rectangle(
        ((left_in + 0.05) / width, (top_in - height_in + 0.05) / height),
        (CELL_IN - 0.1) / width,
        (height_in - 0.1) / height,
        transform=figure.transFigure,
        fill=False,
        edgecolor=colour,
        linewidth=1.5,
        linestyle="-" if cell.is_right else "--",
    )
    figure.add_artist(frame)
    images = cell.example.images[:MAX_IMAGES]
    across = min(2, len(images))
    down = -(-len(images) // across)
    inner = CELL_IN - 2 * MARGIN_IN
    for number, source in enumerate(images):
        box_width, box_height = inner / across, IMAGE_IN / down
        picture = _fitted(load_rgb(source, enough_px=LARGEST_PX), box_width, box_height)
        left = left_in + MARGIN_IN + (number % across) * box_width
        bottom = top_in - MARGIN_IN - (number // across + 1) * box_height
        # As pixels of the file: an axes each would take longer than all the rest.
        figure.figimage(
            np.asarray(picture),
            xo=round(left * DPI + (box_width * DPI - picture.width) / 2),
            yo=round(bottom * DPI + (box_height * DPI - picture.height) / 2),
        )
    y_in = top_in - IMAGE_IN - 2 * MARGIN_IN
    for number, line in enumerate(cell.lines):
        figure.text(
            (left_in + MARGIN_IN) / width,
            (y_in - number * LINE_IN) / height,
            line,
            va="top",
            fontproperties=font,
            color=colour if number == 0 else "black",
            fontweight="bold" if number == 0 else "normal",
            parse_math=False,
        )


def _fitted(picture: "Image", width_in: float, height_in: float) -> "Image":
    """Return the picture as large as the box allows, without its gap."""
    room = [(side - 0.04) * DPI for side in (width_in, height_in)]
    scale = min(room[0] / picture.width, room[1] / picture.height)
    return picture.resize((max(1, int(picture.width * scale)), max(1, int(picture.height * scale))))


def cell_lines(
    row: Mapping[str, Any], num_images: int, width_in: float, measure: Callable[[str], float]
) -> list[str]:
    """Return the verdict, question, wanted and given answer, wrapped to the width.

    A text that is too long ends with an ellipsis; predictions.jsonl has it whole.
    """
    verdict = "✓ right" if row["exact_match"] else "✗ wrong"
    hidden = f" · {num_images - MAX_IMAGES} more images" if num_images > MAX_IMAGES else ""
    more = len(row["references"]) - 1
    wanted = row["references"][0] + (f"  (or {more} more)" if more else "")
    lines = [f"{verdict} · {row['answer_type']} · F1 {row['f1']:.2f}{hidden}"]
    texts = {"Q": row["question"], "wanted": wanted, "said": row["prediction"] or "(nothing)"}
    for name, text in texts.items():
        flat = " ".join(f"{name}: {text}".split())
        lines += wrapped(flat, width_in, measure, max_lines=MAX_LINES[name])
    return lines


def wrapped(
    text: str, width: float, measure: Callable[[str], float], *, max_lines: int
) -> list[str]:
    """Break into lines of at most `width`, between words where it can, as `measure` sees them."""
    lines: list[str] = []
    # What lies far beyond the last line need not be measured.
    rest = text[:2000]
    while rest and len(lines) < max_lines:
        end = _fitting(rest, width, measure)
        space = rest.rfind(" ", 0, end + 1)
        if end < len(rest) and space > end // 3:
            end = space
        lines.append(rest[:end])
        rest = rest[end:].lstrip(" ")
    if rest:
        last = lines[-1]
        lines[-1] = last[: _fitting(last, width - measure("…"), measure)] + "…"
    return lines


def _fitting(text: str, width: float, measure: Callable[[str], float]) -> int:
    """Return how many characters from the start fit, at least one; found by bisection."""
    low, high = 1, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if measure(text[:middle]) <= width:
            low = middle
        else:
            high = middle - 1
    return low


def _other_fonts() -> list[str]:
    from matplotlib.font_manager import get_font_names

    installed = set(get_font_names())
    return [name for name in OTHER_FONTS if name in installed][:1]
