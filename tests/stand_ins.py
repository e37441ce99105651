"""Small pipelines for tests: real components, tiny, and a network that knows the answer."""

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from reference_weights import draw_weights

from diffsal_diffusers import DiffSalPipeline, SalFoMPipeline
from diffsal_diffusers.models import SaliencyConditions, SaliencyUNetOutput
from diffsal_diffusers.models.salfom import SALFOM_CONFIGS

TINY_UNET = {"block_out_channels": (8, 8, 16, 16), "head_channels": 8, "norm_num_groups": 4}


def tiny_pipeline(video="timm/efficientnet_lite0", audio="log_mel_cnn", **config) -> DiffSalPipeline:
    """A complete pipeline that sees 64x96 pixels, its weights drawn by the reference rule."""
    settings = TINY_UNET | {"frame_size": (64, 96), "num_inference_steps": 2} | config
    pipe = DiffSalPipeline.from_encoders(video=video, audio=audio, **settings)
    for component in (pipe.unet, pipe.video_encoder, pipe.audio_encoder):
        if component is not None:
            draw_weights(component)
    pipe.set_progress_bar_config(disable=True)
    return pipe


SMALL_SALFOM = SALFOM_CONFIGS["small"]
TINY_UMT = SMALL_SALFOM["encoder_config"]
TINY_DECODER = {name: SMALL_SALFOM[name] for name in ("decoder_channels", "depth", "num_attention_heads")}


def tiny_salfom(**config) -> SalFoMPipeline:
    """A complete pipeline of SalFoM that sees 64x96 pixels, its weights drawn by the reference rule."""
    pipe = SalFoMPipeline.from_encoder(**SMALL_SALFOM | {"frame_size": (64, 96)} | config)
    draw_weights(pipe.salfom)
    pipe.set_progress_bar_config(disable=True)
    return pipe


class TrueMapUNet(ModelMixin, ConfigMixin):
    """Returns the true map at every step, and keeps what it was shown."""

    @register_to_config
    def __init__(self, in_channels: int = 1, sample_range: tuple[float, float] = (-1.0, 1.0)):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(()))  # tells device and dtype
        self.truth = None
        self.seen = []

    def conditions(self) -> SaliencyConditions:
        return SaliencyConditions(video=[torch.zeros(1, 1, 1, 1, 1)], audio=[None])

    def forward(self, sample, timestep, conditions):
        self.seen.append((sample, timestep))
        low, high = self.config.sample_range
        return SaliencyUNetOutput(sample=(low + (high - low) * self.truth).expand_as(sample))


def true_map_pipeline() -> tuple[DiffSalPipeline, torch.Tensor]:
    """A pipeline around [`TrueMapUNet`] and the true map `(1, 1, 256, 256)` in [0, 1]."""
    pipe = tiny_pipeline(frame_size=(256, 256))
    truth = torch.rand(1, 1, 256, 256, generator=torch.Generator().manual_seed(1))
    pipe.unet = TrueMapUNet()
    pipe.unet.truth = truth
    return pipe, truth
