"""The pipelines: what takes a video and gives its saliency maps."""

from .pipeline_diffsal import DiffSalPipeline
from .pipeline_output import SaliencyPipelineOutput
from .pipeline_salfom import SalFoMPipeline
from .pipeline_saliency import SaliencyPipeline

__all__ = ["DiffSalPipeline", "SalFoMPipeline", "SaliencyPipeline", "SaliencyPipelineOutput"]
