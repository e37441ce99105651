"""Where do people look in a video with sound? DiffSal and SalFoM as components native to diffusers.

Importing the package is what lets `DiffusionPipeline.from_pretrained` load its pipelines.
"""

from diffusers import ModelMixin, SchedulerMixin

from .encoders import (
    AudioEncoder,
    EncoderOutput,
    FeatureInfo,
    LogMelCNNEncoder,
    MViTv2Encoder,
    PerFrameVideoEncoder,
    S3DEncoder,
    Swin3DEncoder,
    TimmVideoEncoder,
    UMTEncoder,
    VGGishEncoder,
    VideoEncoder,
    create_audio_encoder,
    create_video_encoder,
    list_audio_encoders,
    list_video_encoders,
    register_audio_encoder,
    register_video_encoder,
)
from .errors import InputError
from .models import ReleasedSaliencyUNet, SalFoM, SaliencyUNet
from .pipelines import DiffSalPipeline, SalFoMPipeline, SaliencyPipelineOutput
from .presets import list_pretrained, load_pipeline, pretrained
from .processing import SaliencyProcessor
from .registration import register_with_diffusers

__version__ = "0.1.0"

# diffusers finds a saved pipeline's components, and their base classes, as attributes of this module.
__all__ = [
    "AudioEncoder",
    "DiffSalPipeline",
    "EncoderOutput",
    "FeatureInfo",
    "InputError",
    "LogMelCNNEncoder",
    "MViTv2Encoder",
    "ModelMixin",
    "PerFrameVideoEncoder",
    "ReleasedSaliencyUNet",
    "S3DEncoder",
    "SalFoM",
    "SalFoMPipeline",
    "SaliencyPipelineOutput",
    "SaliencyProcessor",
    "SaliencyUNet",
    "SchedulerMixin",
    "Swin3DEncoder",
    "TimmVideoEncoder",
    "UMTEncoder",
    "VGGishEncoder",
    "VideoEncoder",
    "create_audio_encoder",
    "create_video_encoder",
    "list_audio_encoders",
    "list_pretrained",
    "list_video_encoders",
    "load_pipeline",
    "pretrained",
    "register_audio_encoder",
    "register_video_encoder",
]

register_with_diffusers(DiffSalPipeline, SalFoMPipeline)
