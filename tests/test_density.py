"""The Gaussian that makes maps of fixations, against scipy's."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from diffsal_diffusers import InputError
from diffsal_diffusers.data import fixation_density, gaussian_blur

SCIPY_MODES = {"zero": "constant", "reflect": "reflect"}


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    sigma=st.floats(0.05, 30),
    border=st.sampled_from(sorted(SCIPY_MODES)),
    seed=st.integers(0, 2**32 - 1),
)
@example(height=1, width=3, sigma=30.0, border="reflect", seed=0)  # mirrored many times over
@example(height=5, width=7, sigma=0.1, border="zero", seed=0)  # no neighbour counts
def test_scipy_gives_the_same(height, width, sigma, border, seed):
    maps = np.random.default_rng(seed).random((height, width))
    expected = gaussian_filter(maps, sigma, mode=SCIPY_MODES[border])
    np.testing.assert_allclose(gaussian_blur(torch.from_numpy(maps), sigma, border), expected, atol=1e-12)
    blurred = gaussian_blur(torch.from_numpy(maps).float(), sigma, border)
    assert blurred.dtype == torch.float32
    np.testing.assert_allclose(blurred, expected, atol=1e-6)


def test_maps_of_a_batch_do_not_mix():
    maps = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    together = gaussian_blur(maps, 2.5, "reflect")
    assert together.shape == maps.shape
    for i in range(2):
        for j in range(3):
            expected = gaussian_filter(maps[i, j].double().numpy(), 2.5, mode="reflect")
            np.testing.assert_allclose(together[i, j], expected, atol=1e-6)


def test_gradients_pass_also_after_use_without():
    maps = torch.rand(6, 7, requires_grad=True)
    with torch.inference_mode():
        gaussian_blur(maps.detach(), 1.2345, "zero")
    gaussian_blur(maps, 1.2345, "zero")[3, 3].backward()
    assert maps.grad[3, 3] == maps.grad.max() > 0


def test_fixations_become_densities():
    looks = torch.zeros(60, 80, dtype=torch.bool)
    looks[30, 40] = looks[3, 77] = True
    density = fixation_density(looks, 4.0)
    assert density.dtype == torch.float32 and density.min() >= 0
    np.testing.assert_allclose(density, gaussian_filter(looks.numpy().astype(float), 4.0, mode="constant"), atol=1e-6)
    assert density[20:41, 30:51].sum() == pytest.approx(1, abs=0.05)  # the first one's neighbourhood
    assert 1 < density.sum() < 1.9  # what the second one loses beyond the corner
    counts = 3 * looks.int()
    torch.testing.assert_close(fixation_density(counts, 4.0), 3 * density)
    assert torch.equal(fixation_density(torch.zeros(4, 5), 1.0), torch.zeros(4, 5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(5), 1.0, "zero"), r"axes \(..., h, w\), got the shape \(5,\)"),
        ((torch.zeros(5, 5), 0.0, "zero"), "`sigma` must be a number of pixels above 0, got 0.0"),
        ((torch.zeros(5, 5), float("nan"), "zero"), "`sigma` must be"),
        ((torch.zeros(5, 5), 1.0, "constant"), "`border` must be one of zero, reflect, got 'constant'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        gaussian_blur(*arguments)
