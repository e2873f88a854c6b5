"""A DICOM file -> an 8-bit picture; `pydicom` is the extra `dicom`."""

import io
from typing import TYPE_CHECKING, Any

from medvqa.config.errors import UserError
from medvqa.data.pixels import windowed

if TYPE_CHECKING:
    from PIL import Image


def is_dicom(data: bytes) -> bool:
    """Return whether these are the bytes of a DICOM file."""
    return data[128:132] == b"DICM"


def read_header(data: bytes) -> Any:
    """Return the file's elements without its pixels.

    Raises:
        UserError: If pydicom is not installed, or the file has several frames or no picture.
    """
    try:
        import pydicom
    except ImportError:
        raise UserError('is DICOM, which needs pydicom: pip install -e ".[dicom]"') from None
    header = pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True)
    num_frames = int(header.get("NumberOfFrames", 1) or 1)
    if num_frames > 1:
        raise UserError(f"has {num_frames} frames; save the frame that the question is about")
    if not header.get("Rows") or not header.get("Columns"):
        raise UserError("is DICOM without a picture")
    return header


def open_dicom(data: bytes) -> "Image.Image":
    """Return the picture in grey or RGB.

    Grey values pass the file's own modality and window transformations; without a window they are
    windowed by their percentiles. MONOCHROME1, where low is bright, is inverted.
    """
    import pydicom
    from PIL import Image

    dataset = pydicom.dcmread(io.BytesIO(data))
    return Image.fromarray(_grey(dataset) if int(dataset.SamplesPerPixel) == 1 else _rgb(dataset))


def _grey(dataset: Any) -> Any:
    import numpy as np
    from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

    values = apply_modality_lut(dataset.pixel_array, dataset)
    if "WindowCenter" in dataset or "VOILUTSequence" in dataset:
        # The window maps to a range that follows from the bits; its ends map to the range's ends.
        ends = apply_voi_lut(np.array([-(2**31), 2**31 - 1]), dataset)
        pixels = windowed(apply_voi_lut(values, dataset), float(ends[0]), float(ends[1]))
    else:
        pixels = windowed(values)
    return 255 - pixels if dataset.PhotometricInterpretation == "MONOCHROME1" else pixels


def _rgb(dataset: Any) -> Any:
    values = dataset.pixel_array
    return values if values.dtype.itemsize == 1 else windowed(values, 0, 2**dataset.BitsStored - 1)
