"""The field's metrics of a saliency map, as pure functions of batches of maps.

Each function takes a batch of predictions `(b, h, w)` and what people did on the same frames, and returns one float64
value per map `(b,)`, on the device of its input and computed in float64. What people did is a density, the continuous
map, or fixations, a map of 0 and 1 (or booleans) that says which pixels were looked at. The formulas follow Bylinskii
et al., "What do different evaluation metrics tell us about saliency models?" (2018), and the code of the MIT saliency
benchmark, so that scores compare with published ones. A prediction that is the same everywhere tells nothing, and a
frame on which nobody looked has no score:

    ==================  ===================================  =====================  =======================
    metric              constant prediction                  no score (NaN)         negative predictions
    ==================  ===================================  =====================  =======================
    cc                  0                                    constant density       taken as they are
    nss                 0                                    no fixations           taken as they are
    sim                 a uniform distribution               density of zeros       taken as they are
    kl_divergence       a uniform distribution, also zeros   density of zeros       refused
    auc_judd            0.5                                  no fixations, or       taken as they are
                                                             fixations everywhere
    auc_shuffled        0.5                                  no fixations, or       taken as they are
                                                             no negatives
    information_gain    a uniform distribution, also zeros   no fixations           refused
    ==================  ===================================  =====================  =======================

A density of zeros is constant too. Refused (`InputError`) are, by all metrics: maps of different sizes or not of the
shape `(b, h, w)`, and a NaN or an infinity anywhere, so that a broken model is never skipped in an average; negative
values in a density; fixations other than 0 and 1.

`cc`, `nss`, `sim`, `kl_divergence` and `information_gain` are differentiable in the prediction. Their gradients are
finite also where the prediction is constant, and zero where the score is NaN: `nanmean` makes a loss of them.
"""

from collections.abc import Callable
from math import floor, nan
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ..errors import InputError

EPSILON = 2.2204e-16  # as the MIT saliency benchmark writes Matlab's eps


def cc(prediction: Tensor, density: Tensor) -> Tensor:
    """Linear correlation coefficient, CC: cov(P, Q) / (σ(P) σ(Q)) over pixels (Bylinskii et al. 2018).

    Args:
        prediction: `(b, h, w)`, finite.
        density: `(b, h, w)`, >= 0.

    Returns:
        `(b,)` in [-1, 1], 1 being best; 0 for a constant prediction, NaN for a constant density.

    Raises:
        InputError: see the module.
    """
    prediction, density = _checked_prediction(prediction, density=density), _checked_density("density", density)
    predicted, _ = _standardised(prediction)
    true, constant = _standardised(density)
    return _nan_where(constant, (predicted * true).mean((1, 2)))


def nss(prediction: Tensor, fixations: Tensor) -> Tensor:
    """Normalized scanpath saliency, NSS: the mean of (P - μ(P)) / σ(P) over fixated pixels.

    Source: Bylinskii et al. 2018; Peters et al. 2005. σ is the population's standard deviation, as in the evaluation
    code of the audio-visual field; the Matlab code's is larger by the factor sqrt(n / (n - 1)) for n pixels.

    Args:
        prediction: `(b, h, w)`, finite.
        fixations: `(b, h, w)`, 0 or 1.

    Returns:
        `(b,)`, larger being better; 0 for a constant prediction, NaN without fixations.

    Raises:
        InputError: see the module.
    """
    prediction, fixations = _checked_prediction(prediction, fixations=fixations), _checked_fixations(fixations)
    predicted, _ = _standardised(prediction)
    return _mean_over_fixations(predicted, fixations)


def sim(prediction: Tensor, density: Tensor) -> Tensor:
    """Similarity, SIM: Σ min(P, Q), P and Q first scaled to [0, 1] by minimum and maximum, then to the sum 1.

    Source: Bylinskii et al. 2018; Judd et al. 2012; scaled as the MIT saliency benchmark does. A constant map is taken
    as the uniform distribution.

    Args:
        prediction: `(b, h, w)`, finite.
        density: `(b, h, w)`, >= 0.

    Returns:
        `(b,)` in [0, 1], 1 being best; NaN for a density of zeros.

    Raises:
        InputError: see the module.
    """
    prediction, density = _checked_prediction(prediction, density=density), _checked_density("density", density)
    shared = torch.minimum(_distribution(*_scaled(prediction)), _distribution(*_scaled(density)))
    return _nan_where(_all_zero(density), shared.sum((1, 2)))


def kl_divergence(prediction: Tensor, density: Tensor) -> Tensor:
    """Kullback-Leibler divergence, KL: Σ Q log(ε + Q / (ε + P)), P and Q scaled to the sum 1, ε = 2.2204e-16.

    Source: Bylinskii et al. 2018; in nats. A prediction of zeros is taken as the uniform distribution.

    Args:
        prediction: `(b, h, w)`, >= 0.
        density: `(b, h, w)`, >= 0.

    Returns:
        `(b,)`, 0 being best (ε times the number of pixels may be missing there) and 36.04 worst; NaN for a density of
        zeros.

    Raises:
        InputError: see the module; also for negative values in the prediction.
    """
    prediction = _checked_prediction(prediction, may_be_negative=False, density=density)
    density = _checked_density("density", density)
    predicted = _distribution(prediction, _all_zero(prediction))
    true = _distribution(density, _all_zero(density))
    divergence = (true * torch.log(EPSILON + true / (EPSILON + predicted))).sum((1, 2))
    return _nan_where(_all_zero(density), divergence)


def information_gain(prediction: Tensor, fixations: Tensor, baseline: Tensor) -> Tensor:
    """Information gain, IG: the mean of log2(ε + P) - log2(ε + B) over fixated pixels, P and B scaled to the sum 1.

    How many bits per fixation the prediction tells beyond the baseline B, as a rule a centre prior. Source: Bylinskii
    et al. 2018; Kümmerer et al. 2015; ε = 2.2204e-16. The prediction should be meant as a distribution; one of zeros
    is taken as the uniform one.

    Args:
        prediction: `(b, h, w)`, >= 0.
        fixations: `(b, h, w)`, 0 or 1.
        baseline: `(h, w)` for all maps or `(b, h, w)`, >= 0 and not of zeros only.

    Returns:
        `(b,)` in bits per fixation, larger being better, 0 as good as the baseline; NaN without fixations.

    Raises:
        InputError: see the module; also for negative values in the prediction, and a baseline of zeros.
    """
    prediction = _checked_prediction(prediction, may_be_negative=False, fixations=fixations)
    fixations = _checked_fixations(fixations)
    if baseline.shape not in (prediction.shape, prediction.shape[1:]):
        raise InputError(
            f"baseline: got the shape {tuple(baseline.shape)}, right is (h, w) or (b, h, w) of the prediction's "
            f"{tuple(prediction.shape)}"
        )
    baseline = _checked_density("baseline", baseline.expand_as(prediction))
    if _all_zero(baseline).any():
        raise InputError("baseline: got a map of zeros, which is no distribution, right is one with a positive value")
    predicted = _distribution(prediction, _all_zero(prediction))
    prior = _distribution(baseline, _all_zero(baseline))
    return _mean_over_fixations(torch.log2(EPSILON + predicted) - torch.log2(EPSILON + prior), fixations)


@torch.no_grad()
def auc_judd(prediction: Tensor, fixations: Tensor) -> Tensor:
    """Area under the ROC curve, AUC-Judd: how well the prediction tells fixated pixels from all others.

    Source: Bylinskii et al. 2018; Judd et al. 2009; AUC_Judd.m of the MIT saliency benchmark, without its jitter. The
    thresholds are the predictions at the n fixated pixels, from the largest: at the i-th the true positive rate is
    i / n, and the false positive rate (pixels at least as large - i) / (pixels - n). With (0, 0) and (1, 1) they make
    the curve, whose area is taken by trapezoids. Where fixated pixels share a value the published code counts their
    ties against the prediction: a map of few levels scores low, and can score below 0 if it is tiny.

    Args:
        prediction: `(b, h, w)`, finite; only the order of its values counts.
        fixations: `(b, h, w)`, 0 or 1.

    Returns:
        `(b,)`, 1 being best; 0.5 for a constant prediction, NaN without fixations or with fixations everywhere.

    Raises:
        InputError: see the module.
    """
    _check_shapes(prediction, fixations=fixations)
    if prediction.dtype not in (torch.float32, torch.float64):  # only the order counts: they are taken as they come
        prediction = prediction.double()
    _check_finite("prediction", prediction)
    fixations = _checked_fixations(fixations)
    scores = prediction.new_full(prediction.shape[:1], nan, dtype=torch.float64)
    for index, (values, fixated) in enumerate(zip(prediction, fixations, strict=True)):
        thresholds = values[fixated].sort().values  # (n,)
        n, others = len(thresholds), values.numel() - len(thresholds)
        if n == 0 or others == 0:
            continue
        if _is_constant(values):
            scores[index] = 0.5
            continue
        # A pixel reaches as many thresholds as bucketize says, so that n thresholds and no sorted map give all counts.
        reached = torch.bucketize(values.flatten(), thresholds, right=True, out_int32=True)
        above = torch.bincount(reached, minlength=n + 1).flip(0).cumsum(0)[:-1]  # (n,), the largest threshold first
        rank = torch.arange(1, n + 1, device=values.device)
        scores[index] = _area(rank.double() / n, (above - rank).double() / others)
    return scores


@torch.no_grad()
def auc_shuffled(
    prediction: Tensor,
    fixations: Tensor,
    negatives: Tensor,
    generator: Generator | None = None,
    num_splits: int = 100,
    step: float = 0.1,
) -> Tensor:
    """Shuffled AUC, s-AUC: how well the prediction tells this frame's fixations from those of other frames.

    The centre of the screen, where people look on any frame, gains nothing here. Source: Bylinskii et al. 2018; Zhang
    et al. 2008. It is computed in the published code's way, AUC_shuffled.m of the MIT saliency benchmark, so that
    scores compare with published ones: the prediction is scaled to [0, 1] by its minimum and maximum; each split draws
    as many negatives as there are fixations (all of them if they are fewer), without replacement, and sweeps the
    thresholds ..., 2 step, step, 0 over both; the areas, by trapezoids, are averaged over the splits. Another step
    gives other scores.

    Args:
        prediction: `(b, h, w)`, finite.
        fixations: `(b, h, w)`, 0 or 1.
        negatives: `(b, h, w)`, 0 or 1: the union of the fixations of the same video's other frames.
        generator: draws the negatives, on the CPU whatever the device of the maps, so that a seed gives one score; by
            default torch's own.
        num_splits: splits to average over.
        step: between thresholds, in (0, 1].

    Returns:
        `(b,)` in [0, 1], 1 being best; 0.5 for a constant prediction, NaN without fixations or without negatives.

    Raises:
        InputError: see the module; also for a generator of another device, no split, or a step out of its range.
    """
    if generator is not None and generator.device.type != "cpu":
        raise InputError(f"generator: got one of the device {generator.device}, right is one of the CPU")
    if num_splits < 1:
        raise InputError(f"num_splits: got {num_splits}, right is at least 1")
    if not 0 < step <= 1:
        raise InputError(f"step: got {step}, right is more than 0 and at most 1")
    prediction = _checked_prediction(prediction, fixations=fixations, negatives=negatives)
    fixations, negatives = _checked_fixations(fixations), _checked_fixations(negatives, "negatives")
    # Counted from both ends as Matlab does, whose 0.6 is 0.6 and not 6 * 0.1. The published code ends at the largest
    # value; thresholds beyond it add the point (0, 0) only, which is there already.
    count = floor(1 / step + 1e-9)
    thresholds = torch.linspace(count * step, 0, count + 1, dtype=torch.float64, device=prediction.device)  # (t,)
    scores = prediction.new_full(prediction.shape[:1], nan)
    for index, (values, fixated, negative) in enumerate(zip(prediction, fixations, negatives, strict=True)):
        positives, pool = values[fixated], values[negative]
        if len(positives) == 0 or len(pool) == 0:
            continue
        if _is_constant(values):
            scores[index] = 0.5
            continue
        lowest, highest = values.aminmax()
        number = min(len(positives), len(pool))
        orders = (torch.randperm(len(pool), generator=generator)[:number] for _ in range(num_splits))
        drawn = torch.stack(list(orders))  # num_splits drawn
        sampled = (pool[drawn.to(pool.device)] - lowest) / (highest - lowest)  # (num_splits, drawn)
        positives = (positives - lowest) / (highest - lowest)
        hits = (positives[:, None] >= thresholds).double().mean(0)  # (t,)
        false_alarms = (sampled[..., None] >= thresholds).double().mean(1)  # (num_splits, t)
        scores[index] = _area(hits.expand_as(false_alarms), false_alarms).mean()
    return scores


class SaliencyMetric(NamedTuple):
    """A metric as an evaluation needs it: `function(prediction, *(inputs of the names in needs))`.

    Args:
        function: one value per map, `(b,)`.
        title: the field's name, for tables.
        higher_is_better: the direction of better predictions.
        needs: the inputs after the prediction, in order, of "density", "fixations", "negatives" and "baseline".
    """

    function: Callable[..., Tensor]
    title: str
    higher_is_better: bool
    needs: tuple[str, ...]


METRICS = {
    "cc": SaliencyMetric(cc, "CC", True, ("density",)),
    "nss": SaliencyMetric(nss, "NSS", True, ("fixations",)),
    "auc_judd": SaliencyMetric(auc_judd, "AUC-J", True, ("fixations",)),
    "sim": SaliencyMetric(sim, "SIM", True, ("density",)),
    "kl": SaliencyMetric(kl_divergence, "KL", False, ("density",)),
    "auc_shuffled": SaliencyMetric(auc_shuffled, "s-AUC", True, ("fixations", "negatives")),
    "information_gain": SaliencyMetric(information_gain, "IG", True, ("fixations", "baseline")),
}


def _check_shapes(prediction: Tensor, **others: Tensor) -> None:
    """Refuses maps that are not of one shape `(b, h, w)` with at least one pixel."""
    for name, maps in others.items():
        if prediction.ndim != 3 or maps.shape != prediction.shape or 0 in prediction.shape[1:]:
            raise InputError(
                f"prediction and {name}: got the shapes {tuple(prediction.shape)} and {tuple(maps.shape)}, right is "
                "one shape (b, h, w) for both"
            )


def _check_finite(name: str, maps: Tensor, may_be_negative: bool = True) -> None:
    """Refuses NaN and infinity, and negative values where they have no meaning."""
    if len(maps) == 0:
        return
    lowest, highest = (bound.item() for bound in maps.detach().aminmax())  # a NaN anywhere makes both NaN
    if not (lowest > -torch.inf and highest < torch.inf):
        raise InputError(f"{name}: got values from {lowest} to {highest}, right are finite ones only")
    if lowest < 0 and not may_be_negative:
        raise InputError(f"{name}: got values from {lowest} to {highest}, right are none below 0")


def _checked_prediction(prediction: Tensor, may_be_negative: bool = True, **others: Tensor) -> Tensor:
    """The prediction in float64, once it is seen to be finite and of the others' shape."""
    _check_shapes(prediction, **others)
    prediction = prediction.double()
    _check_finite("prediction", prediction, may_be_negative)
    return prediction


def _checked_density(name: str, density: Tensor) -> Tensor:
    density = density.double()
    _check_finite(name, density, may_be_negative=False)
    return density


def _checked_fixations(fixations: Tensor, name: str = "fixations") -> Tensor:
    """The fixations as booleans."""
    if fixations.dtype == torch.bool:
        return fixations
    if not ((fixations == 0) | (fixations == 1)).all():
        other = fixations[(fixations != 0) & (fixations != 1)][0].item()
        raise InputError(f"{name}: got the value {other}, right are 0 and 1 only")
    return fixations.bool()


def _is_constant(values: Tensor) -> bool:
    lowest, highest = values.aminmax()
    return bool(lowest == highest)


def _all_zero(maps: Tensor) -> Tensor:
    """Which maps of a batch without negative values are zero everywhere, `(b,)`."""
    return maps.detach().amax((1, 2)) == 0


def _nan_where(missing: Tensor, values: Tensor) -> Tensor:
    return values.masked_fill(missing, nan)


def _scaled(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Maps scaled to [0, 1] by minimum and maximum, and which of them are constant, `(b,)`: those become zero.

    What is made of the maps does not change with their scale, so that no gradient needs to flow through it.
    """
    lowest = maps.amin((1, 2), keepdim=True)
    span = maps.detach().amax((1, 2), keepdim=True) - lowest.detach()
    return (maps - lowest) / span.masked_fill(span == 0, 1), span[:, 0, 0] == 0


def _standardised(maps: Tensor) -> tuple[Tensor, Tensor]:
    """Maps of mean 0 and population variance 1, and which of them are constant, `(b,)`: those become zero."""
    # The maps are scaled before their values are squared: the mean and the variance then suit maps of any unit.
    scaled, constant = _scaled(maps)
    centred = scaled - scaled.mean((1, 2), keepdim=True)
    variance = centred.square().mean((1, 2), keepdim=True)
    # The square root of a variance of zero would have no gradient, and a quotient by it no value.
    return centred / variance.masked_fill(constant[:, None, None], 1).sqrt(), constant


def _distribution(maps: Tensor, uniform: Tensor) -> Tensor:
    """Maps >= 0 scaled to the sum 1; those that `uniform` `(b,)` names become the uniform distribution."""
    maps = maps.masked_fill(uniform[:, None, None], 1)
    return maps / maps.sum((1, 2), keepdim=True)


def _mean_over_fixations(maps: Tensor, fixations: Tensor) -> Tensor:
    """Mean over the fixated pixels of each map, `(b,)`; NaN where there are none."""
    count = fixations.sum((1, 2))
    return _nan_where(count == 0, (maps * fixations).sum((1, 2)) / count.clamp(min=1))


def _area(true_positive_rate: Tensor, false_positive_rate: Tensor) -> Tensor:
    """Area under ROC curves `(..., points)` from the strictest threshold on, (0, 0) and (1, 1) being added."""
    hits, false_alarms = (
        F.pad(F.pad(x, (1, 0)), (0, 1), value=1.0) for x in (true_positive_rate, false_positive_rate)
    )
    return torch.trapezoid(hits, false_alarms, dim=-1)
