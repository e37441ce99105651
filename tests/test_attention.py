import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from diffsal_diffusers.errors import InputError
from diffsal_diffusers.media.attention import attention_statistics


def gaussian(height, width, x, y, sigma):
    rows, columns = np.mgrid[:height, :width]
    return np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * sigma**2)).astype(np.float32)


# Away from zero: a shift or a mirror image then changes the sums by no more than rounding.
maps = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.floats(0.0625, 1, width=32)
)


@pytest.mark.parametrize("scale", [1.0, 0.01, 1e-6, 1e30])
def test_gaussian_has_its_closed_forms(scale):
    statistics = attention_statistics(gaussian(300, 400, 170.25, 120.5, 20) * np.float32(scale))
    assert statistics.peak_x == 170 and statistics.peak_y in (120, 121)
    assert statistics.centroid_x == pytest.approx(170.25, abs=1e-3)
    assert statistics.centroid_y == pytest.approx(120.5, abs=1e-3)
    assert statistics.spread_px == pytest.approx(np.sqrt(2) * 20, rel=1e-4)
    assert statistics.entropy_bits == pytest.approx(np.log2(2 * np.pi * np.e * 20**2), rel=1e-4)


def test_one_pixel():
    saliency = np.zeros((5, 7), np.float32)
    saliency[3, 4] = 0.2
    assert attention_statistics(saliency) == (4, 3, 4, 3, 0, 0)


def test_flat_map():
    height, width = 6, 10
    statistics = attention_statistics(np.full((height, width), 0.3, np.float32))
    spread = np.sqrt((width**2 - 1) / 12 + (height**2 - 1) / 12)  # of two discrete uniform distributions
    assert statistics == pytest.approx((0, 0, 4.5, 2.5, spread, np.log2(height * width)), rel=1e-6)


def test_zeros_have_no_statistics():
    assert np.isnan(attention_statistics(np.zeros((4, 6), np.float32))).all()


@pytest.mark.parametrize(
    "saliency", [np.zeros(3), np.zeros((0, 4)), np.array([[0.1, -0.1]]), np.array([[np.nan]]), np.array([[np.inf]])]
)
def test_what_is_no_map_is_refused(saliency):
    with pytest.raises(InputError):
        attention_statistics(saliency)


@settings(max_examples=50, deadline=None)
@given(maps, st.integers(0, 9), st.integers(0, 9))
def test_shifting_the_map_shifts_the_places_only(saliency, right, down):
    shifted = attention_statistics(np.pad(saliency, [(down, 0), (right, 0)]))
    original = attention_statistics(saliency)
    expected = np.add(original, [right, down, right, down, 0, 0])
    np.testing.assert_allclose(shifted, expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(maps)
def test_transposing_the_map_swaps_the_axes(saliency):
    one, other = attention_statistics(saliency), attention_statistics(saliency.T)
    swapped = [other.centroid_y, other.centroid_x, other.spread_px, other.entropy_bits]
    np.testing.assert_allclose(one[2:], swapped, rtol=1e-5, atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(maps)
def test_statistics_stay_in_their_ranges(saliency):
    height, width = saliency.shape
    statistics = attention_statistics(saliency)
    assert saliency[int(statistics.peak_y), int(statistics.peak_x)] == saliency.max()
    assert -1e-6 <= statistics.centroid_x <= width - 1 + 1e-6 and -1e-6 <= statistics.centroid_y <= height - 1 + 1e-6
    assert 0 <= statistics.spread_px <= np.hypot(width - 1, height - 1) + 1e-6
    assert 0 <= statistics.entropy_bits <= np.log2(saliency.size) + 1e-5
