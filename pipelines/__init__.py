"""The pipelines: what takes a video and gives its saliency maps."""

from .pipeline_diffsal import DiffSalPipeline
from .pipeline_output import SaliencyPipelineOutput

__all__ = ["DiffSalPipeline", "SaliencyPipelineOutput"]
