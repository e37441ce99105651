"""What a saliency map says about attention, in six numbers."""

from math import log, log2, nan, sqrt
from typing import NamedTuple

import numpy as np

from ..errors import InputError


class AttentionStatistics(NamedTuple):
    """Where a saliency map lies and how wide it is.

    Lengths are in pixels of the map, x to the right and y downwards, with the centre of the top left pixel at (0, 0).

    Args:
        peak_x: column of the largest value; the first in reading order where several are as large.
        peak_y: row of the largest value.
        centroid_x: mean column of the map, taken as a distribution.
        centroid_y: mean row.
        spread_px: root-mean-square distance from the centroid, the square root of the covariance's trace.
        entropy_bits: from 0 (all on one pixel) to log2(height * width) (a flat map).
    """

    peak_x: float
    peak_y: float
    centroid_x: float
    centroid_y: float
    spread_px: float
    entropy_bits: float


def attention_statistics(saliency: np.ndarray) -> AttentionStatistics:
    """Measure a saliency map `(height, width)`, values >= 0 in any unit: only their ratios count, except to `peak`.

    The map divided by its sum is the distribution p of attention over pixels, with the entropy -Σ p log2 p. A map of
    zeros has no distribution: all of its statistics are NaN.

    Raises:
        InputError: the map is not two-dimensional, is empty, or holds a negative or non-finite value.
    """
    if saliency.ndim != 2 or saliency.size == 0:
        raise InputError(f"a saliency map has the shape (height, width), got {saliency.shape}")
    peak = saliency.max()
    if not (saliency.min() >= 0 and np.isfinite(peak)):
        raise InputError(f"a saliency map holds finite values >= 0, got values from {saliency.min()} to {peak}")
    if peak == 0:
        return AttentionStatistics(nan, nan, nan, nan, nan, nan)

    peak_y, peak_x = np.unravel_index(saliency.argmax(), saliency.shape)
    weights = saliency / peak  # in [0, 1] whatever the map's unit, so that no sum over- or underflows
    centroid_x, variance_x = _mean_and_variance(weights.sum(axis=0, dtype=np.float64))
    centroid_y, variance_y = _mean_and_variance(weights.sum(axis=1, dtype=np.float64))

    # With p = weights / total, -Σ p log p = log total - Σ weights log weights / total: no second map is made. The
    # floor only keeps the logarithm of zero finite, its weight of zero takes it out of the sum.
    total = weights.sum(dtype=np.float64)
    logarithms = np.log(np.maximum(weights, np.finfo(weights.dtype).tiny))
    entropy = log2(total) - np.multiply(weights, logarithms, out=logarithms).sum(dtype=np.float64) / (total * log(2))
    # A rounding error must not make the entropy of a single pixel negative.
    return AttentionStatistics(
        float(peak_x), float(peak_y), centroid_x, centroid_y, sqrt(variance_x + variance_y), max(float(entropy), 0.0)
    )


def _mean_and_variance(marginal: np.ndarray) -> tuple[float, float]:
    """Mean and variance of the position along an axis, weighted by the map's sums over the other axis."""
    positions = np.arange(marginal.size)
    mean = np.average(positions, weights=marginal)
    return float(mean), float(np.average((positions - mean) ** 2, weights=marginal))
