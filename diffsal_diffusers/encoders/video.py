"""Video encoders: torchvision's video networks, and any 2D backbone of timm run frame by frame."""

from collections.abc import Callable
from itertools import pairwise
from math import ceil
from os import PathLike

import timm
import torch
from diffusers.configuration_utils import register_to_config
from einops import rearrange
from timm.layers import BatchNormAct2d
from timm.layers.format import Format, nhwc_to
from timm.models.efficientnet import EfficientNetFeatures
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import WeightsEnum, get_model, get_model_weights

from ..errors import InputError
from ..modeling import STRIDES
from .base import EncoderOutput, FeatureInfo, PerFrameVideoEncoder, VideoEncoder
from .multiscale import FusedBlock
from .pretrained import download_weights, load_weights, one_line, read_weights, timm_names
from .registry import register_video_encoder, unknown_name


def check_frames(frames: torch.Tensor) -> None:
    """Raises an InputError unless `frames`, `(b, 3, ..., h, w)`, have three channels and sides divisible by 32."""
    height, width = frames.shape[-2:]
    if frames.shape[1] != 3 or height % 32 or width % 32:
        raise InputError(
            f"frames must have 3 channels and a height and width divisible by 32, got {tuple(frames.shape)}"
        )


class TorchvisionVideoEncoder(VideoEncoder):
    """Base class of the encoders made of a network of torchvision, whose names of weights they keep."""

    def __init__(self, name: str):
        super().__init__()
        self.published: WeightsEnum = get_model_weights(name).DEFAULT
        preset = self.published.transforms()
        self.image_mean, self.image_std = tuple(preset.mean), tuple(preset.std)

    def load_pretrained(self, source: bool | str | PathLike = True) -> None:
        weights = download_weights(self.published) if source is True else read_weights(source)
        load_weights(
            self,
            weights,
            source=self.published if source is True else source,
            own=("norms.",),
            unused=("norm.", "head.", "classifier."),
        )


@register_video_encoder("mvit_v2_s")
class MViTv2Encoder(TorchvisionVideoEncoder):
    """MViTv2-S (arXiv 2112.01526), the paper's video encoder: 34.2 M parameters.

    A 16x224x384 clip gives 96x8x56x96, 192x8x28x48, 384x8x14x24 and 768x8x7x12: the tokens after blocks 1, 3, 14 and
    16 without the class token, each through a LayerNorm of its own. The relative positions, stored for 16x224x224,
    are interpolated to the clip at hand.

    Args:
        num_frames: frames of a clip, for `feature_info`; `forward` takes clips of any even length.
        norms_in_path: whether the next block, too, gets what a stage's LayerNorm gives, as in DiffSal's release.
    """

    _supports_gradient_checkpointing = True

    stage_ends = (0, 2, 13, 15)
    stage_channels = (96, 192, 384, 768)

    @register_to_config
    def __init__(self, num_frames: int = 16, norms_in_path: bool = False):
        super().__init__("mvit_v2_s")
        network = get_model("mvit_v2_s", weights=None, block=FusedBlock)
        self.conv_proj = network.conv_proj
        self.pos_encoding = network.pos_encoding  # the class token; the positions are in the blocks
        self.blocks = network.blocks
        self.norms = nn.ModuleList(nn.LayerNorm(channels, eps=1e-5) for channels in self.stage_channels)
        self.feature_info = [
            FeatureInfo(channels, stride, ceil(num_frames / 2))
            for channels, stride in zip(self.stage_channels, STRIDES, strict=True)
        ]
        self.gradient_checkpointing = False

    def forward(self, video: torch.Tensor) -> EncoderOutput:
        check_frames(video)
        x = self.conv_proj(video)  # b c t h w
        size = tuple(x.shape[2:])
        x = self.pos_encoding(rearrange(x, "b c t h w -> b (t h w) c"))  # b 1+thw c
        features = []
        for index, block in enumerate(self.blocks):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x, size = self._gradient_checkpointing_func(block, x, size)
            else:
                x, size = block(x, size)
            if index in self.stage_ends:
                normed = self.norms[len(features)](x)  # b 1+thw c
                t, h, w = size
                features.append(rearrange(normed[:, 1:], "b (t h w) c -> b c t h w", t=t, h=h, w=w))
                if self.config.norms_in_path:
                    x = normed
        return EncoderOutput(features=features)


@register_video_encoder("swin3d_t", variant="swin3d_t")
@register_video_encoder("swin3d_s", variant="swin3d_s")
@register_video_encoder("swin3d_b", variant="swin3d_b")
class Swin3DEncoder(TorchvisionVideoEncoder):
    """Video Swin Transformer (arXiv 2106.13230); 27.9 M, 49.5 M and 87.6 M parameters.

    The features are the outputs of the four stages, each through a LayerNorm of its own: strides 4, 8, 16 and 32,
    half as many slices as frames, 96, 192, 384, 768 channels (swin3d_b: 128, 256, 512, 1024).

    Args:
        variant: `"swin3d_t"`, `"swin3d_s"` or `"swin3d_b"`.
        num_frames: frames of a clip, for `feature_info`; `forward` takes clips of any even length.
    """

    _supports_gradient_checkpointing = True

    variants = ("swin3d_t", "swin3d_s", "swin3d_b")

    @register_to_config
    def __init__(self, variant: str = "swin3d_t", num_frames: int = 16):
        if variant not in self.variants:
            raise InputError(f"variant must be one of {', '.join(self.variants)}, got {variant!r}")
        super().__init__(variant)
        network = get_model(variant, weights=None)
        self.patch_embed = network.patch_embed
        self.features = network.features  # stages and, between them, patch mergings
        stage_channels = [network.num_features // 2**k for k in (3, 2, 1, 0)]
        self.norms = nn.ModuleList(nn.LayerNorm(channels, eps=1e-5) for channels in stage_channels)
        self.feature_info = [
            FeatureInfo(channels, stride, ceil(num_frames / 2))
            for channels, stride in zip(stage_channels, STRIDES, strict=True)
        ]
        self.gradient_checkpointing = False

    def forward(self, video: torch.Tensor) -> EncoderOutput:
        check_frames(video)
        x = self.patch_embed(video)  # b t h w c
        features = []
        for stage, norm in enumerate(self.norms):
            if stage > 0:
                x = self.features[2 * stage - 1](x)
            for block in self.features[2 * stage]:
                if torch.is_grad_enabled() and self.gradient_checkpointing:
                    x = self._gradient_checkpointing_func(block, x)
                else:
                    x = block(x)
            features.append(rearrange(norm(x), "b t h w c -> b c t h w"))
        return EncoderOutput(features=features)


@register_video_encoder("s3d")
class S3DEncoder(TorchvisionVideoEncoder):
    """S3D (arXiv 1712.04851): 7.9 M parameters.

    A 16x224x384 clip gives 192x8x56x96, 480x8x28x48, 832x4x14x24 and 1024x2x7x12: fewer slices at coarser scales.

    Args:
        num_frames: frames of a clip, for `feature_info`; `forward` takes clips of any length from 5.
    """

    stage_ends = (3, 6, 12, 15)
    stage_channels = (192, 480, 832, 1024)

    @register_to_config
    def __init__(self, num_frames: int = 16):
        super().__init__("s3d")
        self._check_length(num_frames)
        self.features = get_model("s3d", weights=None).features
        half, quarter = ceil(num_frames / 2), ceil(num_frames / 4)
        self.feature_info = [
            FeatureInfo(channels, stride, slices)
            for channels, stride, slices in zip(
                self.stage_channels, STRIDES, (half, half, quarter, quarter // 2), strict=True
            )
        ]

    def forward(self, video: torch.Tensor) -> EncoderOutput:
        check_frames(video)
        self._check_length(video.shape[2])
        x = video
        features = []
        for index, layer in enumerate(self.features):
            x = layer(x)  # b c t h w
            if index in self.stage_ends:
                features.append(x)
        return EncoderOutput(features=features)

    @staticmethod
    def _check_length(num_frames: int) -> None:
        if num_frames < 5:
            raise InputError(f"S3D shortens clips eightfold and needs at least 5 frames, got {num_frames}")


@register_video_encoder("timm")
class TimmVideoEncoder(PerFrameVideoEncoder):
    """A 2D backbone of timm on each frame, then at each scale a learned blend of neighbouring frames.

    The light choice: most of the work is done once for each frame of a video, however much its clips overlap, and
    16 frames become 8 slices by one depthwise convolution over time, which starts as the binomial (1, 2, 1) / 4.

    Args:
        model_name: a model of timm with feature maps of strides 4, 8, 16 and 32 that takes any frame size.
        num_frames: frames of a clip, for `feature_info`; `forward` takes clips of any length.
        fold_batch_norm: without batch normalisations: those of loaded weights, with the statistics that they have, are
            folded into the convolutions before them, for the same features in less time. Only for networks of timm's
            EfficientNet family.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(self, model_name: str, num_frames: int = 16, fold_batch_norm: bool = False):
        super().__init__()
        self.gradient_checkpointing = False
        self.backbone = self._create_backbone()
        if fold_batch_norm:
            _fold_batch_norms(self.backbone, model_name, _without_norm)
        self.image_mean = tuple(self.backbone.pretrained_cfg["mean"])
        self.image_std = tuple(self.backbone.pretrained_cfg["std"])
        channels = self.backbone.feature_info.channels()
        self.feature_info = [
            FeatureInfo(c, stride, ceil(num_frames / 2)) for c, stride in zip(channels, STRIDES, strict=True)
        ]
        self.temporal_mix = nn.ModuleList(
            nn.Conv3d(c, c, kernel_size=(3, 1, 1), stride=(2, 1, 1), groups=c, bias=False) for c in channels
        )
        for mix in self.temporal_mix:
            for tap, value in enumerate((0.25, 0.5, 0.25)):
                nn.init.constant_(mix.weight[:, :, tap], value)

    def _set_gradient_checkpointing(self, enable: bool = True, gradient_checkpointing_func: Callable | None = None):
        # timm's networks do it themselves, block by block.
        try:
            self.backbone.set_grad_checkpointing(enable)
        except (AttributeError, AssertionError) as error:
            raise InputError(f"timm/{self.config.model_name} cannot checkpoint gradients") from error
        self.gradient_checkpointing = enable

    def _create_backbone(self) -> nn.Module:
        name = self.config.model_name
        return timm.create_model(name, features_only=True, pretrained=False, out_indices=_scales_of(name))

    def encode_frames(self, frames: torch.Tensor) -> list[torch.Tensor]:
        check_frames(frames)
        features = self.backbone(frames.contiguous(memory_format=torch.channels_last))  # faster than channels first
        if getattr(self.backbone, "output_fmt", Format.NCHW) == Format.NHWC:
            features = [nhwc_to(f, Format.NCHW) for f in features]
        return features  # each n c h w

    def mix_frames(self, features: list[torch.Tensor]) -> EncoderOutput:
        mixed = []
        for f, mix in zip(features, self.temporal_mix, strict=True):
            # The first and the last frame stand in for their missing neighbours: zeros would dim the clip's ends.
            f = torch.cat([f[:, :, :1], f, f[:, :, -1:]], dim=2)  # b c 1+t+1 h w
            mixed.append(mix(f))  # b c t/2 h w
        return EncoderOutput(features=mixed)

    def load_pretrained(self, source: bool | str | PathLike = True) -> None:
        model_name = self.config.model_name
        if source is True:
            published = _download_timm(model_name, self.backbone.pretrained_cfg)
        else:
            published = read_weights(source)
        with torch.device("meta"):
            whole = timm.create_model(model_name, pretrained=False).state_dict()
        published = timm_names(published, whole)
        # timm's feature extractor renames `stages.0` to `stages_0` and may put `model.` in front.
        backbone = self._create_backbone()
        ours = {name.removeprefix("model.").replace(".", "_"): name for name in backbone.state_dict()}
        load_weights(
            backbone,
            {ours.get(name.replace(".", "_"), name): value for name, value in published.items()},
            source=f"timm/{model_name}" if source is True else source,
            unused=tuple(name for name in whole if name.replace(".", "_") not in ours),
        )
        if self.config.fold_batch_norm:
            _fold_batch_norms(backbone.eval(), model_name, fuse_conv_bn_eval)
        self.backbone.load_state_dict(backbone.state_dict())


def _fold_batch_norms(
    network: nn.Module, model_name: str, fold: Callable[[nn.Conv2d, BatchNormAct2d], nn.Conv2d]
) -> None:
    """Puts one convolution, as `fold` makes it, in place of every convolution and the batch normalisation after it."""
    if not isinstance(network, EfficientNetFeatures):
        raise InputError(f"`fold_batch_norm` is for networks of timm's EfficientNet family, not for {model_name}")
    for module in network.modules():
        for (name, conv), (norm_name, norm) in pairwise(module.named_children()):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, BatchNormAct2d):
                setattr(module, name, fold(conv, norm))
                setattr(module, norm_name, norm.act)


def _without_norm(conv: nn.Conv2d, norm: BatchNormAct2d) -> nn.Conv2d:
    """A convolution with a bias, as untrained as both are; diffusers builds networks without memory for weights."""
    conv.bias = nn.Parameter(torch.zeros(conv.out_channels))
    return conv


def _scales_of(model_name: str) -> list[int]:
    """The indices of a timm model's feature maps of strides 4, 8, 16 and 32, found without memory for its weights."""
    architecture = model_name.partition(".")[0]
    if not timm.is_model(architecture):
        raise InputError(f"{unknown_name('timm model', model_name, timm.list_models())}; see timm.list_models()")
    try:
        with torch.device("meta"):
            network = timm.create_model(model_name, features_only=True, pretrained=False)
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        raise InputError(f"timm/{model_name} gives no feature maps ({one_line(error)})") from error
    deepest = {info["reduction"]: index for index, info in enumerate(network.feature_info.info)}
    if not deepest.keys() >= set(STRIDES):
        raise InputError(
            f"timm/{model_name} has feature maps of stride {', '.join(map(str, deepest))}; "
            f"{', '.join(map(str, STRIDES))} are needed"
        )
    if network.pretrained_cfg.get("fixed_input_size"):
        raise InputError(f"timm/{model_name} takes one frame size only; choose a model that takes any")
    return [deepest[stride] for stride in STRIDES]


def _download_timm(model_name: str, pretrained_cfg: dict) -> dict[str, torch.Tensor]:
    """The weights that timm publishes for a model, through timm's own cache and download."""
    try:
        # The whole model, since timm checks for missing tensors only there.
        return timm.create_model(model_name, pretrained=True).state_dict()
    except Exception as error:  # hub, network and file errors share no class
        repository = pretrained_cfg.get("hf_hub_id") or pretrained_cfg.get("url") or "of this model"
        file = pretrained_cfg.get("hf_hub_filename") or "model.safetensors"
        raise InputError(
            f"timm/{model_name}: the weights {repository} cannot be had ({one_line(error)}); fetch their {file} "
            f'elsewhere and pass pretrained="path/to/{file}"'
        ) from error
