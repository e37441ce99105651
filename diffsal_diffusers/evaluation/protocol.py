"""The field's protocol (STAViS, followed by DiffSal): from a predicted map and its ground truth to scores.

A prediction is scaled to its maximum, smoothed with a Gaussian of 2 pixels at its own size, resized to the size of the
ground truth and scored. The scores of a video are the means over its frames, those of a data set the means over its
videos, and, where a set has folds, the means over these. Frames that nobody looked at are left out.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F

from ..data import Recording, gaussian_blur
from ..errors import InputError
from ..metrics import METRICS

SMOOTHING = 2.0  # standard deviation in pixels of the prediction
HUMANS = "humans"  # the people themselves, as a predictor
CENTRE_SPREAD = 0.25  # standard deviation of the centre prior over the map's height and width


def centre_prior(size: tuple[int, int]) -> torch.Tensor:
    """A Gaussian at the centre as wide as the picture is: `(height, width)`, float32, maximum one."""
    y, x = (torch.linspace(-0.5, 0.5, side) / CENTRE_SPREAD for side in size)
    return torch.exp(-0.5 * (y[:, None] ** 2 + x[None] ** 2))


def prepare_prediction(prediction: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """A predicted map `(h, w)` as the protocol scores it: scaled, smoothed, `(height, width)` of `size`."""
    smallest, largest = prediction.aminmax()
    if smallest == largest:
        return torch.ones(size, device=prediction.device)  # blurred, it would be rounding errors to the metrics
    if largest > 0:
        prediction = prediction / largest
    smooth = gaussian_blur(prediction, SMOOTHING, "reflect")[None, None]
    return F.interpolate(smooth, size=size, mode="bilinear", antialias=True)[0, 0].clamp(min=0)


class PredictionError(InputError):
    """A fault of a predictor, not of the data set: it must not be skipped over."""


class VideoScorer:
    """Scores of one video's frames, for several predictors side by side.

    Args:
        recording: the video.
        predictors: their names.
        metrics: names out of [`~diffsal_diffusers.metrics.METRICS`].
        seed: of the choice of s-AUC's negatives, which are the fixations of all other frames of the video.
    """

    def __init__(self, recording: Recording, predictors: Sequence[str], metrics: Sequence[str], seed: int = 0):
        self.recording = recording
        self.metrics = metrics
        self.values = {name: {metric: [] for metric in metrics} for name in predictors}
        self.seed = zlib.crc32(f"{recording.dataset}/{recording.video_id}".encode()) + seed % 2**62
        self.looks = None
        if any("negatives" in METRICS[metric].needs for metric in metrics):
            self.looks = count_looks(recording)

    def score(self, index: int, density: torch.Tensor, predictions: Mapping[str, torch.Tensor]) -> bool:
        """Scores one frame, unless nobody looked at it.

        Args:
            index: the frame's number.
            density: its ground truth, `(height, width)`.
            predictions: a map `(h, w)` of any size from each predictor.

        Returns:
            whether the frame counts.

        Raises:
            PredictionError: a map holds NaN or infinity.
            InputError: the fixations are missing or damaged.
        """
        truth = {"density": density[None]}
        if any("baseline" in METRICS[metric].needs for metric in self.metrics):
            truth["baseline"] = centre_prior(density.shape)[None]
        fixations = self.recording.fixations(index)
        if fixations is not None:
            if not fixations.any():
                return False
            truth["fixations"] = fixations[None]
            if self.looks is not None:
                truth["negatives"] = (self.looks - fixations.int() > 0)[None]  # looked at in another frame
        for name, prediction in predictions.items():
            if not prediction.isfinite().all():
                raise PredictionError(f"{name} gives NaN or infinity for frame {index}: it cannot be scored")
            if prediction.device.type == "mps":  # it has no float64, which the metrics compute in
                prediction = prediction.cpu()
            prepared = prepare_prediction(prediction.float(), density.shape)[None]
            for metric in self.metrics:
                needs = METRICS[metric].needs
                if truth.keys() >= set(needs):
                    seeded = {"generator": torch.Generator().manual_seed(self.seed + index)}
                    more = seeded if "negatives" in needs else {}
                    inputs = (truth[need].to(prediction.device) for need in needs)
                    value = METRICS[metric].function(prepared, *inputs, **more)
                    self.values[name][metric].append(value.item())
        return True

    def means(self) -> dict[str, dict[str, float]]:
        """The mean over the frames of each metric, by predictor; NaN where no frame had a value."""
        return {name: {m: mean(values) for m, values in by.items()} for name, by in self.values.items()}


def score_humans(
    halves: Sequence[Recording], frames: Iterable[int], metrics: Sequence[str], seed: int = 0
) -> dict[str, float]:
    """How well half of the observers predict the other half: the mean of both directions, by metric.

    The truth here is the map, or the fixations, of half of the people only, which tells less than that of all, on
    which predictors are scored: a lower bound of what can be reached, not a ceiling.

    Args:
        halves: a recording's [`~diffsal_diffusers.data.Recording.halves`].
        frames: numbers of the frames to score.
        metrics, seed: see [`VideoScorer`].
    """
    scorers = [VideoScorer(half, [HUMANS], metrics, seed) for half in halves]
    for index in frames:
        densities = [half.density(index) for half in halves]
        for scorer, density, others in zip(scorers, densities, reversed(densities), strict=True):
            scorer.score(index, density, {HUMANS: others})
    return {metric: mean(scorer.means()[HUMANS][metric] for scorer in scorers) for metric in metrics}


def count_looks(recording: Recording) -> torch.Tensor | None:
    """In how many of the video's frames each pixel was fixated, `(height, width)`; `None` without fixations.

    Frames whose fixations are damaged do not count.
    """
    total = None
    for index in range(recording.num_frames):
        try:
            fixations = recording.fixations(index)
        except InputError:
            continue
        if fixations is None:
            return None
        total = fixations.int() if total is None else total + fixations
    return total


def mean(values: Iterable[float]) -> float:
    """The mean of what is defined; NaN where nothing is."""
    defined = [value for value in values if value == value]
    return sum(defined) / len(defined) if defined else float("nan")
