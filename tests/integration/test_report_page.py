"""report.html in a real, headless Chromium: numbers, filters, keyboard, light, dark and narrow."""

import csv
import json
import os
import shutil

import pytest

from benchmarks.report_page import CHROMIUM
from medvqa.config.data import SourceConfig
from medvqa.data.pool import load_examples
from medvqa.report.report import main_report
from medvqa.tracking.record import read_lines, write_json
from tests.synthetic_grid import guesser, write_cell

BROWSER = os.environ.get("MEDVQA_CHROMIUM", "/usr/bin/chromium")
OVERRIDES = (
    "evaluation.bertscore.enabled=false",
    *("training.max_steps=20", "training.warmup_steps=1"),
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Two orderings, two seeds, all 500 questions of the phantoms' test set, one failed cell."""
    place = tmp_path_factory.mktemp("grid")
    pool, asked = (
        load_examples(SourceConfig(name="phantom", split=split), seed=0)
        for split in ("train", "test")
    )
    for ordering in ("open_first", "mixed"):
        for seed in (1, 2):
            name = f"{ordering}-{seed}"
            write_cell(
                place / name,
                [*OVERRIDES, f"curriculum={ordering}", f"seed={seed}"],
                pool,
                {"test": asked},
                guesser(asked, ability=1.0 * (ordering == "mixed"), base="tiny", seed=name),
                phases=("majority", "zero_shot", "blind", "final"),
            )
    values = json.loads((place / "mixed-1" / "run.json").read_text())
    values |= {"state": "failed", "error": "RuntimeError: CUDA out of memory <b>"}
    (place / "failed").mkdir()
    write_json(place / "failed" / "run.json", values)
    main_report([str(place), "--no-plots"])
    return place


@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if shutil.which(BROWSER) is None:
        pytest.skip(f"no Chromium at {BROWSER}: report.html is NOT tested (set MEDVQA_CHROMIUM)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=list(CHROMIUM))
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium, report):
    """Return a function that opens the page; whatever it complains about or fetches fails."""
    complaints, contexts = [], []

    def open_page(**settings):
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda m: complaints.append(m.text))
        page.on("pageerror", lambda e: complaints.append(str(e)))
        page.on(
            "request",
            lambda r: r.url.startswith(("file:", "data:")) or complaints.append(r.url),
        )
        page.goto((report / "report" / "report.html").as_uri())
        page.locator("#browser").scroll_into_view_if_needed()
        page.wait_for_selector("#list .item img")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture
def page(opened):
    return opened()


def csv_rows(report, name):
    with (report / "report" / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def answers(report, run):
    rows = read_lines(report / run / "evaluation" / "final" / "test" / "predictions.jsonl")
    return {row["id"]: row for row in rows}


def count(page):
    return int(page.inner_text("#count").split(" of ")[0])


def minus(text):
    return text.replace("\N{MINUS SIGN}", "-")


def test_the_grid_shows_the_numbers_of_the_csv_for_every_choice(page, report):
    rows = csv_rows(report, "results.csv")
    for metric, group in (
        ("exact_match", "overall"),
        ("f1", "open"),
        ("closed_accuracy", "closed"),
    ):
        page.select_option("#metric", metric)
        page.select_option("#group", group)
        chosen = {
            (r["ordering"], r["phase"]): r
            for r in rows
            if (r["metric"], r["group"]) == (metric, group)
        }
        heads = page.locator("#grid thead th").all_inner_texts()
        cells = page.locator("#grid tbody td").all_inner_texts()
        assert heads[1:] == ["majority answer", "zero-shot base", "mixed", "open_first"]
        for ordering, cell in zip(("mixed", "open_first"), cells[2:], strict=True):
            row, blind = chosen[ordering, "final"], chosen[ordering, "blind"]
            low, high = (f"{float(row[name]):.3f}" for name in ("low", "high"))
            assert cell.startswith(f"{float(row['mean']):.3f}")
            assert f"[{low}, {high}] · 2 seeds" in cell
            assert f"blind {float(blind['mean']):.3f}" in cell


def test_the_forest_shows_the_numbers_of_the_csv(page, report):
    (row,) = (
        r
        for r in csv_rows(report, "comparisons.csv")
        if (r["metric"], r["group"]) == ("exact_match", "overall")
    )
    shown = minus(page.inner_text("#forest tbody tr:last-child"))
    for name, form in (("difference", "+.3f"), ("low", "+.3f"), ("high", "+.3f")):
        assert format(float(row[name]), form) in shown
    assert f"{float(row['detectable_difference']):.3f}" in shown
    p, p_holm, p_permutation = (
        f"{float(row[name]):.3f}" if float(row[name]) >= 0.001 else "<0.001"
        for name in ("p", "p_holm", "permutation_p")
    )
    assert f"{p_holm} ({p})" in shown
    assert p_permutation in shown
    mcnemar = [float(value) for value in row["mcnemar_mid_p"].split(";")]
    assert max(mcnemar) < 0.001
    assert "<0.001 <0.001" in shown
    assert "mixed - open_first" in shown


def test_every_number_leads_to_its_run_directories(page, report):
    page.locator("#grid tbody .cell").last.click()
    shown = page.inner_text("#origin-body")
    assert "null" not in shown and "undefined" not in shown
    for seed in (1, 2):
        path = report / f"open_first-{seed}" / "evaluation/final/test/predictions.jsonl"
        assert str(path) in shown
        assert path.is_file()
    page.keyboard.press("Escape")
    assert not page.locator("#origin").is_visible()


def test_a_failed_cell_is_named_with_its_error_as_text(page, report):
    shown = page.inner_text("#failed")
    assert str(report / "failed") in shown
    assert "RuntimeError: CUDA out of memory <b>" in shown


def test_loss_and_cost_are_drawn_in_the_pages_own_colours(page):
    for name in ("loss", "cost"):
        assert page.locator(f"#{name} svg").bounding_box()["height"] > 100
    assert "open_first (2 seeds)" in page.locator("#loss svg").text_content()
    assert page.locator("#loss svg [style*='var(--series-1)']").count() > 0


def test_filters_leave_exactly_the_questions_that_they_say(page, report):
    runs = [answers(report, f"{ordering}-1") for ordering in ("mixed", "open_first")]
    rows = [tuple(run[i] for run in runs) for i in runs[0]]
    assert count(page) == len(rows) == 500
    right = [[row["exact_match"] for row in pair] for pair in rows]
    expected = {
        "right": sum(map(all, right)),
        "wrong": sum(not any(pair) for pair in right),
        "mixed": sum(any(pair) and not all(pair) for pair in right),
        "differ": sum(a["prediction"] != b["prediction"] for a, b in rows),
    }
    for outcome, number in expected.items():
        page.select_option("#outcome", outcome)
        assert count(page) == number > 0, outcome
    page.select_option("#type", "closed")
    page.select_option("#outcome", "mixed")
    closed = [p for p, pair in zip(right, rows, strict=True) if pair[0]["answer_type"] == "closed"]
    assert count(page) == sum(any(p) and not all(p) for p in closed)
    page.click("button[type=reset]")
    page.wait_for_function("document.getElementById('count').textContent.startsWith('500 ')")
    page.fill("#search", "BRIGHT")
    found = sum(
        any(
            "bright" in text.lower()
            for text in (a["question"], *a["references"], a["prediction"], b["prediction"])
        )
        for a, b in rows
    )
    assert 0 < count(page) == found < 500
    page.fill("#search", "no such words")
    assert "No prediction matches" in page.inner_text("#list")


def test_the_arms_shown_are_the_users_choice(page, report):
    page.click("#arm-picker summary")
    for box in page.locator("#columns input").all():
        box.set_checked(
            "mixed, seed 2" in box.locator("..").inner_text()
            and "blind" not in box.locator("..").inner_text()
        )
    run = answers(report, "mixed-2")
    page.select_option("#outcome", "right")
    assert count(page) == sum(row["exact_match"] for row in run.values())
    shown = page.locator("#list .item").first.locator(".answer")
    assert shown.count() == 1
    assert shown.inner_text().startswith("✓")
    page.select_option("#outcome", "wrong")
    assert shown.inner_text().startswith("✗")


def test_one_question_shows_all_arms_and_seeds_side_by_side(page, report):
    page.locator("#list .item").nth(2).click()
    dialog = page.locator("#question")
    ident = dialog.locator(".note").inner_text().split(" · ")[-1]
    rows = {
        row.locator("th").inner_text(): row.locator("td .answer").all_inner_texts()
        for row in dialog.locator("tbody tr").all()
    }
    assert len(rows) == 2 * 2 + 2  # two arms, seen and blind; two baselines
    for ordering in ("mixed", "open_first"):
        for seed in (1, 2):
            row = answers(report, f"{ordering}-{seed}")[ident]
            mark = "✓" if row["exact_match"] else "✗"
            assert rows[f"tiny / {ordering}"][seed - 1] == f"{mark} {row['prediction']}"
    assert dialog.locator("img").count() >= 1


def test_it_works_by_keyboard_alone(page):
    page.locator("body").press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.focus("#list")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.get_attribute("#list", "aria-activedescendant") == "item-2"
    assert page.get_attribute("#item-2", "aria-selected") == "true"
    page.keyboard.press("Enter")
    assert "Question 3 of 500" in page.inner_text("#question")
    page.keyboard.press("ArrowRight")
    assert "Question 4 of 500" in page.inner_text("#question")
    page.keyboard.press("Escape")
    assert not page.locator("#question").is_visible()
    page.keyboard.press("End")
    assert page.get_attribute("#list", "aria-activedescendant") == "item-499"
    assert page.locator("#item-499").is_visible()


def test_everything_to_press_or_choose_has_a_name(page):
    nameless = page.evaluate(
        """() => [...document.querySelectorAll('button, select, input, a, [role=img], table')]
        .filter((e) => !(e.getAttribute('aria-label') || e.labels?.length || e.textContent.trim()))
        .map((e) => e.outerHTML.slice(0, 80))"""
    )
    assert nameless == []


def test_only_what_is_in_sight_is_in_the_document(page):
    assert page.locator("#list .item").count() < 40
    page.evaluate("document.getElementById('list').scrollTop = 20000")
    page.wait_for_selector("#item-215")
    assert page.locator("#list .item").count() < 40


def contrast(page, selector):
    """Return WCAG's contrast of the first match's text and the background behind it."""
    return page.evaluate(
        """(selector) => {
        const light = (rgb) => { const [r, g, b] = rgb.map((v) => { v /= 255;
          return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
          return .2126 * r + .7152 * g + .0722 * b; };
        const parse = (text) => text.match(/[\\d.]+/g).map(Number);
        let node = document.querySelector(selector);
        const ink = parse(getComputedStyle(node).color);
        let paper = parse(getComputedStyle(node).backgroundColor);
        while (paper.length === 4 && paper[3] === 0) { node = node.parentElement;
          paper = parse(getComputedStyle(node).backgroundColor); }
        const [a, b] = [light(ink.slice(0, 3)), light(paper.slice(0, 3))];
        return (Math.max(a, b) + .05) / (Math.min(a, b) + .05); }""",
        selector,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(opened, scheme):
    page = opened(color_scheme=scheme)
    texts = ("h1", ".note", ".bar a", ".cell small", ".answer.right", ".answer.wrong", ".tags")
    found = {selector: contrast(page, selector) for selector in texts}
    assert min(found.values()) >= 4.5, found
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


def test_a_narrow_screen_scrolls_in_one_direction(opened):
    page = opened(viewport={"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    answer = page.locator("#list .item .answer").first
    box = answer.bounding_box()
    assert box["x"] + box["width"] <= 390
