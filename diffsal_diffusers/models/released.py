"""The network that the authors of DiffSal released. It is another one than their paper's, and its weights need it.

Its attention stays within a time slice, its temporal convolutions read the first five slices, and sound acts through
another interaction than equation 9. Without sound, noise and timestep have no way to the map. Batch normalisations are
folded into the convolutions before them.

In shape comments: b clips or maps, c channels, t time slices, n = b t images, h and w of the feature map at hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import Downsample2D, ResnetBlock2D
from diffusers.utils.accelerate_utils import apply_forward_hook
from einops import rearrange
from torch import nn

from ..errors import InputError
from ..modeling import STRIDES, StrictModelMixin
from .saliency_unet import SaliencyUNetOutput, match_maps
from .upsampling import SummedConvolution, UpsampledConvolution

READ_SLICES = 5  # the temporal convolutions' kernel and stride: of nine slices, the others are left over


@dataclass
class ReleasedConditions:
    """What the network needs of picture and sound, computed once for all denoising steps.

    Args:
        video: `(b, t, h, w, c)` a stage, coarsest first; only the first one of a network without sound.
        audio: the sound in each stage's channels, `(b, t + 1, h', w', c)`; `None` for a network without sound.
        prediction: of a network without sound the map itself, `(b, 1, height, width)`; no noise changes it.
    """

    video: list[torch.Tensor]
    audio: list[torch.Tensor] | None
    prediction: torch.Tensor | None

    def repeat(self, num_maps: int) -> "ReleasedConditions":
        """The conditions of `num_maps` maps a clip, the maps of one clip side by side."""
        if num_maps == 1:
            return self

        def repeated(x: torch.Tensor) -> torch.Tensor:
            return x.repeat_interleave(num_maps, dim=0)

        return ReleasedConditions(
            video=[repeated(video) for video in self.video],
            audio=None if self.audio is None else [repeated(audio) for audio in self.audio],
            prediction=None if self.prediction is None else repeated(self.prediction),
        )


class ReleasedNoiseEncoder(nn.Module):
    """The noisy map to features at strides 8, 16 and 32, by ResNet blocks that are told the timestep."""

    def __init__(self, in_channels: int, channels: Sequence[int]):
        super().__init__()
        time_channels = 4 * channels[0]
        self.time_proj = Timesteps(channels[0], flip_sin_to_cos=False, downscale_freq_shift=1)
        self.time_embedding = TimestepEmbedding(channels[0], time_channels)
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        self.conv_down = nn.Conv2d(channels[0], channels[0], 3, stride=STRIDES[0])
        self.resnets = nn.ModuleList(
            ResnetBlock2D(in_channels=c_in, out_channels=c, temb_channels=time_channels, groups=32, eps=1e-6)
            for c_in, c in pairwise(channels)
        )
        # Under its default name the convolution would be registered, and saved, twice.
        self.downsamples = nn.ModuleList(Downsample2D(c, use_conv=True, padding=0, name="op") for c in channels[1:])

    def forward(self, sample: torch.Tensor, timestep: torch.Tensor) -> list[torch.Tensor]:
        """Noisy map `(b, 1, height, width)` and timesteps `(b,)` to `(b, c, h, w)` a scale, coarsest first."""
        time = self.time_embedding(self.time_proj(timestep).to(sample.dtype))  # b 4c
        sample = sample.contiguous(memory_format=torch.channels_last)
        x = self.conv_down(F.pad(self.conv_in(sample), (0, 1, 0, 1)))
        features = []
        for resnet, downsample in zip(self.resnets, self.downsamples, strict=True):
            x = downsample(resnet(x, time))
            features.append(x)
        return features[::-1]


class ReleasedAudioTransformer(nn.Module):
    """One pre-norm transformer layer over the audio tokens of all slices, and a LayerNorm after it."""

    def __init__(self, channels: int, num_heads: int = 2, head_dim: int = 64, mlp_channels: int = 256):
        super().__init__()
        inner = num_heads * head_dim
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * inner, bias=False)
        self.to_out = nn.Linear(inner, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, mlp_channels), nn.GELU(), nn.Linear(mlp_channels, channels))
        self.norm_out = nn.LayerNorm(channels)

    def forward(self, audio: torch.Tensor) -> torch.Tensor:
        """Audio feature `(b, c, t, h, w)` to the enhanced one, `(b, t, h, w, c)`."""
        x = rearrange(audio, "b c t h w -> b (t h w) c")
        q, k, v = rearrange(
            self.to_qkv(self.norm1(x)), "b n (qkv heads d) -> qkv b heads n d", qkv=3, heads=self.num_heads
        )
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.to_out(rearrange(attended, "b heads n d -> b n (heads d)"))
        x = self.norm_out(x + self.mlp(self.norm2(x)))
        return x.unflatten(1, audio.shape[2:])


class ReleasedAttention(nn.Module):
    """Attention within each slice, with keys and values compressed by `kernel` in both directions."""

    def __init__(self, channels: int, kernel: int, num_heads: int = 2):
        super().__init__()
        self.num_heads, self.scale = num_heads, channels**-0.5  # of all channels, not of a head's
        self.conv_q = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.conv_k = nn.Conv2d(channels, channels, kernel, stride=kernel, groups=channels, bias=False)
        self.conv_v = nn.Conv2d(channels, channels, kernel, stride=kernel, groups=channels, bias=False)
        self.norm_q, self.norm_k, self.norm_v = (nn.LayerNorm(channels) for _ in range(3))
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """Slices and what their keys are made of, `(n, h, w, c)` both, to the attention's output of that shape."""
        q = self._heads(x, self.conv_q, self.norm_q, self.to_q)  # n heads h*w d
        k = self._heads(key, self.conv_k, self.norm_k, self.to_k)
        v = self._heads(x, self.conv_v, self.norm_v, self.to_v)
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.to_out(rearrange(out, "n heads hw d -> n hw (heads d)")).view_as(x)

    def _heads(self, x: torch.Tensor, conv: nn.Conv2d, norm: nn.LayerNorm, linear: nn.Linear) -> torch.Tensor:
        y = linear(norm(conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)))  # n h w c
        return rearrange(y, "n h w (heads d) -> n heads (h w) d", heads=self.num_heads)


class ReleasedStage(nn.Module):
    """One stage of the decoder.

    Args:
        in_channels: channels of the coarser stage; `None` for the first stage.
        channels: channels of this stage.
        head_channels: channels of what the stage gives to the head.
        kernel: compression of keys and values.
        audio_channels: channels of the audio feature; `None` without sound.
    """

    def __init__(
        self, in_channels: int | None, channels: int, head_channels: int, kernel: int, audio_channels: int | None
    ):
        super().__init__()
        if in_channels is not None:
            self.conv1 = UpsampledConvolution(in_channels, channels)
            self.conv2 = nn.Conv2d(channels, channels, 3, padding=2, dilation=2)
        if audio_channels is not None:
            self.audio_proj = nn.Linear(audio_channels, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.attention = ReleasedAttention(channels, kernel)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 2 * channels), nn.GELU(), nn.Linear(2 * channels, channels))
        self.norm_out = nn.LayerNorm(channels)
        self.temporal_conv = nn.Conv3d(channels, head_channels, (READ_SLICES, 1, 1), bias=False)

    def upsample(self, x: torch.Tensor) -> torch.Tensor:
        """What the coarser stage gave, `(b, t, h / 2, w / 2, c')`, in the channels of this one, `(b, t, h, w, c)`."""
        images = x.flatten(0, 1).permute(0, 3, 1, 2)  # n c' h/2 w/2
        y = F.relu(self.conv2(F.relu(self.conv1(images))))
        return y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])

    def forward(self, x: torch.Tensor, audio: torch.Tensor | None, last: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            x: the stage's slices, `(b, t, h, w, c)`.
            audio: the sound in the stage's channels, `(b, t, h', w', c)`.
            last: whether no stage follows, so that only the slices that the map reads count.

        Returns:
            the slices for the next stage, of the shape of `x`, and what goes to the head, `(b, head_channels, h, w)`.
        """
        key = None if audio is None else self.audio_key(x, audio)
        if last:
            x, key = x[:, :READ_SLICES], None if key is None else key[:, :READ_SLICES]
        b = len(x)
        normed = self.norm1(x)
        key = normed if key is None else key
        attended = self.attention(normed.flatten(0, 1), key.flatten(0, 1))
        x = x + attended.unflatten(0, (b, -1))
        x = x + self.mlp(self.norm2(x))
        read = self.norm_out(x[:, :READ_SLICES]).permute(0, 4, 1, 2, 3)  # b c t h w
        return x, F.relu(self.temporal_conv(read).squeeze(2))

    @staticmethod
    def audio_key(x: torch.Tensor, audio: torch.Tensor) -> torch.Tensor:
        """What the keys are made of, of the shape of `x`: the sound where it agrees with the picture.

        The release takes the memory of its `(c, t, h, w)` for one of `(t, h, w, c)`, and was trained so.
        """
        b, t, h, w, c = x.shape
        rows, columns = h // audio.shape[2], w // audio.shape[3]
        blocks = audio[:, :, :, None, :, None]  # b t h' 1 w' 1 c: nearest upsampling, without copies
        activity = x.reshape(b, t, h // rows, rows, w // columns, columns, c) * blocks
        mask = activity.mean(dim=1).reshape(b, h, w, c).softmax(dim=2)
        mask = rearrange(mask, "b (h i) (w j) c -> b c 1 h i w j", i=rows, j=columns)
        key = mask * rearrange(audio, "b t h w c -> b c t h 1 w 1")
        return key.contiguous().view(b, t, h, w, c)


class ReleasedSaliencyUNet(StrictModelMixin, ConfigMixin):
    """The denoising network of the authors' release, for its weights; it predicts the clean map x0.

    Args:
        in_channels: channels of the map.
        video_channels: channels of the video features, finest first.
        audio_channels: channels of the audio feature; `None` for the video-only network, which noise does not reach
            and which has no parameters for it.
        head_channels: channels in which the head adds up the four stages.
        sample_range: the range of the maps that diffusion sees.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        video_channels: tuple[int, ...] = (96, 192, 384, 768),
        audio_channels: int | None = 512,
        head_channels: int = 768,
        sample_range: tuple[float, float] = (0.0, 1.0),
    ):
        super().__init__()
        channels = tuple(reversed(video_channels))  # from here on scales come as the stages do, coarsest first
        if audio_channels is not None:
            self.noise_encoder = ReleasedNoiseEncoder(in_channels, video_channels)
            self.audio_transformer = ReleasedAudioTransformer(audio_channels)
        self.stages = nn.ModuleList(
            ReleasedStage(None if i == 0 else channels[i - 1], c, head_channels, 2 ** (i + 1), audio_channels)
            for i, c in enumerate(channels)
        )
        self.conv_head = SummedConvolution(head_channels, channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], in_channels, 1)

    @apply_forward_hook
    def encode_conditions(
        self,
        height: int,
        width: int,
        video_features: Sequence[torch.Tensor] | None = None,
        audio_features: torch.Tensor | None = None,
    ) -> ReleasedConditions:
        """What depends on picture and sound only: once a clip, for all denoising steps and all maps of the clip.

        Args:
            height, width: size of the map in pixels; multiples of 32 from 64 on.
            video_features: `(b, c, t, h, w)` at strides 4, 8, 16, 32, finest first.
            audio_features: `(b, c, t + 1, h', w')`; h' and w' divide those of the coarsest video feature.

        Raises:
            InputError: picture or sound is missing, or a shape does not fit the config.
        """
        self._check_conditions(height, width, video_features, audio_features)
        video = [rearrange(feature.to(self.dtype), "b c t h w -> b t h w c") for feature in reversed(video_features)]
        if self.config.audio_channels is None:
            video = [feature[:, :READ_SLICES] for feature in video]
            return ReleasedConditions(video[:1], None, self._decode(video, [None] * len(video), (height, width)))
        enhanced = self.audio_transformer(audio_features.to(self.dtype))  # b t h' w' c
        return ReleasedConditions(video, [stage.audio_proj(enhanced) for stage in self.stages], None)

    def _check_conditions(self, height, width, video_features, audio_features) -> None:
        if video_features is None:
            raise InputError("the released network needs `video_features`")
        if (audio_features is None) != (self.config.audio_channels is None):
            trained = "without" if audio_features is not None else "with"
            raise InputError(f"the released network was trained {trained} sound, and `audio_features` must be so")
        if min(height, width) < 64 or height % STRIDES[-1] or width % STRIDES[-1]:
            raise InputError(f"the map's height and width must be multiples of 32 from 64 on, got {height}x{width}")
        b, _, slices, *_ = video_features[0].shape
        if slices < READ_SLICES:
            raise InputError(f"the released network reads {READ_SLICES} slices of the video, got {slices}")
        expected = [
            (b, channels, slices, height // stride, width // stride)
            for channels, stride in zip(self.config.video_channels, STRIDES, strict=True)
        ]
        got = [tuple(feature.shape) for feature in video_features]
        if got != expected:
            raise InputError(
                f"`video_features` must be {expected} for a map of {height}x{width}, finest first, got {got}"
            )
        if audio_features is not None:
            *kind, h, w = audio_features.shape
            rows, columns = expected[-1][3:]
            if kind != [b, self.config.audio_channels, slices + 1] or rows % h or columns % w:
                raise InputError(
                    f"`audio_features` must be ({b}, {self.config.audio_channels}, {slices + 1}, h, w), where h and w "
                    f"divide {rows} and {columns}, got {tuple(audio_features.shape)}"
                )

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float,
        video_features: Sequence[torch.Tensor] | None = None,
        audio_features: torch.Tensor | None = None,
        conditions: ReleasedConditions | None = None,
        return_dict: bool = True,
    ) -> SaliencyUNetOutput | tuple[torch.Tensor]:
        """
        Args:
            sample: noisy maps, `(b * num_maps, 1, height, width)`; the first `num_maps` are the first clip's.
            timestep: t, one number or `(b * num_maps,)`.
            video_features, audio_features: the conditions of b clips, see
                [`~ReleasedSaliencyUNet.encode_conditions`].
            conditions: instead of the two, what `encode_conditions` returned for them.
            return_dict: whether to return a [`SaliencyUNetOutput`] instead of a tuple.

        Returns:
            the estimate of the clean map, of the shape of `sample`, in `sample_range`.

        Raises:
            InputError: a size or a shape does not fit the config.
        """
        height, width = sample.shape[2:]
        if conditions is None:
            conditions = self.encode_conditions(height, width, video_features, audio_features)
        clips, _, *coarsest, _ = conditions.video[0].shape
        num_maps, timestep = match_maps(sample, timestep, clips, [side * STRIDES[-1] for side in coarsest])
        conditions = conditions.repeat(num_maps)
        prediction = conditions.prediction
        if prediction is None:
            noise = self.noise_encoder(sample, timestep)
            # At all scales but the finest, the noise is one more slice behind the video's.
            slices = [
                torch.cat([video, feature.permute(0, 2, 3, 1).unsqueeze(1)], dim=1)
                for video, feature in zip(conditions.video[:-1], noise, strict=True)
            ]
            prediction = self._decode([*slices, None], conditions.audio, (height, width))
        return SaliencyUNetOutput(sample=prediction) if return_dict else (prediction,)

    def _decode(
        self, slices: Sequence[torch.Tensor | None], audio: Sequence[torch.Tensor | None], size: tuple[int, int]
    ) -> torch.Tensor:
        """The map from the slices that each stage sees, `(b, t, h, w, c)`, coarsest first; the last sees none."""
        x, outputs = slices[0], []
        for i, (stage, sound) in enumerate(zip(self.stages, audio, strict=True)):
            last = i == len(self.stages) - 1
            if i > 0:
                x = stage.upsample(x)
                if not last:
                    x = x + slices[i]
            x, out = stage(x, sound, last)
            outputs.append(out)
        half = (size[0] // 2, size[1] // 2)
        logits = self.conv_out(F.relu(self.conv_head(outputs, half)))
        low, high = self.config.sample_range
        return low + (high - low) * F.interpolate(logits.sigmoid(), size=size, mode="bilinear")
