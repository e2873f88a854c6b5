"""Seeded nonsense in query and images: only typed results, nothing outside read, nobody called."""

import random
import re
import sys

import pytest
from PIL import Image

from medvqa.serve.errors import ErrorKind, ToolError
from medvqa.serve.intake import Intake, Limits
from medvqa.serve.tool import DISCLAIMER, build
from medvqa.serve.tool_config import ToolConfig
from tests.loopback import body, served
from tests.unit.serve.test_intake import PNG, data_url, encoded

NUM_CASES = 400
OUTSIDE = (255, 0, 255)  # the colour of the one picture that must never be read
TYPED = re.compile(rf"\[({'|'.join(kind.value for kind in ErrorKind)})\] .+", re.DOTALL)


@pytest.fixture
def place(tmp_path):
    inside = tmp_path / "allowed"
    (inside / "sub").mkdir(parents=True)
    (inside / "a.png").write_bytes(PNG)
    (inside / "sub" / "b.png").write_bytes(PNG)
    (tmp_path / "outside.png").write_bytes(encoded(Image.new("RGB", (8, 6), OUTSIDE)))
    (inside / "link.png").symlink_to(tmp_path / "outside.png")
    (inside / "up").symlink_to(tmp_path)
    return inside


def seeds(place, port):
    """Return what the mutations start from, good and bad."""
    outer = place.parent
    return [
        *("a.png", "sub/b.png", str(place / "a.png"), data_url(PNG), "None", "null", ""),
        *("link.png", "up/outside.png", "../outside.png", str(outer / "outside.png")),
        *(f"file://{outer}/outside.png", "/etc/passwd", "/dev/zero", "/proc/self/environ"),
        *(f"http://127.0.0.1:{port}/a.png", f"http://localhost:{port}/", f"//127.0.0.1:{port}/"),
        *(f"http://u:p@127.0.0.1:{port}/", f"http://[::ffff:127.0.0.1]:{port}/a.png"),
        *("http://169.254.169.254/latest/meta-data/", "gopher://127.0.0.1:6379/_FLUSHALL"),
        *("data:image/png;base64,", "data:text/html,<script>", "C:\\Windows\\win.ini", "~root"),
    ]


PIECES = [
    *("\0", "..", "/", "\\", "%2e%2e%2f", "?", "#", "@", ":", "[", "]", "\n", "\r\n", "\u202e"),
    *("\ud800", "\U0001f480", "a" * 5000, "%00", "<|im_end|>", "{x}", "%s", "$HOME", "`id`"),
    *(" ", "\t", "\x1b[31m", "http://", "file:", "data:image/png;base64,", "=", "\u2044"),
]


def mutated(text, rng):
    for _ in range(rng.randrange(4)):
        at = rng.randrange(len(text) + 1)
        change = rng.randrange(4)
        if change == 0:
            text = text[:at] + rng.choice(PIECES) + text[at:]
        elif change == 1:
            text = text[:at] + text[at + rng.randrange(1, 9) :]
        elif change == 2:
            text = text[:at] + chr(rng.randrange(0x11000)) + text[at + 1 :]
        else:
            text = text[at:] + text[:at]
    return text


def broken_picture(rng):
    """Return a PNG with some bytes changed, or bytes of any kind, as a data: URL."""
    data = bytearray(PNG if rng.random() < 0.8 else rng.randbytes(rng.randrange(200)))
    for _ in range(rng.randrange(4)):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
    return data_url(bytes(data), rng.choice(["png", "jpeg", "tiff", "gif", "x"]))


def case(place, port, rng):
    query = mutated(rng.choice(["Is there a fracture?", "", "x" * 3000, "<|im_start|>"]), rng)
    known = seeds(place, port)
    images = [
        broken_picture(rng) if rng.random() < 0.3 else mutated(rng.choice(known), rng)
        for _ in range(rng.randrange(5))
    ]
    odd = [None, images, [None, *images], {"images": images}, 7, [images], b"a.png", tuple(images)]
    weights = [1, 20, 1, 1, 1, 1, 1, 1]
    query = rng.choice([query] * 30 + [None, 7, b"bytes", [query]])
    return query, rng.choices(odd, weights)[0] if images else None


@pytest.mark.slow
def test_nonsense_gets_a_typed_result_reads_nothing_outside_and_calls_nobody(
    vqa_rad_run, place, capsys, caplog
):
    called, is_on = [], True

    def watch(event, arguments):
        if is_on and event in ("socket.connect", "subprocess.Popen", "os.system", "os.exec"):
            called.append((event, arguments))

    with served(body(PNG)) as server:
        specialist = build(
            ToolConfig(
                run=str(vqa_rad_run),
                allowed_roots=[str(place)],
                limits=Limits(max_query_chars=2000, max_images=3, max_image_bytes=5000),
            )
        )
        sys.addaudithook(watch)  # cannot be taken away, only told to do nothing
        rng = random.Random(6)
        answered, kinds = 0, set()
        for number in range(NUM_CASES):
            query, images = case(place, server.port, rng)
            text = specialist.great_brain_specialist(query, images)
            about = f"case {number}: {query!r:.200} {images!r:.400} -> {text!r}"
            assert isinstance(text, str), about
            assert len(text) < 1000, about
            assert "Traceback" not in text, about
            text.encode("utf-8")
            if text.endswith(DISCLAIMER):
                answered += 1
            else:
                found = TYPED.fullmatch(text)
                assert found, about
                kinds.add(found[1])
        is_on = False
        assert server.num_connections == 0
    assert called == []
    assert "internal_error" not in kinds
    # The nonsense is of many kinds, and some of it is good.
    assert answered > 20
    assert {"image_not_allowed", "image_missing", "image_unreadable", "query_empty"} <= kinds
    assert {"query_too_long", "too_many_images", "query_not_allowed"} <= kinds
    assert "Traceback" not in capsys.readouterr().err + caplog.text


@pytest.mark.slow
def test_mutated_paths_never_give_the_picture_outside(place):
    intake = Intake([place], Limits())
    rng = random.Random(7)
    paths = [seed for seed in seeds(place, 1) if "://" not in seed and "data:" not in seed]
    read = 0
    for _ in range(3000):
        reference = mutated(rng.choice(paths), rng)
        try:
            pictures = [image.load_rgb() for image in intake.accept("what?", [reference]).images]
        except ToolError:
            continue
        for picture in pictures:
            read += 1
            assert picture.getpixel((0, 0)) != OUTSIDE, reference
    assert read > 100
