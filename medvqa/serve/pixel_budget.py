"""Images in the size that the evaluator would have made of them, for foreign endpoints."""

import io
from typing import Any

from medvqa.config.model import ModelConfig
from medvqa.data.image import ImageBytes, load_rgb
from medvqa.models.source import load_processor


class PixelBudget:
    """The budget of a run, applied by the run's own image processor.

    A resized image is a multiple of the model's patches and within the budget, so an endpoint
    that resizes again with the same or a wider budget leaves it as it is.
    """

    def __init__(self, model: ModelConfig) -> None:
        self._images: Any = load_processor(model).image_processor

    def resized(self, image: ImageBytes) -> ImageBytes:
        """Return the image as the model sees it, as PNG."""
        from PIL import Image

        picture = load_rgb(image)
        grid = self._images(images=[picture], return_tensors="pt")["image_grid_thw"][0]
        height, width = (int(n) * self._images.patch_size for n in grid[1:])
        if (width, height) == picture.size:
            return image
        buffer = io.BytesIO()
        picture.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "PNG")
        return ImageBytes(image.name, buffer.getvalue())
