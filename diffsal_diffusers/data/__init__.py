"""The field's data sets, one's own recordings and synthetic scenes: videos with where people looked."""

from . import layouts  # noqa: F401, registers the data sets
from .clips import SaliencyClips
from .density import fixation_density, gaussian_blur
from .recording import Recording
from .registry import (
    SALIENCY_DATASETS,
    SaliencyDataset,
    find_saliency_dataset,
    list_saliency_datasets,
    load_saliency_dataset,
    open_recording,
    register_dataset,
)
from .synthetic import SyntheticScene

__all__ = [
    "SALIENCY_DATASETS",
    "Recording",
    "SaliencyClips",
    "SaliencyDataset",
    "SyntheticScene",
    "find_saliency_dataset",
    "fixation_density",
    "gaussian_blur",
    "list_saliency_datasets",
    "load_saliency_dataset",
    "open_recording",
    "register_dataset",
]
