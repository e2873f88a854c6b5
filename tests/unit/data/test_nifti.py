"""Slices of NIfTI volumes: which one, which way up, and what is refused."""

import io

import numpy as np
import pytest
from PIL import Image

from medvqa.config.errors import UserError
from medvqa.data.image import load_rgb
from medvqa.data.nifti import image_file

nibabel = pytest.importorskip("nibabel", reason='needs nibabel: pip install -e ".[nifti]"')


@pytest.fixture
def volume(tmp_path):
    """A volume whose right front upper octant is bright, stored left to right."""
    values = np.zeros((6, 8, 4), dtype=np.int16)
    values[3:, 4:, 2:] = 1000  # in RAS+, higher is right, front, head
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    return path


def pixels(path, name):
    return np.asarray(load_rgb(image_file(path.with_name(f"{path.name}#{name}"))))[..., 0]


def test_an_axial_slice_shows_the_right_side_left_and_the_front_up(volume):
    shown = pixels(volume, "3")
    assert shown.shape == (8, 6)
    bright = np.argwhere(shown > 128)
    assert bright.max(axis=0).tolist() == [3, 2]  # upper left quarter
    assert pixels(volume, "axial=0").max() == 0


def test_the_storage_order_does_not_change_the_picture(volume, tmp_path):
    stored = nibabel.load(volume)
    flipped = nibabel.Nifti1Image(np.asarray(stored.dataobj)[::-1], np.diag([-1, 1, 1, 1]))
    flipped.affine[0, 3] = 5
    nibabel.save(flipped, tmp_path / "flipped.nii")
    assert np.array_equal(pixels(volume, "3"), pixels(tmp_path / "flipped.nii", "3"))


def test_the_other_planes_have_the_head_up(volume):
    coronal, sagittal = pixels(volume, "coronal=6"), pixels(volume, "sagittal=4")
    assert coronal.shape == (4, 6)
    assert sagittal.shape == (4, 8)
    assert coronal[:2].max() == sagittal[:2].max() == 255
    assert coronal[2:].max() == sagittal[2:].max() == 0


def test_the_slice_is_a_png_like_any_other_picture(volume):
    image = image_file(volume.with_name("scan.nii.gz#2"))
    assert Image.open(io.BytesIO(image.read())).format == "PNG"
    assert image.read() == image.read()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scan.nii.gz", r"has 4 axial slices; name the one .*scan\.nii\.gz#2 or .*#coronal=4"),
        ("scan.nii.gz#9", "slice 9 is not there; it has 4"),
        ("scan.nii.gz#top", "#top names no slice; write #40"),
        ("none.nii#1", "none.nii#1: No such file"),
        ("text.nii#1", "broken or no volume"),
    ],
)
def test_what_is_no_slice_is_named_with_the_fix(volume, name, message):
    volume.with_name("text.nii").write_text("no volume" * 99)
    with pytest.raises(UserError, match=message):
        image_file(volume.with_name(name)).read()
