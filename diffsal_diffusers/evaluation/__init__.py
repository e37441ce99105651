"""Scoring predictors on data sets by the field's protocol."""

from .predictors import FolderPredictor, MeanMap, PipelinePredictor
from .protocol import VideoScorer, centre_prior, prepare_prediction
from .report import dataset_means, markdown_table, write_report
from .runner import Evaluation

__all__ = [
    "Evaluation",
    "FolderPredictor",
    "MeanMap",
    "PipelinePredictor",
    "VideoScorer",
    "centre_prior",
    "dataset_means",
    "markdown_table",
    "prepare_prediction",
    "write_report",
]
