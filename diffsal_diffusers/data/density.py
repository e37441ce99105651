"""From fixations to densities: the one Gaussian that smooths maps everywhere in this library."""

import math
from functools import lru_cache

import numpy as np
import torch

from ..errors import InputError

BORDERS = ("zero", "reflect")
TRUNCATE = 4.0  # standard deviations at which the Gaussian ends, as in scipy.ndimage


def gaussian_blur(maps: torch.Tensor, sigma: float, border: str) -> torch.Tensor:
    """Smooths maps with a Gaussian of sum one, as `scipy.ndimage.gaussian_filter` does.

    Args:
        maps: `(..., h, w)`, on any device; what is not floating point is taken as float32.
        sigma: standard deviation in pixels, above 0.
        border: what lies outside: `"zero"` nothing (scipy's `"constant"`), `"reflect"` the mirrored map, edge pixels
            doubled (scipy's `"reflect"`).

    Returns:
        `(..., h, w)`, of the input's floating dtype, else float32.

    Raises:
        InputError: `maps` has less than two axes, or an argument is out of range.
    """
    if maps.ndim < 2:
        raise InputError(f"`maps` must have the axes (..., h, w), got the shape {tuple(maps.shape)}")
    if not (math.isfinite(sigma) and sigma > 0):
        raise InputError(f"`sigma` must be a number of pixels above 0, got {sigma}")
    if border not in BORDERS:
        raise InputError(f"`border` must be one of {', '.join(BORDERS)}, got {border!r}")
    if not maps.is_floating_point():
        maps = maps.float()
    vertical, horizontal = (
        _gaussian_matrix(n, float(sigma), border, maps.dtype, maps.device) for n in maps.shape[-2:]
    )
    return vertical @ maps @ horizontal.mT  # ... h w


def fixation_density(fixations: torch.Tensor, sigma: float) -> torch.Tensor:
    """How densely people looked: fixations smoothed with a Gaussian; what falls outside the picture is lost.

    Args:
        fixations: `(..., h, w)`, boolean or how many looked at each pixel.
        sigma: standard deviation in pixels, usually one degree of the visual field.

    Returns:
        `(..., h, w)`, float32 (or the input's floating dtype), 0 or more; sums to at most the number of fixations.

    Raises:
        InputError: see [`gaussian_blur`].
    """
    return gaussian_blur(fixations, sigma, "zero")


@lru_cache(maxsize=32)
def _gaussian_matrix(n: int, sigma: float, border: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """`(n, n)`: row i holds the weights of the pixels that the smoothed pixel i is a sum of."""
    radius = int(TRUNCATE * sigma + 0.5)
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    weights /= weights.sum()
    matrix = np.zeros((n, n))
    for offset, weight in zip(offsets, weights, strict=True):
        rows = np.arange(n)
        columns = rows + offset
        if border == "reflect":
            columns = columns % (2 * n)
            columns = np.minimum(columns, 2 * n - 1 - columns)
        else:
            inside = (columns >= 0) & (columns < n)
            rows, columns = rows[inside], columns[inside]
        matrix[rows, columns] += weight  # each row once: nothing is added twice to one place
    with torch.inference_mode(False):  # it is kept, perhaps for a use that has gradients
        return torch.from_numpy(matrix).to(dtype).to(device)
