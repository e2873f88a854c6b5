"""How large and how quick is a report of 36 cells x 2,248 predictions on VQA-RAD's pictures?

    python benchmarks/report_page.py DIRECTORY --vqa-rad ../shared/data/vqa_rad

The answers are invented; questions and pictures are VQA-RAD's own. Chromium loads the page from
its file, opens the predictions, filters and scrolls. Prints one JSON object.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from medvqa.config.data import SourceConfig
from medvqa.data.pool import load_examples
from medvqa.report.command import main_report
from tests.synthetic_grid import guesser, write_cell

MODELS = {"qwen3_vl_8b": 0.4, "qwen3_vl_2b": 0.0, "qwen2_vl_7b": 0.2, "qwen2_vl_2b_4bit": -0.5}
ORDERINGS = {"open_first": 0.15, "closed_first": 0.05, "mixed": 0.1}
SEEDS = (1, 2, 3)
CHROMIUM = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


def write_grid(directory: Path, vqa_rad: Path) -> None:
    """Write the 36 cells."""
    train, every = (
        load_examples(SourceConfig(name="vqa_rad", path=str(vqa_rad), split=split), seed=0)
        for split in ("train", "all")
    )
    for model, skill in MODELS.items():
        for ordering, gain in ORDERINGS.items():
            for seed in SEEDS:
                overrides = [
                    *(f"model={model}", f"curriculum={ordering}", f"seed={seed}"),
                    *("data=vqa_rad_all", f"data.path={vqa_rad}", "training.max_steps=40"),
                    "evaluation.bertscore.enabled=false",
                ]
                name = f"{model} {ordering} {seed}"
                answer = guesser(every, ability=skill + gain, base=model, seed=name)
                write_cell(
                    directory / name.replace(" ", "-"),
                    overrides,
                    train,
                    {"all": every},
                    answer,
                    phases=("majority", "zero_shot", "blind", "final"),
                )


def measured(page: Path) -> dict[str, Any]:
    """Return times of Chromium in milliseconds."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=list(CHROMIUM)
        )
        tab = browser.new_page()
        started = time.perf_counter()
        tab.goto(page.resolve().as_uri())
        tab.wait_for_selector("#grid tbody tr")
        loaded = time.perf_counter()
        tab.evaluate("document.getElementById('browser').scrollIntoView()")
        tab.wait_for_selector("#list .item img")
        shown = time.perf_counter()
        filtering = tab.evaluate(
            """() => { const box = document.getElementById('search'); const t = performance.now();
            box.value = 'lung'; box.dispatchEvent(new Event('input', {bubbles: true}));
            return performance.now() - t; }"""
        )
        num_items = tab.locator("#list .item").count()
        heap = tab.evaluate("performance.memory.usedJSHeapSize")
        browser.close()
    return {
        "open_ms": round(1000 * (loaded - started)),
        "predictions_ms": round(1000 * (shown - loaded)),
        "search_ms": round(filtering, 1),
        "rows_in_document": num_items,
        "heap_MB": round(heap / 1e6, 1),
    }


def main() -> None:
    """Write the grid unless it is there, make the report, open it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--vqa-rad", type=Path, required=True)
    options = parser.parse_args()
    if not options.directory.is_dir():
        write_grid(options.directory, options.vqa_rad.resolve())
    started = time.perf_counter()
    main_report([str(options.directory)])
    seconds = time.perf_counter() - started
    page = options.directory / "report" / "report.html"
    result = {"report_s": round(seconds, 1), "page_MB": round(page.stat().st_size / 1e6, 2)}
    print(json.dumps({**result, **measured(page)}))  # noqa: T201


if __name__ == "__main__":
    main()
