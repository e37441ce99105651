"""The Saliency-UNet of DiffSal (paper section 4.2): the saliency map from a noisy one, given picture and sound.

In shape comments: b clips or maps, c channels, t time slices of the video, h and w of the feature map at hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import Downsample2D, ResnetBlock2D
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook
from torch import nn

from ..errors import InputError
from ..modeling import STRIDES, StrictModelMixin
from .attention import ConvolutionalModulation, SpatioTemporalCrossAttention
from .audio_enhancement import AudioTemporalEnhancement
from .interaction import INTERACTIONS

ATTENTIONS = ("eca", "sca", "none")
NULL_VIDEO_GRID = (7, 12)


@dataclass
class SaliencyUNetOutput(BaseOutput):
    """
    Args:
        sample: the estimate of the clean map x0, `(b, 1, height, width)`, in the config's `sample_range`.
    """

    sample: torch.Tensor


@dataclass
class SaliencyConditions:
    """What the Saliency-UNet needs of picture and sound, computed once for all denoising steps.

    Args:
        video: f_v, one `(b, c, t, h, w)` a scale, coarsest first.
        audio: Conv(UpSample(f_a)) of equation 9, one `(b, c, t + 1, h, w)` a scale, coarsest first; the last slice
            goes with the noise slice. `None` where the network does not use the sound.
    """

    video: list[torch.Tensor]
    audio: list[torch.Tensor | None]

    def repeat(self, num_maps: int) -> "SaliencyConditions":
        """The conditions of `num_maps` maps a clip, the maps of one clip side by side."""
        if num_maps == 1:
            return self
        return SaliencyConditions(
            video=[video.repeat_interleave(num_maps, dim=0) for video in self.video],
            audio=[None if audio is None else audio.repeat_interleave(num_maps, dim=0) for audio in self.audio],
        )


def match_maps(
    sample: torch.Tensor, timestep: torch.Tensor | float, clips: int, size: Sequence[int]
) -> tuple[int, torch.Tensor]:
    """How many noisy maps each clip has, and the timestep of each map, `(maps,)`.

    Args:
        sample: `(maps, c, height, width)`.
        timestep: one number, or one for each map.
        clips: how many clips the conditions are of.
        size: height and width of the maps that they are for.

    Raises:
        InputError: sample, timestep and conditions do not fit together.
    """
    maps, _, height, width = sample.shape
    if [height, width] != list(size):
        raise InputError(f"`conditions` are for maps of {size[0]}x{size[1]}, got a `sample` of {height}x{width}")
    if maps % clips:
        raise InputError(f"the number of maps must be a multiple of the number of clips, {clips}, got {maps}")
    timestep = torch.as_tensor(timestep, device=sample.device).reshape(-1)
    if len(timestep) not in (1, maps):
        raise InputError(f"`timestep` must be one number or one for each of the {maps} maps, got {len(timestep)}")
    return maps // clips, timestep.expand(maps)


def resize_space(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Bilinear resizing of `(b, c, t, h, w)` in space, slice by slice."""
    x = x.transpose(1, 2)  # b t c h w
    y = F.interpolate(x.flatten(0, 1), size=size, mode="bilinear")
    return y.unflatten(0, x.shape[:2]).transpose(1, 2)


def resize_slices(x: torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    """Linear resizing of [f_v, f_s] `(b, c, t + 1, h, w)` to `size` = (t' + 1, h', w').

    The slices of the video are resized in time among themselves; the noise slice, the last, is no neighbour of theirs.
    """
    if x.shape[2] == size[0]:
        return resize_space(x, size[1:])
    video = F.interpolate(x[:, :, :-1], size=(size[0] - 1, *size[1:]), mode="trilinear")
    return torch.cat([video, resize_space(x[:, :, -1:], size[1:])], dim=2)


class NoiseEncoder(nn.Module):
    """The noisy map to features f_s at strides 4, 8, 16, 32: one ResNet stage a scale, told the timestep."""

    def __init__(self, in_channels: int, channels: Sequence[int], norm_num_groups: int):
        super().__init__()
        time_channels = 4 * channels[0]
        self.time_proj = Timesteps(channels[0], flip_sin_to_cos=False, downscale_freq_shift=1)
        self.time_embedding = TimestepEmbedding(channels[0], time_channels)
        self.conv_in = nn.Conv2d(in_channels, channels[0], 7, stride=STRIDES[0], padding=3)
        # Under its default name the convolution would be registered, and saved, twice.
        self.downsamples = nn.ModuleList(Downsample2D(c, use_conv=True, name="op") for c in channels[:-1])
        self.resnets = nn.ModuleList(
            ResnetBlock2D(in_channels=c_in, out_channels=c_out, temb_channels=time_channels, groups=norm_num_groups)
            for c_in, c_out in zip((channels[0], *channels[:-1]), channels, strict=True)
        )

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> list[torch.Tensor]:
        """Noisy map `(b, 1, height, width)` and timesteps `(b,)` to `(b, c, h, w)` a scale, finest first."""
        time = self.time_embedding(self.time_proj(timestep).to(sample.dtype))  # b 4c
        features = [self.resnets[0](self.conv_in(sample), time)]
        for downsample, resnet in zip(self.downsamples, self.resnets[1:], strict=True):
            features.append(resnet(downsample(features[-1]), time))
        return features


class TemporalConvolution(nn.Module):
    """The 3D temporal convolution that ends a MAM stage: a kernel over all T+1 slices gives the one slice of the map.

    The kernel's video taps are a function of the time within the clip: the slices of a clip that has another number of
    them are averaged, or repeated, to as many as there are taps. The noise slice keeps its own tap.
    """

    def __init__(self, in_channels: int, out_channels: int, slices: int):
        super().__init__()
        self.slices = slices
        self.conv = nn.Conv3d(in_channels, out_channels, (slices, 1, 1), bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(b, c, t + 1, h, w)` to `(b, c', h, w)`."""
        if x.shape[2] != self.slices:
            video = F.adaptive_avg_pool3d(x[:, :, :-1], (self.slices - 1, *x.shape[3:]))
            x = torch.cat([video, x[:, :, -1:]], dim=2)
        return self.conv(x).squeeze(2)


class NullVideo(nn.Module):
    """The learned condition of one scale for an absent picture: a coarse grid, resized to the map at hand.

    It has a place in the picture: without one, sound alone could not know the centre.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.grid = nn.Parameter(0.02 * torch.randn(channels, *NULL_VIDEO_GRID))

    def forward(self, size: tuple[int, int]) -> torch.Tensor:
        """`(1, c, 1, h, w)` of the given height and width."""
        return F.interpolate(self.grid[None], size=size, mode="bilinear").unsqueeze(2)


class MAMStage(nn.Module):
    """One stage of multi-modal attention modulation: upsampling, multi-modal attention, 3D temporal convolution.

    Args:
        in_channels: channels of the coarser stage; `None` for the first stage.
        channels: channels of this stage.
        out_channels: channels of what the stage gives to the prediction head.
        slices: time slices of the video at this scale, plus one for the noise.
        index: i of the i-th stage, from 1; the kernel of STC is 2^i.
        attention, interaction, num_heads, mlp_ratio, norm_num_groups: see [`SaliencyUNet`].
    """

    def __init__(
        self,
        in_channels: int | None,
        channels: int,
        out_channels: int,
        slices: int,
        index: int,
        attention: str,
        interaction: str,
        num_heads: int,
        mlp_ratio: float,
        norm_num_groups: int,
    ):
        super().__init__()
        # The convolution comes before the upsampling: a quarter of the operations at the same receptive field.
        self.conv_up = None if in_channels is None else nn.Conv2d(in_channels, channels, 3, padding=1)
        self.norm = nn.GroupNorm(norm_num_groups, channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.interaction = INTERACTIONS[interaction](channels)
        if attention == "none":
            self.attention = ConvolutionalModulation(channels)
        else:
            kernel = (min(2**index, slices), 2**index, 2**index) if attention == "eca" else None
            self.attention = SpatioTemporalCrossAttention(channels, num_heads, kernel)
        hidden = int(mlp_ratio * channels)
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels)
        )
        self.temporal_conv = TemporalConvolution(channels, out_channels, slices)

    def forward(
        self,
        previous: torch.Tensor | None,
        video: torch.Tensor,
        noise: torch.Tensor,
        audio: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            previous: what the coarser stage gave for the next one, `(b, c', t' + 1, h / 2, w / 2)`.
            video: f_v, `(b, c, t, h, w)`.
            noise: f_s, `(b, c, h, w)`.
            audio: the audio feature of this scale, `(b, c, t + 1, h, w)`.

        Returns:
            the feature for the next stage `(b, c, t + 1, h, w)`, and the one for the head `(b, out_channels, h, w)`.
        """
        x = torch.cat([video, noise.unsqueeze(2)], dim=2)  # [f_v, f_s]: b c t+1 h w
        # Channels last in memory: slices are images to the convolutions, and tokens to the attention, without copies.
        x = x.contiguous(memory_format=torch.channels_last_3d)
        b, _, slices, h, w = x.shape
        if previous is not None:
            upsampled = self.conv_up(previous.transpose(1, 2).flatten(0, 1))  # (b t'+1) c h/2 w/2
            upsampled = upsampled.unflatten(0, (b, -1)).transpose(1, 2)
            x = x + resize_slices(upsampled, (slices, h, w))

        frames = x.transpose(1, 2).flatten(0, 1)  # (b t+1) c h w
        x = x + self.conv(F.silu(self.norm(frames))).unflatten(0, (b, slices)).transpose(1, 2)

        key = self.interaction(x, audio)  # f_avs, eq. 9
        x = x + self.attention(x, key)  # eq. 7
        x = x + self.mlp(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)
        return x, self.temporal_conv(x)


class SaliencyUNet(StrictModelMixin, ConfigMixin, PeftAdapterMixin):
    """The conditional denoising network g(S_t, t, f_a, f_v) of DiffSal, equation 6. It predicts the clean map x0.

    Four ResNet stages encode the noisy map at strides 4, 8, 16 and 32. Four MAM stages, coarse to fine, put its
    feature behind the video's slices as one more slice and let all tokens attend to each other. The prediction head
    reads all four. One set of weights serves audio-visual, video-only and audio-only input: a modality that is absent
    is replaced by a learned null condition, sample by sample.

    Args:
        in_channels: channels of the map.
        block_out_channels: channels of the four scales, finest first.
        video_channels: channels of the video features, finest first.
        video_time_slices: time slices of the video features, finest first. Clips of another length work too.
        audio_channels: channels of the audio feature.
        audio_time_slices: time slices of the audio feature.
        attention: `"eca"`, `"sca"` (no compression) or `"none"` (convolution, the baseline of Table 1).
        interaction: `"mim"`, or for the ablations `"bilinear"`, `"addition"`, `"concatenation"` (Table 3), `"none"`
            (the sound is not used, Table 1).
        num_attention_heads: attention heads of each stage.
        mlp_ratio: hidden channels of the MLP over the channels of the stage.
        head_channels: channels in which the prediction head adds up the four stages.
        norm_num_groups: groups of the group normalisations.
        sample_range: the range of the maps that diffusion sees: 0 and 1 of a saliency map.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        block_out_channels: tuple[int, ...] = (96, 192, 384, 768),
        video_channels: tuple[int, ...] = (96, 192, 384, 768),
        video_time_slices: tuple[int, ...] = (8, 8, 8, 8),
        audio_channels: int = 512,
        audio_time_slices: int = 9,
        attention: str = "eca",
        interaction: str = "mim",
        num_attention_heads: int = 2,
        mlp_ratio: float = 2.0,
        head_channels: int = 384,
        norm_num_groups: int = 32,
        sample_range: tuple[float, float] = (-1.0, 1.0),
    ):
        super().__init__()
        self._check_config()
        # From here on scales come as the stages do, coarsest first.
        channels = tuple(reversed(block_out_channels))
        self.noise_encoder = NoiseEncoder(in_channels, block_out_channels, norm_num_groups)
        self.video_proj = nn.ModuleList(
            nn.Conv3d(c_in, c, 1) for c_in, c in zip(reversed(video_channels), channels, strict=True)
        )
        self.null_video = nn.ModuleList(NullVideo(c) for c in channels)
        if interaction != "none":
            self.audio_enhancement = AudioTemporalEnhancement(audio_channels, audio_time_slices)
            self.null_audio = nn.Parameter(0.02 * torch.randn(audio_channels))
            self.audio_proj = nn.ModuleList(nn.Conv3d(audio_channels, c, 1) for c in channels)
        self.stages = nn.ModuleList(
            MAMStage(
                in_channels=channels[i - 1] if i > 0 else None,
                channels=c,
                out_channels=head_channels,
                slices=slices + 1,
                index=i + 1,
                attention=attention,
                interaction=interaction,
                num_heads=num_attention_heads,
                mlp_ratio=mlp_ratio,
                norm_num_groups=norm_num_groups,
            )
            for i, (c, slices) in enumerate(zip(channels, reversed(video_time_slices), strict=True))
        )
        self.head = nn.Sequential(
            nn.GroupNorm(norm_num_groups, head_channels),
            nn.SiLU(),
            nn.Conv2d(head_channels, block_out_channels[0], 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(block_out_channels[0], in_channels, 1),
        )
        self.gradient_checkpointing = False

    def _check_config(self) -> None:
        config = self.config
        for name in ("block_out_channels", "video_channels", "video_time_slices"):
            if len(config[name]) != len(STRIDES):
                raise InputError(f"`{name}` needs one number for each of the strides {STRIDES}, got {config[name]}")
        if config.attention not in ATTENTIONS:
            raise InputError(f"`attention` must be one of {', '.join(ATTENTIONS)}, got {config.attention!r}")
        if config.interaction not in INTERACTIONS:
            raise InputError(f"`interaction` must be one of {', '.join(INTERACTIONS)}, got {config.interaction!r}")
        for name, divisor in (
            ("num_attention_heads", config.num_attention_heads),
            ("norm_num_groups", config.norm_num_groups),
        ):
            if divisor < 1:
                raise InputError(f"`{name}` must be positive, got {divisor}")
            indivisible = [c for c in config.block_out_channels if c % divisor]
            if indivisible:
                raise InputError(
                    f"`block_out_channels` must be divisible by `{name}` = {divisor}, got {indivisible[0]}"
                )
        if min(config.video_time_slices) < 1:
            raise InputError(f"`video_time_slices` must be positive, got {config.video_time_slices}")
        if config.mlp_ratio * min(config.block_out_channels) < 1:
            raise InputError(f"`mlp_ratio` must give the MLP at least one channel, got {config.mlp_ratio}")
        if len(config.sample_range) != 2 or not config.sample_range[0] < config.sample_range[1]:
            raise InputError(f"`sample_range` must be two numbers, the lower first, got {config.sample_range}")
        if config.head_channels < 1 or config.head_channels % config.norm_num_groups:
            raise InputError(
                f"`head_channels` must be divisible by `norm_num_groups` = {config.norm_num_groups}, "
                f"got {config.head_channels}"
            )

    @apply_forward_hook
    def encode_conditions(
        self,
        height: int,
        width: int,
        video_features: Sequence[torch.Tensor] | None = None,
        audio_features: torch.Tensor | None = None,
        video_mask: torch.Tensor | None = None,
        audio_mask: torch.Tensor | None = None,
    ) -> SaliencyConditions:
        """What depends on picture and sound only: once a clip, for all denoising steps and all maps of the clip.

        Args:
            height, width: size of the map in pixels; divisible by 32.
            video_features: `(b, c, t, h, w)` at strides 4, 8, 16, 32, finest first; `None` for audio-only input.
            audio_features: `(b, c, t, h', w')`; `None` for video-only input.
            video_mask, audio_mask: `(b,)`, boolean; where false, the modality of that sample counts as absent; its
                features must be finite all the same.

        Raises:
            InputError: a size or a shape does not fit the config.
        """
        self._check_conditions(height, width, video_features, audio_features)
        batch = (audio_features if video_features is None else video_features[0]).shape[0]

        video = []
        coarse_to_fine = reversed(video_features or [None] * len(STRIDES))
        time_slices = reversed(self.config.video_time_slices)
        for feature, slices, stride, proj, null in zip(
            coarse_to_fine, time_slices, reversed(STRIDES), self.video_proj, self.null_video, strict=True
        ):
            absent = null((height // stride, width // stride))  # 1 c 1 h w
            if feature is None:
                feature = absent.expand(batch, -1, slices, -1, -1)
            else:
                feature = proj(feature.to(self.dtype))  # b c t h w
                if video_mask is not None:
                    feature = torch.where(video_mask.view(-1, 1, 1, 1, 1), feature, absent)
            video.append(feature)

        if self.config.interaction == "none":
            return SaliencyConditions(video, [None] * len(video))

        null = self.null_audio.view(1, -1, 1, 1, 1)
        if audio_features is None:
            enhanced = null.repeat(batch, 1, 1, 1, 1)  # b c 1 1 1
        else:
            enhanced = self.audio_enhancement(audio_features.to(self.dtype))  # f_a, eqs. 4 and 5: b c t h' w'
            if audio_mask is not None:
                enhanced = torch.where(audio_mask.view(-1, 1, 1, 1, 1), enhanced, null)
        audio = []
        for proj, feature in zip(self.audio_proj, video, strict=True):
            # Conv(UpSample(f_a)) of eq. 9, the 1x1 convolution first: the same result for fewer operations.
            slices, h, w = feature.shape[2:]
            audio.append(F.interpolate(proj(enhanced), size=(slices + 1, h, w), mode="trilinear"))
        return SaliencyConditions(video, audio)

    def _check_conditions(self, height, width, video_features, audio_features) -> None:
        if height % STRIDES[-1] or width % STRIDES[-1]:
            raise InputError(f"the map's height and width must be divisible by {STRIDES[-1]}, got {height}x{width}")
        if video_features is None and audio_features is None:
            raise InputError("`video_features` or `audio_features` is needed, got neither")
        if video_features is not None:
            expected = [
                (c, height // stride, width // stride)
                for c, stride in zip(self.config.video_channels, STRIDES, strict=True)
            ]
            got = [(f.shape[1], *f.shape[3:]) for f in video_features]
            if got != expected:
                raise InputError(
                    f"`video_features` must have (channels, height, width) {expected} for a map of {height}x{width}, "
                    f"finest first, got {got}"
                )
        if video_features is not None and audio_features is not None and len(audio_features) != len(video_features[0]):
            raise InputError(
                f"`video_features` and `audio_features` must be of the same clips, "
                f"got {len(video_features[0])} and {len(audio_features)}"
            )
        if audio_features is not None and (
            audio_features.ndim != 5 or audio_features.shape[1] != self.config.audio_channels
        ):
            raise InputError(
                f"`audio_features` must be (batch, {self.config.audio_channels}, time, height, width), "
                f"got {tuple(audio_features.shape)}"
            )

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        video_features: Sequence[torch.Tensor] | None = None,
        audio_features: torch.Tensor | None = None,
        video_mask: torch.Tensor | None = None,
        audio_mask: torch.Tensor | None = None,
        conditions: SaliencyConditions | None = None,
        return_dict: bool = True,
    ) -> SaliencyUNetOutput | tuple[torch.Tensor]:
        """
        Args:
            sample: noisy maps S_t, `(b * num_maps, 1, height, width)`, height and width divisible by 32. Several maps
                of one clip stand side by side: the first `num_maps` are the first clip's.
            timestep: t, one number or `(b * num_maps,)`.
            video_features, audio_features, video_mask, audio_mask: the conditions of b clips, see
                [`~SaliencyUNet.encode_conditions`].
            conditions: instead of the four, what `encode_conditions` returned for them.
            return_dict: whether to return a [`SaliencyUNetOutput`] instead of a tuple.

        Returns:
            the estimate of the clean map S_0, of the shape of `sample`, in `sample_range`.

        Raises:
            InputError: a size or a shape does not fit the config.
        """
        # 1. Check the map and take the conditions.
        if sample.ndim != 4 or sample.shape[1] != self.config.in_channels:
            raise InputError(
                f"`sample` must be (batch, {self.config.in_channels}, height, width), got {tuple(sample.shape)}"
            )
        height, width = sample.shape[2:]
        if conditions is None:
            conditions = self.encode_conditions(height, width, video_features, audio_features, video_mask, audio_mask)
        clips, _, _, *finest = conditions.video[-1].shape
        num_maps, timestep = match_maps(sample, timestep, clips, [side * STRIDES[0] for side in finest])
        conditions = conditions.repeat(num_maps)

        # 2. Encode the noisy map.
        noise_features = self.noise_encoder(sample, timestep)  # finest first: b c h w

        # 3. Decode, coarse to fine; every stage speaks to the head.
        x, finest = None, noise_features[0].shape[2:]
        summed = 0
        for stage, video, audio, noise in zip(
            self.stages, conditions.video, conditions.audio, reversed(noise_features), strict=True
        ):
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                x, out = self._gradient_checkpointing_func(stage, x, video, noise, audio)
            else:
                x, out = stage(x, video, noise, audio)
            summed = summed + F.interpolate(out, size=finest, mode="bilinear")  # b head_channels h/4 w/4

        # 4. Predict at a quarter of the size: a saliency map is smooth.
        logits = F.interpolate(self.head(summed), size=(height, width), mode="bilinear")
        low, high = self.config.sample_range
        prediction = low + (high - low) * logits.sigmoid()  # b 1 height width
        return SaliencyUNetOutput(sample=prediction) if return_dict else (prediction,)
