"""Windows of deep pixels: percentiles of the picture, or the bounds that a file states."""

import numpy as np
import pytest

from medvqa.config.errors import UserError
from medvqa.data.pixels import windowed


def test_one_hot_pixel_does_not_darken_the_rest():
    values = np.linspace(0, 1000, 10_000).reshape(100, 100)
    plain = windowed(values)
    values[0, 0] = 65_535
    assert np.abs(windowed(values).astype(int) - plain)[1:].max() <= 1


def test_a_few_marked_pixels_on_an_even_ground_stay_visible():
    values = np.zeros((100, 100))
    values[3, 3] = 7
    assert windowed(values)[3, 3] == 255


def test_given_bounds_clip_what_lies_outside():
    assert windowed(np.array([-500, -160, 40, 240, 900]), -160, 240).tolist() == [
        *(0, 0, 128, 255, 255)
    ]


def test_pixels_without_a_value_are_an_error():
    with pytest.raises(UserError, match="NaN or infinite"):
        windowed(np.array([1.0, np.inf]))
