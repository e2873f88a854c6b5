"""One slice of a NIfTI volume -> a PNG; `nibabel` is the extra `nifti`."""

import io
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from medvqa.config.errors import UserError, first_line
from medvqa.data.example import ImageSource
from medvqa.data.image import MAX_VOLUME_BYTES, ImageFile, file_fingerprint, read_regular
from medvqa.data.pixels import windowed

AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
NIFTI = re.compile(r"\.nii(\.gz)?(#[^/]*)?$", re.IGNORECASE)
SLICE = re.compile(r"(?:(sagittal|coronal|axial)=)?(\d+)")


@dataclass(frozen=True)
class NiftiSlice:
    """A slice such as `scan.nii.gz#40` or `scan.nii.gz#coronal=90`; without a name it is axial.

    Slices count from right, back and foot in the RAS+ orientation. The picture has the patient's
    right on its left and front or head up, as radiologists show it. Intensities are windowed by
    the percentiles of the slice.
    """

    path: Path

    @property
    def name(self) -> str:
        """The path with the slice."""
        return str(self.path)

    @property
    def _file(self) -> Path:
        return self.path.with_name(self.path.name.partition("#")[0])

    def read(self) -> bytes:
        """Return the slice as an 8-bit PNG.

        Raises:
            UserError: If the file is no volume, or the slice is not given or not there.
        """
        import numpy as np
        from PIL import Image

        try:
            axis, index = self._slice(_volume(self._file).shape)
            plane = np.take(_volume(self._file).dataobj, index, axis=axis)
            pixels = windowed(np.rot90(np.asarray(plane, dtype=np.float32)))
        except UserError as error:
            raise UserError(f"image {self.name}: {error}") from error
        except Exception as error:  # damaged files raise a dozen unrelated types
            reason = first_line(error)
            raise UserError(f"image {self.name} is broken or no volume: {reason}") from error
        buffer = io.BytesIO()
        Image.fromarray(pixels if axis == 0 else np.ascontiguousarray(pixels[:, ::-1])).save(
            buffer, "PNG", compress_level=1
        )
        return buffer.getvalue()

    def fingerprint(self) -> str | None:
        """Return what changes with the file, and the slice."""
        file = file_fingerprint(self._file)
        return None if file is None else f"{file}:{self.path.name}"

    def _slice(self, shape: tuple[int, ...]) -> tuple[int, int]:
        if len(shape) != 3:
            raise UserError(f"has the shape {shape}; save the one volume of three dimensions")
        stated = self.path.name.partition("#")[2]
        if not stated:
            if shape[2] == 1:
                return 2, 0
            raise UserError(
                f"has {shape[2]} axial slices; name the one that the question is about, such as "
                f"{self._file.name}#{shape[2] // 2} or {self._file.name}#coronal={shape[1] // 2}"
            )
        match = SLICE.fullmatch(stated)
        if match is None:
            raise UserError(f"#{stated} names no slice; write #40, #axial=40, #coronal=90")
        axis, index = AXES[match[1] or "axial"], int(match[2])
        if index >= shape[axis]:
            raise UserError(f"slice {index} is not there; it has {shape[axis]}")
        return axis, index


def image_file(path: Path) -> ImageSource:
    """Return the picture in a file; `scan.nii.gz#40` is slice 40 of a volume."""
    if NIFTI.search(path.name):
        return NiftiSlice(path)
    return ImageFile(path)


@lru_cache(maxsize=2)
def _loaded(path: Path, _state: str | None) -> Any:
    try:
        import nibabel
    except ImportError:
        raise UserError('a NIfTI volume needs nibabel: pip install -e ".[nifti]"') from None
    data = read_regular(path, MAX_VOLUME_BYTES)
    if data[:2] == b"\x1f\x8b":
        import gzip

        with gzip.open(io.BytesIO(data)) as file:
            data = file.read(MAX_VOLUME_BYTES + 1)
        if len(data) > MAX_VOLUME_BYTES:
            raise UserError(f"it has more than {MAX_VOLUME_BYTES:,} bytes when unpacked")
    to_canonical: Any = nibabel.as_closest_canonical
    return to_canonical(nibabel.Nifti1Image.from_bytes(data))


def _volume(path: Path) -> Any:
    """Return the volume in RAS+ orientation; the last two stay in memory."""
    return _loaded(path, file_fingerprint(path))
