"""Means of the metrics over many maps, as `torchmetrics` modules that gather them over processes.

Each is a thin module over the function of `metrics.functional` whose inputs its `update` takes; a map without a score
(NaN) is not counted, and `compute` gives NaN where nothing was counted. All maps weigh the same: the mean over videos
of each video's mean is the mean of several such modules.
"""

import torch
from torch import Tensor
from torchmetrics import Metric

from .functional import METRICS, auc_judd, auc_shuffled, cc, information_gain, kl_divergence, nss, sim


class MeanOverMaps(Metric):
    """Sum and count of the scores seen so far; the metrics below say which scores."""

    full_state_update = False
    is_differentiable = True
    total: Tensor
    count: Tensor

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def add(self, scores: Tensor) -> None:
        """Counts the scores `(b,)` that are not NaN."""
        self.total = self.total + scores.nansum()
        self.count = self.count + (~scores.isnan()).sum()

    def compute(self) -> Tensor:
        """The mean, a float64 scalar; NaN where nothing was counted."""
        return self.total / self.count


class CorrelationCoefficient(MeanOverMaps):
    """Mean of `cc`."""

    higher_is_better = METRICS["cc"].higher_is_better

    def update(self, prediction: Tensor, density: Tensor) -> None:
        """Adds maps `(b, h, w)`."""
        self.add(cc(prediction, density))


class NormalizedScanpathSaliency(MeanOverMaps):
    """Mean of `nss`."""

    higher_is_better = METRICS["nss"].higher_is_better

    def update(self, prediction: Tensor, fixations: Tensor) -> None:
        """Adds maps `(b, h, w)`."""
        self.add(nss(prediction, fixations))


class AUCJudd(MeanOverMaps):
    """Mean of `auc_judd`."""

    higher_is_better = METRICS["auc_judd"].higher_is_better
    is_differentiable = False

    def update(self, prediction: Tensor, fixations: Tensor) -> None:
        """Adds maps `(b, h, w)`."""
        self.add(auc_judd(prediction, fixations))


class Similarity(MeanOverMaps):
    """Mean of `sim`."""

    higher_is_better = METRICS["sim"].higher_is_better

    def update(self, prediction: Tensor, density: Tensor) -> None:
        """Adds maps `(b, h, w)`."""
        self.add(sim(prediction, density))


class KLDivergence(MeanOverMaps):
    """Mean of `kl_divergence`."""

    higher_is_better = METRICS["kl"].higher_is_better

    def update(self, prediction: Tensor, density: Tensor) -> None:
        """Adds maps `(b, h, w)`."""
        self.add(kl_divergence(prediction, density))


class AUCShuffled(MeanOverMaps):
    """Mean of `auc_shuffled`.

    Args:
        seed: of the draws; each update begins with it anew, so that a map's score, given one at a time, depends
            neither on the maps before it nor on the process that has it.
        num_splits: splits to average over.
        step: between thresholds, in (0, 1].
    """

    higher_is_better = METRICS["auc_shuffled"].higher_is_better
    is_differentiable = False

    def __init__(self, seed: int = 0, num_splits: int = 100, step: float = 0.1, **kwargs):
        super().__init__(**kwargs)
        self.seed, self.num_splits, self.step = seed, num_splits, step

    def update(self, prediction: Tensor, fixations: Tensor, negatives: Tensor) -> None:
        """Adds maps `(b, h, w)`."""
        generator = torch.Generator().manual_seed(self.seed)
        self.add(auc_shuffled(prediction, fixations, negatives, generator, self.num_splits, self.step))


class InformationGain(MeanOverMaps):
    """Mean of `information_gain`."""

    higher_is_better = METRICS["information_gain"].higher_is_better

    def update(self, prediction: Tensor, fixations: Tensor, baseline: Tensor) -> None:
        """Adds maps `(b, h, w)`; the baseline may be `(h, w)`."""
        self.add(information_gain(prediction, fixations, baseline))
