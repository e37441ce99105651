"""Video and audio encoders that condition the Saliency-UNet, and the registry that creates them by name.

`create_video_encoder("mvit_v2_s")` and `create_audio_encoder("vggish")` are the paper's. An encoder of one's own is a
subclass of `VideoEncoder` or `AudioEncoder` under the decorator `register_video_encoder` or `register_audio_encoder`.
"""

from .audio import LogMelCNNEncoder, VGGishEncoder
from .base import AudioEncoder, EncoderOutput, FeatureInfo, PerFrameVideoEncoder, VideoEncoder
from .registry import (
    create_audio_encoder,
    create_video_encoder,
    list_audio_encoders,
    list_video_encoders,
    register_audio_encoder,
    register_video_encoder,
)
from .umt import UMTEncoder
from .video import MViTv2Encoder, S3DEncoder, Swin3DEncoder, TimmVideoEncoder

__all__ = [
    "AudioEncoder",
    "EncoderOutput",
    "FeatureInfo",
    "LogMelCNNEncoder",
    "MViTv2Encoder",
    "PerFrameVideoEncoder",
    "S3DEncoder",
    "Swin3DEncoder",
    "TimmVideoEncoder",
    "UMTEncoder",
    "VGGishEncoder",
    "VideoEncoder",
    "create_audio_encoder",
    "create_video_encoder",
    "list_audio_encoders",
    "list_video_encoders",
    "register_audio_encoder",
    "register_video_encoder",
]
