"""`medvqa demo RUN`: a page on 127.0.0.1 to drop images in, ask, and see how far to trust it."""

import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from medvqa.config.command_line import CommandParser
from medvqa.config.errors import UserError
from medvqa.config.model import Device
from medvqa.evaluation.phase_scores import read_evaluations
from medvqa.export.card import results
from medvqa.models.trained import Trained
from medvqa.serve.answering import Answerer
from medvqa.serve.command import listening
from medvqa.serve.errors import require
from medvqa.serve.intake import Intake, Limits
from medvqa.serve.tool import Specialist, in_process

if TYPE_CHECKING:
    import gradio

HOST = "127.0.0.1"
PORT = 7860
HOSTS = [HOST, "localhost"]
# Fonts of the system: Gradio's own themes fetch theirs from the network.
FONTS = ["system-ui", "sans-serif"]
CSS = """
.notice { border-left: 4px solid #b45309; padding: 0.6em 1em; background: #fef3c7; color: #451a03; }
.notice b { color: inherit; }
"""
NOTICE = (
    '<div class="notice"><b>Research software, not a medical device.</b> No answer on this page '
    "is a diagnosis. None may be used in the care of a patient.</div>"
)


def page(trained: Trained, specialist: Specialist) -> "gradio.Blocks":
    """Return the page of one model."""
    import gradio

    def ask(query: str, gallery: list[tuple[str, str | None]] | None) -> str:
        paths = [path for path, _ in gallery or []]
        return specialist.great_brain_specialist(query, paths)

    model = trained.model.name
    blocks: gradio.Blocks
    with gradio.Blocks(title=f"medvqa: {trained.name}", analytics_enabled=False) as blocks:
        gradio.HTML(f"<h1>{escape(trained.name)}</h1><p>{escape(model)}, fine-tuned by medvqa</p>")
        gradio.HTML(NOTICE)
        with gradio.Row():
            with gradio.Column():
                gradio.HTML("Images, in the order in which the question speaks of them")
                images = gradio.Gallery(
                    label="Images",
                    show_label=False,
                    file_types=["image"],
                    sources=["upload", "clipboard"],
                    height=320,
                    object_fit="contain",
                    buttons=[],
                )
            with gradio.Column():
                query = gradio.Textbox(
                    label="Question", placeholder="Is there a pneumothorax?", lines=2
                )
                button = gradio.Button("Ask", variant="primary")
                # Text, never HTML: a model's answer is untrusted input too.
                answer = gradio.Textbox(label="Answer", lines=5, interactive=False)
        gradio.Markdown(
            "## How well it answers\n\nMean [95 % interval over images] n = questions\n\n"
            + results(read_evaluations(trained.directory))
        )
        for trigger in (button.click, query.submit):
            trigger(ask, [query, images], answer, concurrency_limit=1, api_visibility="private")
    return blocks


def launch(blocks: "gradio.Blocks", *, port: int, max_image_bytes: int) -> str:
    """Serve the page here only, in a thread, and return its address.

    No analytics, no share link, nothing fetched from elsewhere.

    Raises:
        UserError: If the port is taken.
    """
    import gradio
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    try:
        _, address, _ = blocks.queue().launch(
            server_name=HOST,
            server_port=port,
            prevent_thread_lock=True,
            quiet=True,
            share=False,
            enable_monitoring=False,
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            footer_links=[],
            max_file_size=max_image_bytes,
            theme=gradio.themes.Default(font=FONTS, font_mono=["monospace"]),
            css=CSS,
            # Else a web page could reach it through a name that it lets point to 127.0.0.1.
            app_kwargs={"middleware": [Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)]},
        )
    except OSError as error:
        raise UserError(f"port {port} is not free; give another with --port") from error
    return str(address)


def main_demo(argv: Sequence[str]) -> None:
    """Open a page to ask a finished run or an export about images."""
    parser = CommandParser(main_demo, {"medvqa demo outputs/RUN": f"at http://{HOST}:{PORT}"})
    add = parser.group("model")
    add("run", type=Path, help="a finished run, or an export of one")
    add("--base", metavar="DIR", help="the base's own weights, in place of the hub")
    add("--device", choices=[d.value for d in Device], default="auto", help="default auto")
    add = parser.group("page")
    add("--port", type=int, default=PORT, help=f"of the page (default {PORT})")
    options = parser.parse_args(argv)
    require("gradio")
    with listening(HOST, options.port):  # before the model is loaded
        pass
    # Gradio imports matplotlib, which an unknown name of a backend prevents.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", MPLBACKEND="agg")
    answerer = Answerer.of_run(options.run, device=Device(options.device), base=options.base)
    limits = Limits()
    # Uploads lie here and are gone with the process.
    with tempfile.TemporaryDirectory(prefix="medvqa-demo-") as uploads:
        os.environ["GRADIO_TEMP_DIR"] = uploads
        specialist = in_process(Intake([Path(uploads)], limits), answerer)
        blocks = page(answerer.trained, specialist)
        address = launch(blocks, port=options.port, max_image_bytes=limits.max_image_bytes)
        sys.stdout.write(f"{answerer.name} answers at {address} (Ctrl-C ends it)\n")
        sys.stdout.flush()
        # The default of SIGTERM would leave the uploads behind.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        blocks.block_thread()
