"""The demo page in a real browser: images in, an answer out, nothing fetched from elsewhere."""

import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import expect, sync_playwright

from medvqa.evaluation.phase_scores import read_evaluations
from medvqa.export.card import results
from medvqa.serve.tool import DISCLAIMER, EMPTY
from medvqa.tracking.record import read_lines
from tests.conftest import ROOT

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# Says on stderr whom the server calls; its own address is not counted.
WATCHED = """
import sys
def watch(event, arguments):
    if event == "socket.connect" and arguments[1][0] not in ("127.0.0.1", "localhost"):
        sys.stderr.write(f"CALLED {arguments[1]}\\n")
    if event == "socket.getaddrinfo" and arguments[0] not in (None, "127.0.0.1", "localhost"):
        sys.stderr.write(f"CALLED {arguments[0]}\\n")
sys.addaudithook(watch)
sys.argv[0] = "medvqa"
import medvqa.cli
medvqa.cli.main()
"""


@contextmanager
def demo(run: Path, uploads: Path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED, "demo", str(run), "--port", str(port)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "CUDA_VISIBLE_DEVICES": "",
            "TMPDIR": str(uploads),
            "MPLBACKEND": "nope",  # of the user; Gradio imports matplotlib
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert f"answers at http://127.0.0.1:{port}" in line, line + process.stderr.read()
        yield port, process
    finally:
        process.send_signal(signal.SIGTERM)
        _, process.log = process.communicate(timeout=60)


def answered(page) -> str:
    box = page.get_by_label("Answer")
    expect(box).not_to_have_value("", timeout=60_000)
    return box.input_value()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium (apt-get install chromium)")
def test_an_image_dropped_in_a_browser_is_answered_beside_metrics_and_disclaimer(
    shared, vqa_rad_run, tmp_path
):
    row = read_lines(vqa_rad_run / "evaluation" / "final" / "test" / "predictions.jsonl")[0]
    picture = shared / "data" / "vqa_rad" / "VQA_RAD Image Folder" / row["cluster"]
    with demo(vqa_rad_run, tmp_path) as (port, process), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        requested = []
        page.on("request", lambda request: requested.append(request.url))
        page.goto(f"http://127.0.0.1:{port}/")
        expect(page.get_by_text("Research software, not a medical device.")).to_be_visible()
        page.locator("input[type=file]").first.set_input_files(picture)
        expect(page.get_by_role("img").first).to_be_visible()
        page.get_by_label("Question").fill(row["question"])
        page.get_by_role("button", name="Ask").click()
        first, *_, last = answered(page).splitlines()
        assert first == (row["prediction"] or EMPTY)
        assert last == DISCLAIMER
        shown = page.locator("table").first.inner_text()
        score = read_evaluations(vqa_rad_run)[-1].summary["overall"]["exact_match"]
        assert (
            f"{score.mean:.3f} [{score.low:.3f}, {score.high:.3f}] n={score.num_examples}" in shown
        )
        assert "most frequent training answer" in shown
        browser.close()
        hosts = {urlsplit(url).netloc for url in requested if url.startswith("http")}
        assert hosts == {f"127.0.0.1:{port}"}
        assert list(tmp_path.glob("medvqa-demo-*/**/*.jpg"))
        stranger = httpx.get(f"http://127.0.0.1:{port}/", headers={"Host": "evil.example"})
        assert stranger.status_code == 400
    assert "CALLED" not in process.log
    assert not list(tmp_path.glob("medvqa-demo-*"))  # uploads are gone with the process


def test_a_run_without_evaluation_says_so():
    assert "nothing is known about its answers" in results([])
