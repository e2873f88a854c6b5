"""Any picture becomes upright 8-bit RGB, or an error that names it."""

import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvqa.config.errors import UserError
from medvqa.data import image as module
from medvqa.data.image import ImageBytes, ImageFile, check_decodes, image_id, load_rgb


def source(picture, file_format="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return ImageBytes("picture", buffer.getvalue())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"])
def test_every_mode_becomes_rgb_and_keeps_dark_left_of_bright(mode):
    grey = np.tile(np.linspace(0, 255, 32), (8, 1)).astype(np.uint8)
    if mode in ("I;16", "I"):
        picture = Image.fromarray(grey.astype(np.uint16) * 100)
        picture = picture if mode == "I;16" else picture.convert("I")
    else:
        picture = Image.fromarray(grey).convert(mode)
    loaded = load_rgb(source(picture, "TIFF" if mode == "I" else "PNG"))
    assert (loaded.mode, loaded.size) == ("RGB", (32, 8))
    pixels = np.asarray(loaded).mean(axis=(0, 2))
    assert pixels[:4].mean() < 40
    assert pixels[-4:].mean() > 210


def test_cmyk_becomes_rgb():
    loaded = load_rgb(source(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG"))
    red, green, blue = np.asarray(loaded).reshape(-1, 3).mean(axis=0)
    assert red > 200 > 60 > max(green, blue)


def test_sixteen_bits_are_scaled_and_not_cut():
    deep = np.array([[1000, 2000, 3000]], dtype=np.uint16)
    assert np.asarray(load_rgb(source(Image.fromarray(deep))))[0, :, 0].tolist() == [0, 128, 255]


def test_transparency_falls_on_black():
    picture = Image.new("RGBA", (2, 2), (255, 255, 255, 0))
    assert np.asarray(load_rgb(source(picture))).max() == 0


def test_the_camera_orientation_is_undone():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 270 degrees to show it
    assert load_rgb(source(Image.new("L", (6, 3)), "JPEG", exif=exif)).size == (3, 6)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read image .*none.png: No such file"):
        load_rgb(ImageFile(tmp_path / "none.png"))


@pytest.mark.parametrize("data", [b"", b"no image at all", None])
def test_a_broken_image_is_named(data):
    if data is None:
        noise = np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)
        data = source(Image.fromarray(noise), "JPEG").data[:800]
    with pytest.raises(UserError, match="image scan 7 is broken or no image: ") as caught:
        load_rgb(ImageBytes("scan 7", data))
    assert "object at 0x" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # about the damage itself
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "TIFF", "BMP", "DDS"])
def test_damaged_bytes_raise_nothing_but_user_errors(file_format):
    rng = np.random.default_rng(5)
    noise = Image.fromarray(rng.integers(0, 255, (24, 24, 3), dtype=np.uint8))
    whole = source(noise, file_format).data
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole[: int(rng.integers(1, len(whole) + 1))])
        for place in rng.integers(0, len(damaged), 4):
            damaged[place] = int(rng.integers(256))
        try:
            load_rgb(ImageBytes("damaged", bytes(damaged)))
        except UserError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_the_quick_check_says_what_decoding_would(file_format):
    rng = np.random.default_rng(6)
    noise = Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8))
    whole = source(noise, file_format).data
    answers = {True: 0, False: 0}
    for _ in range(300):
        damaged = bytearray(whole if rng.random() < 0.7 else whole[: int(rng.integers(len(whole)))])
        for place in rng.integers(0, len(damaged) + 1, rng.integers(3)):
            damaged[place : place + 1] = rng.bytes(1)
        picture = ImageBytes("damaged", bytes(damaged))
        decodes = []
        for look in (load_rgb, check_decodes):
            try:
                look(picture)
                decodes.append(True)
            except UserError:
                decodes.append(False)
        assert decodes[0] == decodes[1]
        answers[decodes[0]] += 1
    assert min(answers.values()) > 30


def test_pixels_without_a_value_are_refused():
    picture = Image.fromarray(np.array([[0, 1, np.nan]], dtype=np.float32))
    with pytest.raises(UserError, match="image picture has pixels that are NaN or infinite"):
        load_rgb(source(picture, "TIFF"))


def test_an_animation_is_refused():
    frames = [Image.new("L", (4, 4), value) for value in (0, 90, 200)]
    animated = source(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(UserError, match="image picture has 3 frames"):
        load_rgb(animated)


def test_too_many_pixels_are_refused_before_decoding(monkeypatch):
    monkeypatch.setattr(module, "MAX_PIXELS", 99)
    with pytest.raises(UserError, match="image picture has 100 pixels; the limit is 99"):
        load_rgb(source(Image.new("L", (10, 10))))


def test_equal_bytes_have_equal_ids():
    one, other = source(Image.new("L", (4, 4), 1)), source(Image.new("L", (4, 4), 2))
    assert image_id(one) == image_id(ImageBytes("elsewhere", one.data)) != image_id(other)


@pytest.mark.parametrize("size", [(1000, 2), (2, 1000)])
def test_a_picture_that_no_model_takes_is_refused_in_every_reading(size):
    picture = source(Image.new("L", size))
    for read in (load_rgb, check_decodes, module.image_size):
        with pytest.raises(UserError, match=r"image picture is \d+ x \d+ pixels; one side may be"):
            read(picture)
    assert load_rgb(source(Image.new("L", (400, 2)))).size == (400, 2)


def test_a_phones_picture_shows_its_first_frame():
    whole = Image.new("RGB", (80, 60), (90, 90, 90))
    preview = Image.new("RGB", (20, 15), (200, 0, 0))
    photo = source(whole, "MPO", save_all=True, append_images=[preview])
    assert load_rgb(photo).size == (80, 60)
    assert abs(int(np.asarray(load_rgb(photo)).mean()) - 90) < 3
    check_decodes(photo)


def test_a_pipe_or_a_device_is_refused_before_it_is_read(tmp_path):
    pipe = tmp_path / "a.png"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero"), tmp_path):
        with pytest.raises(UserError, match=r"cannot read image .*: it is no regular file"):
            ImageFile(path).read()


def test_a_file_above_the_limit_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    (tmp_path / "a.png").write_bytes(bytes(11))
    with pytest.raises(UserError, match="it has 11 bytes; the limit is 10"):
        ImageFile(tmp_path / "a.png").read()
