"""What a condition encoder is: the interface that the registry, the Saliency-UNet and the pipeline rely on."""

from dataclasses import dataclass
from os import PathLike
from typing import NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.utils import BaseOutput
from diffusers.utils.accelerate_utils import apply_forward_hook

from ..errors import InputError
from ..modeling import StrictModelMixin


class FeatureInfo(NamedTuple):
    """One feature map of an encoder, stated so that nobody has to run the encoder to know it.

    Args:
        channels: number of channels.
        stride: pixels of the frame, or of the log-mel slice, per pixel of the feature map, in both directions.
        time_slices: slices in time that a clip of the encoder's configured length gives.
    """

    channels: int
    stride: int
    time_slices: int


@dataclass
class EncoderOutput(BaseOutput):
    """
    Args:
        features: feature maps, finest scale first, each `(batch, channels, time_slices, height, width)`. A video
            encoder gives one for each entry of its `feature_info`, an audio encoder a single one.
    """

    features: list[torch.Tensor]


class ConditionEncoder(StrictModelMixin, ConfigMixin):
    """What video and audio encoders share: diffusers' configuration, saving and loading."""

    def __init__(self):
        super().__init__()
        self.register_to_config()  # so that an encoder without settings, and without the decorator, can be saved

    def load_pretrained(self, source: bool | str | PathLike = True) -> None:
        """Takes over weights published for the backbone, in place of the initial ones.

        Args:
            source: `True` for the published weights themselves, downloaded where needed, or the path of a local file
                with the tensors under their published names.

        Raises:
            InputError: there are no such weights, they cannot be had, or they are not those of this network.
        """
        raise InputError(
            f"{type(self).__name__} knows of no published weights; load a saved encoder with "
            f"{type(self).__name__}.from_pretrained(folder)"
        )


class VideoEncoder(ConditionEncoder):
    """Base class of video encoders. `forward(video)` takes `(b, 3, t, h, w)`, normalised by `image_mean` and
    `image_std`, and returns an [`EncoderOutput`].

    A subclass sets `feature_info` in its constructor: one [`FeatureInfo`] a scale, finest first. The Saliency-UNet
    takes scales of strides 4, 8, 16 and 32. It may set `image_mean` and `image_std`, which are for RGB values in
    [0, 1]; ImageNet's are the default.
    """

    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    feature_info: list[FeatureInfo]


class PerFrameVideoEncoder(VideoEncoder):
    """A video encoder that sees frames one by one and mixes them over time afterwards.

    Clips that overlap share frames: the pipeline calls `encode_frames` once for each frame of the video and
    `mix_frames` once for each clip. `forward` does the two in a row.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        # Model offloading brings a network to its device when `forward` is called; here, when one of these two is.
        for name in {"encode_frames", "mix_frames"} & vars(cls).keys():
            setattr(cls, name, apply_forward_hook(vars(cls)[name]))

    def encode_frames(self, frames: torch.Tensor) -> list[torch.Tensor]:
        """Frames `(n, 3, h, w)` to feature maps `(n, c, h, w)`, finest first."""
        raise NotImplementedError

    def mix_frames(self, features: list[torch.Tensor]) -> EncoderOutput:
        """The frame features of clips, `(b, c, t, h, w)` with one slice a frame, to the features of the clips."""
        raise NotImplementedError

    def forward(self, video: torch.Tensor) -> EncoderOutput:
        batch, _, time, _, _ = video.shape
        frames = video.transpose(1, 2).flatten(0, 1)  # (b t) 3 h w
        features = self.encode_frames(frames)
        return self.mix_frames([f.unflatten(0, (batch, time)).transpose(1, 2) for f in features])


class AudioEncoder(ConditionEncoder):
    """Base class of audio encoders. `forward(log_mel)` takes log-mel slices `(b, 1, t, h, w)` (h along time, w along
    the mel bands; each resized to `input_size`) and returns an [`EncoderOutput`] with a single feature map
    `(b, c, t, h', w')`, one time slice for each log-mel slice.

    A subclass sets `feature_info`, a list of the one [`FeatureInfo`] (`stride` in pixels of the resized slice,
    `time_slices` as many as it wants of a clip), and `input_size` where it wants another than the paper's.
    """

    feature_info: list[FeatureInfo]
    input_size: tuple[int, int] = (112, 192)
