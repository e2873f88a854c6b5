"""How large and how quick is a report of 36 cells x 2,248 predictions on VQA-RAD's pictures?

    python -m benchmarks.report_page DIRECTORY --vqa-rad VQA_RAD

The answers are invented; questions and pictures are VQA-RAD's own. Chromium loads the page from
its file, shows the predictions and searches them. Prints one JSON object.
"""

import itertools
import json
import time
from pathlib import Path

from benchmarks.runs import Row, parser_of
from medvqa.config.data import SourceConfig
from medvqa.data.pool import load_examples
from medvqa.report.report import main_report
from tests.synthetic_grid import guesser, write_cell

ABILITY = {"qwen3_vl_8b": 0.4, "qwen3_vl_2b": 0.0, "qwen2_vl_7b": 0.2, "qwen2_vl_2b_4bit": -0.5}
GAIN = {"open_first": 0.15, "closed_first": 0.05, "mixed": 0.1}
PHASES = ("majority", "zero_shot", "blind", "final")
CHROMIUM = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
SEARCH = """() => { const box = document.getElementById('search'); const t = performance.now();
    box.value = 'lung'; box.dispatchEvent(new Event('input', {bubbles: true}));
    return performance.now() - t; }"""


def write_grid(directory: Path, vqa_rad: Path) -> None:
    """Write the 36 cells."""
    train, every = (
        load_examples(SourceConfig(name="vqa_rad", path=str(vqa_rad), split=split), seed=0)
        for split in ("train", "all")
    )
    for model, ordering, seed in itertools.product(ABILITY, GAIN, (1, 2, 3)):
        overrides = [
            *(f"model={model}", f"curriculum={ordering}", f"seed={seed}", "data=vqa_rad_all"),
            *(f"data.path={vqa_rad}", "training.max_steps=40"),
            "evaluation.bertscore.enabled=false",
        ]
        name = f"{model}-{ordering}-{seed}"
        answer = guesser(every, ability=ABILITY[model] + GAIN[ordering], base=model, seed=name)
        write_cell(directory / name, overrides, train, {"all": every}, answer, phases=PHASES)


def in_browser(page: Path) -> Row:
    """Return times of Chromium, rows in the document, and its memory."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = "/usr/bin/chromium"
        browser = playwright.chromium.launch(executable_path=path, args=list(CHROMIUM))
        tab = browser.new_page()
        started = time.perf_counter()
        tab.goto(page.resolve().as_uri())
        tab.wait_for_selector("#grid tbody tr")
        opened = time.perf_counter()
        tab.evaluate("document.getElementById('browser').scrollIntoView()")
        tab.wait_for_selector("#list .item img")
        shown = time.perf_counter()
        row = {
            "open_ms": round(1000 * (opened - started)),
            "predictions_ms": round(1000 * (shown - opened)),
            "search_ms": round(tab.evaluate(SEARCH), 1),
            "rows_in_document": tab.locator("#list .item").count(),
            "heap_MB": round(tab.evaluate("performance.memory.usedJSHeapSize") / 1e6, 1),
        }
        browser.close()
    return row


def main() -> None:
    """Write the grid unless it is there, make the report, open it."""
    parser = parser_of(__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--vqa-rad", type=Path, required=True)
    options = parser.parse_args()
    if not options.directory.is_dir():
        write_grid(options.directory, options.vqa_rad.resolve())
    started = time.perf_counter()
    main_report([str(options.directory)])
    seconds = time.perf_counter() - started
    page = options.directory / "report" / "report.html"
    size = {"report_s": round(seconds, 1), "page_MB": round(page.stat().st_size / 1e6, 2)}
    print(json.dumps({**size, **in_browser(page)}))  # noqa: T201


if __name__ == "__main__":
    main()
