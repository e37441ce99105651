"""The metrics against the field's code, pysaliency, loops written from the definitions, and their own properties."""

import importlib.util
import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from diffsal_diffusers import metrics
from diffsal_diffusers.errors import InputError
from diffsal_diffusers.metrics import (
    METRICS,
    auc_judd,
    auc_shuffled,
    cc,
    information_gain,
    kl_divergence,
    nss,
    sim,
)

FIXTURES = Path(__file__).parent / "fixtures"
WITH_DENSITY = [cc, sim, kl_divergence]
NAN = pytest.approx(np.nan, nan_ok=True)


def random_maps(batch=3, height=24, width=32, seed=0, dtype=torch.float64):
    """Inputs of all metrics by name; the prediction knows something about where the fixations are."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, height, width)
    density = torch.rand(shape, generator=generator, dtype=torch.float64) ** 4
    prediction = density + torch.rand(shape, generator=generator, dtype=torch.float64)
    chances = torch.rand(shape, generator=generator, dtype=torch.float64)
    return {
        "prediction": prediction.to(dtype),
        "density": density.to(dtype),
        "fixations": chances < 0.1 * density,
        "negatives": torch.rand(shape, generator=generator) < 0.1,
        "baseline": torch.rand(height, width, generator=generator, dtype=torch.float64).to(dtype),
    }


def score(name, maps):
    """One metric of the maps, with a seed where it draws."""
    more = {"generator": torch.Generator().manual_seed(0)} if name == "auc_shuffled" else {}
    return METRICS[name].function(maps["prediction"], *(maps[need] for need in METRICS[name].needs), **more)


def auc_judd_by_loop(values, fixated):
    """The definition, threshold by threshold."""
    thresholds = sorted(values[fixated].tolist(), reverse=True)
    curve = [(0.0, 0.0)]
    for i, threshold in enumerate(thresholds, 1):
        above = sum(value >= threshold for value in values.ravel().tolist())
        curve.append(((above - i) / (values.size - len(thresholds)), i / len(thresholds)))
    return area([*curve, (1.0, 1.0)])


def auc_by_step(values, positives, negatives, step=0.1):
    """The ROC area of two lists of places (indices) in the scaled map, thresholds from its maximum down to zero."""
    values = (values.ravel() - values.min()) / (values.max() - values.min())
    curve = [(0.0, 0.0)]
    for threshold in np.arange(round(1 / step), -1, -1) * step:
        curve.append(((values[negatives] >= threshold).mean(), (values[positives] >= threshold).mean()))
    return area([*curve, (1.0, 1.0)])


def area(curve):
    return sum((x1 - x0) * (y0 + y1) / 2 for (x0, y0), (x1, y1) in pairwise(curve))


# --- the field's evaluation code ---


@pytest.fixture(scope="module")
def field():
    """Six cases of (prediction, fixations, density) and what the field's evaluation code gives for them."""
    with np.load(FIXTURES / "metrics_cases.npz") as arrays:
        cases = [[arrays[f"{name}{case}"] for name in ("pred", "fix", "dens")] for case in range(6)]
    return list(zip(cases, json.loads((FIXTURES / "metrics_expected.json").read_text()), strict=True))


@pytest.mark.parametrize("case", range(6))
def test_agrees_with_the_fields_code(field, case):
    (values, *others), expected = field[case]
    prediction, fixations, density = (torch.from_numpy(array)[None] for array in (values, *others))
    assert cc(prediction, density).item() == pytest.approx(expected["cc"], rel=0, abs=1e-6)
    assert sim(prediction, density).item() == pytest.approx(expected["sim"], rel=0, abs=1e-6)
    assert auc_judd(prediction, fixations).item() == pytest.approx(expected["auc_judd"], rel=0, abs=1e-6)
    # The field's code kept the mean of these maps in float32, which moves NSS by up to 4e-6: ours is moved as much.
    rounding = (values.mean(dtype=np.float64) - float(values.mean())) / values.std(dtype=np.float64)
    assert abs(rounding) < 4e-6
    assert nss(prediction, fixations).item() + rounding == pytest.approx(expected["nss"], rel=0, abs=1e-6)


def pysaliency_file(name):
    """One file of pysaliency on its own: the package asks for parts of setuptools that newer ones lack."""
    package = importlib.util.find_spec("pysaliency")
    if package is None:
        pytest.skip("needs pysaliency")
    path = Path(package.submodule_search_locations[0]) / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"pysaliency_{name}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("seed", range(3))
def test_agrees_with_pysaliency(seed):
    theirs = pysaliency_file("metrics")
    maps = random_maps(batch=1, seed=seed)
    p, d = (maps[name][0].numpy() for name in ("prediction", "density"))
    rows, columns = maps["fixations"][0].nonzero().unbind(1)
    assert cc(maps["prediction"], maps["density"]).item() == pytest.approx(theirs.CC(p, d), abs=1e-12)
    assert nss(maps["prediction"], maps["fixations"]).item() == pytest.approx(
        theirs.NSS(p, columns, rows).mean(), abs=1e-12
    )
    assert kl_divergence(maps["prediction"], maps["density"]).item() == pytest.approx(
        theirs.MIT_KLDiv(p, d), abs=1e-12
    )
    # pysaliency's SIM takes the maps as densities; the MIT benchmark's, and ours, move their minimum to zero first.
    expected = theirs.SIM(p - p.min(), d - d.min())
    assert sim(maps["prediction"], maps["density"]).item() == pytest.approx(expected, abs=1e-12)


def test_auc_agrees_with_pysaliency():
    theirs = pysaliency_file("numba_utils")
    maps = random_maps(batch=1)
    p, fixated = maps["prediction"][0].numpy(), maps["fixations"][0].numpy()
    others = p[~fixated]
    exact = np.mean([theirs.auc_for_one_positive(value, others) for value in p[fixated]])
    # The exact curve is a staircase; the field's goes straight between its points, which adds half a stair's height.
    added = (others >= p[fixated].min()).mean() / (2 * fixated.sum())
    assert auc_judd(maps["prediction"], maps["fixations"]).item() == pytest.approx(exact + added, abs=1e-12)


# --- definitions ---


@pytest.mark.parametrize("levels", [2, 5, 256, 2**40])
def test_auc_judd_is_the_loop_over_thresholds(levels):
    """Also with ties among the fixated pixels, and between them and others."""
    maps = random_maps(batch=4)
    prediction = (maps["prediction"] / 2 * levels).floor()
    expected = [auc_judd_by_loop(*pair) for pair in zip(prediction.numpy(), maps["fixations"].numpy(), strict=True)]
    np.testing.assert_allclose(auc_judd(prediction, maps["fixations"]), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("step", [0.1, 0.25, 0.01])
def test_auc_shuffled_with_few_negatives_is_the_loop_over_thresholds(step):
    """All negatives are used where there are no more of them than fixations: nothing is left to chance."""
    maps = random_maps(batch=4)
    fixations = maps["fixations"] | (maps["density"] > 0.6)
    negatives = maps["fixations"].roll(1, 0)
    assert (negatives.sum((1, 2)) < fixations.sum((1, 2))).all()
    expected = [
        auc_by_step(p, f.ravel().nonzero()[0], n.ravel().nonzero()[0], step)
        for p, f, n in zip(maps["prediction"].numpy(), fixations.numpy(), negatives.numpy(), strict=True)
    ]
    actual = auc_shuffled(maps["prediction"], fixations, negatives, num_splits=3, step=step)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-12)


def test_auc_shuffled_draws_without_replacement():
    """With one negative more than fixations each split leaves one of them out."""
    maps = random_maps(batch=1)
    values, fixated = maps["prediction"][0].numpy(), maps["fixations"][0].numpy().ravel().nonzero()[0]
    pool = np.random.default_rng(0).permutation(values.size)[: len(fixated) + 1]
    negatives = torch.zeros(values.size, dtype=torch.bool)
    negatives[pool] = True
    leave_one_out = [auc_by_step(values, fixated, np.delete(pool, i)) for i in range(len(pool))]
    negatives = negatives.view_as(maps["fixations"])
    single = [
        auc_shuffled(
            maps["prediction"], maps["fixations"], negatives, torch.Generator().manual_seed(i), num_splits=1
        ).item()
        for i in range(60)
    ]
    assert all(min(abs(value - np.array(leave_one_out))) < 1e-12 for value in single)
    assert len(set(np.round(single, 9))) > 3
    many = auc_shuffled(maps["prediction"], maps["fixations"], negatives, num_splits=20000)
    assert many.item() == pytest.approx(np.mean(leave_one_out), abs=5e-4)


def test_auc_shuffled_draws_from_all_negatives():
    """The mean over splits is that of draws made here with numpy's generator."""
    maps = random_maps(batch=1)
    values = maps["prediction"][0].numpy()
    fixated, pool = (maps[name][0].numpy().ravel().nonzero()[0] for name in ("fixations", "negatives"))
    assert len(pool) > 2 * len(fixated)
    rng = np.random.default_rng(0)
    draws = [auc_by_step(values, fixated, rng.choice(pool, len(fixated), replace=False)) for _ in range(2000)]
    actual = auc_shuffled(maps["prediction"], maps["fixations"], maps["negatives"], num_splits=20000)
    assert actual.item() == pytest.approx(np.mean(draws), abs=5 * np.std(draws) / np.sqrt(2000))


def test_auc_shuffled_thresholds_are_multiples_of_the_step():
    """The level 153 of an 8-bit map is 0.6 exactly, and reaches the threshold 0.6: 6 * 0.1 in floats is larger."""
    prediction = torch.tensor([[[0, 152, 153, 255]]], dtype=torch.uint8)
    fixated = torch.tensor([[[False, False, True, False]]])
    assert auc_shuffled(prediction, fixated, torch.tensor([[[0, 1, 0, 0]]])).item() == 1.0
    assert auc_shuffled(prediction, fixated, torch.tensor([[[0, 0, 1, 0]]])).item() == 0.5
    assert auc_shuffled(prediction, fixated, torch.tensor([[[0, 1, 0, 0]]]), step=0.5).item() == 0.5


def test_auc_shuffled_follows_its_generator():
    maps = random_maps()
    arguments = maps["prediction"], maps["fixations"], maps["negatives"]
    first, again, other = (auc_shuffled(*arguments, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.manual_seed(1)
    assert torch.equal(auc_shuffled(*arguments), first)
    generator = torch.Generator().manual_seed(1)
    one_by_one = [auc_shuffled(*(maps[i : i + 1] for maps in arguments), generator) for i in range(3)]
    assert torch.equal(torch.cat(one_by_one), first)


def test_information_gain_counts_bits():
    prediction = torch.tensor([[[4.0, 2.0], [1.0, 1.0]]])
    uniform = torch.ones(2, 2)
    for fixated, bits in (([1, 0, 0, 0], 1.0), ([0, 1, 0, 0], 0.0), ([0, 0, 1, 0], -1.0), ([1, 1, 0, 0], 0.5)):
        fixations = torch.tensor(fixated).view(1, 2, 2)
        assert information_gain(prediction, fixations, uniform).item() == pytest.approx(bits, abs=1e-12)
        assert information_gain(prediction, fixations, 7 * uniform[None]).item() == pytest.approx(bits, abs=1e-12)
        assert information_gain(prediction, fixations, prediction).item() == 0


def test_best_scores():
    maps = random_maps()
    density, fixations = maps["density"], maps["fixations"]
    torch.testing.assert_close(cc(density, density), torch.ones(3).double())
    torch.testing.assert_close(cc(-density, density), -torch.ones(3).double())
    torch.testing.assert_close(sim(density, density), torch.ones(3).double())
    torch.testing.assert_close(kl_divergence(density, density), torch.zeros(3).double(), atol=1e-12, rtol=0)
    best = density + 10 * fixations
    assert (auc_judd(best, fixations) == 1).all() and (auc_shuffled(best, fixations, fixations.roll(1, 0)) > 0.9).all()
    one, other = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)
    one[0, 0, 0] = other[0, 1, 1] = 1
    assert sim(one, other).item() == 0 and kl_divergence(one, other).item() == pytest.approx(36.04, abs=0.01)


# --- properties ---

levels = hnp.arrays(np.float64, (2, 4, 5), elements=st.integers(0, 255).map(float))
marks = hnp.arrays(np.bool_, (2, 4, 5))
property_test = settings(max_examples=60, deadline=None)


@property_test
@given(levels, levels, marks, st.floats(0.01, 100), st.floats(-50, 50))
def test_a_positive_affine_change_does_not_matter(prediction, density, fixations, scale, shift):
    prediction, density, fixations = map(torch.from_numpy, (prediction, density, fixations))
    changed = scale * prediction + shift
    for function, other in ((cc, density), (sim, density), (nss, fixations)):
        torch.testing.assert_close(
            function(changed, other), function(prediction, other), atol=1e-9, rtol=0, equal_nan=True
        )
    for function in WITH_DENSITY:
        torch.testing.assert_close(
            function(prediction, scale * density), function(prediction, density), atol=1e-9, rtol=0, equal_nan=True
        )
    torch.testing.assert_close(
        kl_divergence(scale * prediction, density),
        kl_divergence(prediction, density),
        atol=1e-9,
        rtol=0,
        equal_nan=True,
    )


@property_test
@given(levels, marks)
def test_auc_judd_sees_the_order_only(prediction, fixations):
    prediction, fixations = torch.from_numpy(prediction), torch.from_numpy(fixations)
    expected = auc_judd(prediction, fixations)
    for changed in (torch.exp(prediction / 50), prediction**3 - 1000, prediction.float(), prediction.byte()):
        assert torch.equal(auc_judd(changed, fixations).nan_to_num(9), expected.nan_to_num(9))


@property_test
@given(levels, levels, marks, marks, st.permutations(range(20)))
def test_scores_stay_in_their_ranges(prediction, density, fixations, negatives, order):
    prediction, density, fixations, negatives = map(torch.from_numpy, (prediction, density, fixations, negatives))

    def within(scores, lowest, highest):
        scores = scores[~scores.isnan()]
        return ((scores >= lowest - 1e-9) & (scores <= highest + 1e-9)).all()

    assert within(cc(prediction, density), -1, 1)
    assert within(sim(prediction, density), 0, 1)
    assert within(kl_divergence(prediction, density), 0, 36.05)
    assert within(nss(prediction, fixations), -np.sqrt(20), np.sqrt(20))
    assert within(auc_shuffled(prediction, fixations, negatives, num_splits=3), 0, 1)
    without_ties = torch.tensor(order, dtype=torch.float64).view(1, 4, 5)
    assert within(auc_judd(without_ties, fixations[:1]), 0, 1)


@pytest.mark.parametrize("name", METRICS)
def test_batch_is_its_maps(name):
    maps = random_maps(batch=4)
    scores = score(name, maps)
    assert scores.shape == (4,) and scores.dtype == torch.float64 and scores.isfinite().all()
    assert len(scores.unique()) == 4
    empty = {key: value if value.ndim == 2 else value[:0] for key, value in maps.items()}
    assert score(name, empty).shape == (0,)
    if name != "auc_shuffled":  # draws one map after the other: see its own test
        singles = [score(name, {k: v if v.ndim == 2 else v[i : i + 1] for k, v in maps.items()}) for i in range(4)]
        torch.testing.assert_close(torch.cat(singles), scores, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", METRICS)
def test_computes_in_float64_whatever_the_input(name, dtype):
    maps = random_maps(dtype=dtype)
    exact = {key: value.double() if value.is_floating_point() else value for key, value in maps.items()}
    assert score(name, maps).dtype == torch.float64
    assert torch.equal(score(name, maps), score(name, exact))
    numbers = maps | {name: maps[name].to(dtype) for name in ("fixations", "negatives")}
    assert torch.equal(score(name, numbers), score(name, exact))


@pytest.mark.parametrize("scale", [1e-40, 1e-6, 1e30])
@pytest.mark.parametrize("name", METRICS)
def test_unit_of_the_maps_does_not_matter(name, scale):
    maps = random_maps()
    scaled = maps | {key: maps[key] * scale for key in ("prediction", "density", "baseline")}
    torch.testing.assert_close(score(name, scaled), score(name, maps), rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", METRICS)
def test_gpu(name):
    maps = random_maps(dtype=torch.float32)
    scores = score(name, {key: value.cuda() for key, value in maps.items()})
    assert scores.is_cuda
    torch.testing.assert_close(scores.cpu(), score(name, maps), rtol=1e-9, atol=1e-9)


# --- maps without information ---


@pytest.mark.parametrize("value", [0.0, 0.3, 1e-30, 255.0])
def test_constant_prediction(value):
    maps = random_maps() | {"prediction": torch.full((3, 24, 32), value, dtype=torch.float32)}
    uniform = random_maps() | {"prediction": torch.ones(3, 24, 32)}
    for name, expected in (("cc", 0.0), ("nss", 0.0), ("auc_judd", 0.5), ("auc_shuffled", 0.5)):
        assert (score(name, maps) == expected).all()
    distribution = maps["density"] / maps["density"].sum((1, 2), keepdim=True)
    entropy = -(distribution * distribution.log()).sum((1, 2))
    torch.testing.assert_close(score("kl", maps), np.log(24 * 32) - entropy)
    assert (score("sim", maps) > 0).all()
    for name in METRICS:
        torch.testing.assert_close(score(name, maps), score(name, uniform), rtol=1e-12, atol=1e-12)


def test_sim_with_the_uniform_distribution():
    prediction = torch.tensor([[[0.0, 1.0], [1.0, 2.0]]])  # 0, 1/4, 1/4, 1/2
    for constant in (0.0, 5.0):
        assert sim(torch.full((1, 2, 2), constant), prediction).item() == pytest.approx(0.75)
    assert sim(prediction, torch.full((1, 2, 2), 5.0)).item() == pytest.approx(0.75)


@pytest.mark.parametrize("constant", [False, True])
@pytest.mark.parametrize("name", METRICS)
def test_frame_without_ground_truth_has_no_score(name, constant):
    """Nothing else in the batch is touched by it."""
    maps = random_maps()
    if constant:
        maps["prediction"] = torch.ones(3, 24, 32)
    expected = score(name, maps) if name != "auc_shuffled" else None
    for need in METRICS[name].needs:
        if need != "baseline":
            missing = maps | {need: maps[need].clone()}
            missing[need][2] = 0
            actual = score(name, missing)
            assert actual[2].isnan() and actual[:2].isfinite().all()
            if expected is not None:
                assert torch.equal(actual[:2], expected[:2])


def test_constant_density_has_no_correlation():
    density = torch.full((1, 4, 5), 0.3)
    prediction = torch.rand(1, 4, 5)
    assert cc(prediction, density).isnan() and cc(density, density).isnan()
    assert kl_divergence(density, density).item() == pytest.approx(0, abs=1e-12)
    assert sim(density, density).item() == pytest.approx(1)


def test_auc_judd_without_other_pixels():
    assert auc_judd(torch.rand(1, 4, 5), torch.ones(1, 4, 5)).isnan()
    assert auc_judd(torch.ones(1, 4, 5), torch.ones(1, 4, 5)).isnan()


# --- refused input ---


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", METRICS)
def test_broken_maps_are_refused(name, value):
    for broken in ("prediction", "density", "baseline"):
        if broken == "prediction" or broken in METRICS[name].needs:
            for dtype in (torch.float64, torch.float16):
                maps = random_maps(dtype=dtype)
                maps[broken].view(-1)[7] = value
                with pytest.raises(InputError, match=f"{broken}: got values from .*, right are finite ones only"):
                    score(name, maps)
    # Also where the frame has no score.
    maps = random_maps()
    maps["prediction"][0, 0, 0] = value
    for need in METRICS[name].needs:
        if need != "baseline":
            maps[need][:] = 0
    with pytest.raises(InputError, match="prediction: got values"):
        score(name, maps)


@pytest.mark.parametrize("name", METRICS)
def test_negative_values(name):
    maps = random_maps()
    for negative in {"density", "baseline"} & set(METRICS[name].needs):
        with pytest.raises(InputError, match=f"{negative}: got values from -0.5 to .*, right are none below 0"):
            score(name, maps | {negative: maps[negative] - maps[negative].min() - 0.5})
    below = maps | {"prediction": maps["prediction"] - 1}
    if name in ("kl", "information_gain"):
        with pytest.raises(InputError, match=r"prediction: got values from -.*, right are none below 0"):
            score(name, below)
    else:
        torch.testing.assert_close(score(name, below), score(name, maps))


@pytest.mark.parametrize("name", METRICS)
def test_shapes_are_checked(name):
    maps = random_maps()
    for need in set(METRICS[name].needs) - {"baseline"}:
        for wrong in (maps[need][0], maps[need][:1], maps[need][:, :-1], maps[need][:, None], maps[need].mT):
            message = f"prediction and {need}: got the shapes (3, 24, 32) and {tuple(wrong.shape)}, right is"
            with pytest.raises(InputError, match=re.escape(message)):
                score(name, maps | {need: wrong})
    flat = {key: value if key == "baseline" else value[0] for key, value in maps.items()}
    with pytest.raises(InputError, match=r"right is one shape \(b, h, w\) for both"):
        score(name, flat)
    none = {key: value[..., :0] for key, value in maps.items()}
    with pytest.raises(InputError, match=r"got the shapes \(3, 24, 0\)"):
        score(name, none)


@pytest.mark.parametrize("value", [2, -1, 0.5, 255, np.nan])
@pytest.mark.parametrize("name", ["nss", "auc_judd", "auc_shuffled", "information_gain"])
def test_fixations_are_zeros_and_ones(name, value):
    maps = random_maps()
    for need in {"fixations", "negatives"} & set(METRICS[name].needs):
        wrong = maps[need].double()
        wrong[1, 2, 3] = value
        with pytest.raises(InputError, match=f"{need}: got the value {float(value)}, right are 0 and 1 only"):
            score(name, maps | {need: wrong})


def test_other_mistakes():
    maps = random_maps()
    p, f, n = maps["prediction"], maps["fixations"], maps["negatives"]
    for baseline in (torch.ones(24, 31), torch.ones(1, 24, 32), torch.ones(3, 1, 24, 32)):
        with pytest.raises(InputError, match="baseline: got the shape"):
            information_gain(p, f, baseline)
    with pytest.raises(InputError, match="baseline: got a map of zeros"):
        information_gain(p, f, torch.zeros(24, 32))
    with pytest.raises(InputError, match="num_splits: got 0, right is at least 1"):
        auc_shuffled(p, f, n, num_splits=0)
    for step in (0, -0.1, 1.1, np.nan):
        with pytest.raises(InputError, match=r"step: got .*, right is more than 0 and at most 1"):
            auc_shuffled(p, f, n, step=step)


# --- gradients ---


@pytest.mark.parametrize("name", ["cc", "nss", "sim", "kl", "information_gain"])
def test_gradients(name):
    maps = random_maps(batch=2, height=4, width=5, seed=1)
    maps["fixations"][:, 1, 2] = maps["fixations"][:, 3, 1] = True
    prediction = maps["prediction"].requires_grad_()
    assert torch.autograd.gradcheck(lambda p: score(name, maps | {"prediction": p}), prediction)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.3])
@pytest.mark.parametrize("name", ["cc", "nss", "sim", "kl", "information_gain"])
def test_gradients_of_a_constant_prediction_are_finite(name, value, dtype):
    maps = random_maps()
    prediction = torch.full((3, 24, 32), value, dtype=dtype, requires_grad=True)
    (gradient,) = torch.autograd.grad(score(name, maps | {"prediction": prediction}).sum(), prediction)
    assert gradient.isfinite().all() and gradient.dtype == dtype
    if name in ("cc", "nss"):  # they lead away from it, to a better map
        better = maps | {"prediction": prediction.detach() + gradient}
        assert (score(name, better) > 0.1).all()


@pytest.mark.parametrize("name", ["cc", "nss", "sim", "kl", "information_gain"])
def test_frame_without_score_has_no_gradient(name):
    maps = random_maps()
    for need in METRICS[name].needs:
        if need != "baseline":
            maps[need][1] = 0
    prediction = maps["prediction"].requires_grad_()
    (gradient,) = torch.autograd.grad(score(name, maps).nanmean(), prediction)
    assert gradient.isfinite().all()
    assert (gradient[1] == 0).all() and (gradient[0] != 0).any() and (gradient[2] != 0).any()


# --- registry and modules ---


def test_registry():
    titles = {name: metric.title for name, metric in METRICS.items()}
    assert titles == {
        "cc": "CC",
        "nss": "NSS",
        "auc_judd": "AUC-J",
        "sim": "SIM",
        "kl": "KL",
        "auc_shuffled": "s-AUC",
        "information_gain": "IG",
    }
    maps = random_maps()
    worse = maps | {"prediction": maps["density"].max() - maps["density"]}
    better = maps | {"prediction": maps["density"]}
    for name, metric in METRICS.items():
        improves = score(name, better) > score(name, worse)
        assert (improves == metric.higher_is_better).all()


def test_functions_need_torch_only():
    """The package's own imports are left out of it: they take seconds and are not asked about here."""
    code = f"""
import sys, types
package = sys.modules["diffsal_diffusers"] = types.ModuleType("diffsal_diffusers")
package.__path__ = [{str(Path(metrics.__file__).parent.parent)!r}]
import diffsal_diffusers.metrics
print(*{{"torch", "torchmetrics", "diffusers", "transformers"}} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["torch"]


@pytest.fixture(scope="module")
def modules():
    """The module of each metric by its name."""
    pytest.importorskip("torchmetrics")
    from diffsal_diffusers.metrics import modules

    return {
        "cc": modules.CorrelationCoefficient,
        "nss": modules.NormalizedScanpathSaliency,
        "auc_judd": modules.AUCJudd,
        "sim": modules.Similarity,
        "kl": modules.KLDivergence,
        "auc_shuffled": modules.AUCShuffled,
        "information_gain": modules.InformationGain,
    }


def parts(maps, name, *ranges):
    """The inputs of a metric's module for ranges of the batch."""
    for part in ranges:
        yield {
            key: maps[key] if maps[key].ndim == 2 else maps[key][part] for key in ("prediction", *METRICS[name].needs)
        }


@pytest.mark.parametrize("name", METRICS)
def test_module_is_the_mean_of_its_maps(modules, name):
    """Parts of unequal sizes, and a map without a score: all scored maps weigh the same."""
    maps = random_maps(batch=5)
    maps[METRICS[name].needs[0]][3] = 0
    module = modules[name]()
    scores = []
    for inputs in parts(maps, name, slice(0, 1), slice(1, 5)):
        module.update(**inputs)
        scores.append(score(name, inputs))
    scores = torch.cat(scores)
    assert scores.isnan().tolist() == [False, False, False, True, False]
    assert module.compute().item() == pytest.approx(scores.nanmean().item(), abs=1e-12)
    assert module.compute().dtype == torch.float64
    assert (module.higher_is_better, module.count) == (METRICS[name].higher_is_better, 4)
    module.reset()
    inputs = next(parts(maps, name, slice(1, 2)))
    assert module(**inputs).item() == score(name, inputs).item() == module.compute().item()
    module.half()  # as a model that holds it may be; its sums stay exact
    assert module.compute().dtype == torch.float64


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("name", METRICS)
def test_module_without_scores(modules, name):
    module = modules[name]()
    assert module.compute().item() == NAN
    maps = random_maps()
    maps[METRICS[name].needs[0]][:] = 0
    module.update(**next(parts(maps, name, slice(3))))
    assert module.compute().item() == NAN


@pytest.mark.parametrize("name", METRICS)
def test_module_is_differentiable_as_declared(modules, name):
    maps = random_maps()
    maps["prediction"].requires_grad_()
    value = modules[name]()(**next(parts(maps, name, slice(3))))
    assert modules[name].is_differentiable is value.requires_grad is (name not in ("auc_judd", "auc_shuffled"))


@pytest.mark.parametrize("name", METRICS)
def test_module_gathers_processes(modules, name):
    """Two processes with unequal numbers of maps; their states are exchanged here as torch.distributed would."""
    maps = random_maps(batch=5)
    here, there, whole = (modules[name]() for _ in range(3))
    first, second = parts(maps, name, slice(0, 1), slice(1, 5))
    here.update(**first)
    there.update(**second)
    for inputs in (first, second):
        whole.update(**inputs)
    expected = whole.compute().item()
    merged = modules[name]()
    merged.update(**first)
    merged.merge_state(there)
    assert merged.compute().item() == pytest.approx(expected, abs=1e-12)

    sent = {torch.float64: there.total, torch.int64: there.count}
    gathering = modules[name](
        dist_sync_fn=lambda state, group: [state, sent[state.dtype]], distributed_available_fn=lambda: True
    )
    gathering.update(**first)
    assert gathering.compute().item() == pytest.approx(expected, abs=1e-12)
    assert gathering.count == 1  # its own again after the exchange


def test_shuffled_module_takes_its_settings(modules):
    maps = random_maps()
    inputs = next(parts(maps, "auc_shuffled", slice(3)))
    one, again, other = (modules["auc_shuffled"](seed=seed, num_splits=5, step=0.2) for seed in (1, 1, 2))
    values = [module(**inputs).item() for module in (one, again, other)]
    expected = auc_shuffled(*inputs.values(), torch.Generator().manual_seed(1), num_splits=5, step=0.2).mean().item()
    assert values[0] == values[1] == pytest.approx(expected, abs=1e-12) and values[2] != values[0]
