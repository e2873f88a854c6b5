"""DICOM files of our own making: window, inversion, frames and sizes."""

import io

import numpy as np
import pytest

from medvqa.config.errors import UserError
from medvqa.data.image import ImageBytes, check_decodes, image_size, load_rgb

pydicom = pytest.importorskip("pydicom", reason='needs pydicom: pip install -e ".[dicom]"')


def encoded(pixels, **elements):
    """Return the bytes of a secondary capture with these pixels."""
    from pydicom.dataset import Dataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = Dataset()
    dataset.file_meta = meta
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    bits = 8 * pixels.dtype.itemsize
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit, dataset.PixelRepresentation = bits - 1, int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return ImageBytes("scan.dcm", buffer.getvalue())


HOUNSFIELD = np.array([[-1000, -160, 40, 240, 1000]], dtype=np.int16)


def grey(source):
    return np.asarray(load_rgb(source))[0, :, 0].astype(int).tolist()


def test_the_window_of_the_file_is_used():
    pixels = grey(encoded(HOUNSFIELD, WindowCenter=40, WindowWidth=400))
    assert pixels[0] == pixels[1] == 0
    assert abs(pixels[2] - 128) <= 1
    assert pixels[3] == pixels[4] == 255


def test_the_window_acts_on_rescaled_values():
    stored = (HOUNSFIELD + 1024).astype(np.uint16)
    window = {"WindowCenter": 40, "WindowWidth": 400}
    rescaled = encoded(stored, RescaleSlope=1, RescaleIntercept=-1024, **window)
    assert grey(rescaled) == grey(encoded(HOUNSFIELD, **window))


def test_a_window_wider_than_the_values_is_not_stretched():
    low = np.array([[0, 50, 100]], dtype=np.int16)
    assert max(grey(encoded(low, WindowCenter=500, WindowWidth=1000))) < 40


def test_low_is_bright_in_monochrome_1():
    window = {"WindowCenter": 40, "WindowWidth": 400}
    inverted = encoded(HOUNSFIELD, PhotometricInterpretation="MONOCHROME1", **window)
    assert grey(inverted) == [255 - value for value in grey(encoded(HOUNSFIELD, **window))]


def test_without_a_window_percentiles_decide():
    values = np.arange(1000, dtype=np.uint16).reshape(20, 50)
    pixels = np.asarray(load_rgb(encoded(values)))
    assert (pixels.min(), pixels.max()) == (0, 255)


def test_colours_stay():
    colours = np.zeros((4, 4, 3), dtype=np.uint8)
    colours[..., 0] = 200
    assert np.asarray(load_rgb(encoded(colours)))[0, 0].tolist() == [200, 0, 0]


def test_several_frames_and_too_many_pixels_are_refused_with_the_fix():
    frames = encoded(np.zeros((4, 4), dtype=np.uint8), NumberOfFrames=3)
    for read in (load_rgb, check_decodes, image_size):
        with pytest.raises(UserError, match=r"scan\.dcm has 3 frames; save the frame that"):
            read(frames)
    with pytest.raises(UserError, match=r"has 16 pixels; the limit is 9"):
        load_rgb(encoded(np.zeros((4, 4), dtype=np.uint8)), max_pixels=9)
    assert image_size(encoded(np.zeros((4, 6), dtype=np.uint8))) == (6, 4)


def test_a_damaged_file_is_a_user_error():
    whole = encoded(HOUNSFIELD).data
    with pytest.raises(UserError, match=r"scan\.dcm"):
        load_rgb(ImageBytes("scan.dcm", whole[:-4]))
