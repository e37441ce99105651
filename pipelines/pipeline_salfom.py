"""The SalFoM pipeline: a video in, a saliency map for every frame out, one pass of the network each."""

import os
from dataclasses import fields
from typing import Any

import torch

from ..errors import InputError
from ..media.audio import AudioSource
from ..media.windows import ClipWindow
from ..models import SalFoM
from ..processing import SaliencyProcessor
from .pipeline_saliency import ClipPredictor, Denoising, SaliencyPipeline


class SalFoMPipeline(SaliencyPipeline):
    """Video saliency prediction on a video foundation model: SalFoM (arXiv 2404.03097).

    A window slides over the video, and the network predicts the map of its last frame. At the beginning, where there
    are too few frames before, the window runs backwards. The network does not listen, and draws nothing at random:
    the same maps come out of every call, whatever its `generator`.

    This model inherits from [`DiffusionPipeline`]: see there for loading, saving and moving between devices.

    Args:
        salfom: the network.
        processor: sizes and normalisation; its clips end with the target.
        default_frame_stride: frames from one predicted map to the next where a call names no `frame_stride`.

    Raises:
        InputError: network and processor do not fit together.
    """

    model_cpu_offload_seq = "salfom"

    def __init__(self, salfom: SalFoM, processor: SaliencyProcessor, default_frame_stride: int = 1):
        super().__init__()
        clips = (processor.config.num_frames, processor.config.target_frame)
        if clips != (salfom.num_frames, salfom.num_frames - 1):
            raise InputError(
                f"the network takes {salfom.num_frames} frames and predicts the last one; the processor's "
                f"`num_frames` and `target_frame` are {clips[0]} and {clips[1]}"
            )
        self.register_modules(salfom=salfom, processor=processor)
        self.register_to_config(default_frame_stride=default_frame_stride)

    @classmethod
    def from_encoder(
        cls,
        encoder: str = "umt_l16",
        *,
        pretrained: bool | str | os.PathLike = False,
        encoder_config: dict[str, Any] | None = None,
        frame_size: tuple[int, int] = (224, 224),
        num_frames: int | None = None,
        frame_interval: int = 1,
        frame_stride: int = 1,
        **salfom_config,
    ) -> "SalFoMPipeline":
        """A new pipeline on a video encoder, whose decoder is untrained.

        Args:
            encoder: name of a video encoder with a feature of stride 16, see
                [`~diffsal_diffusers.encoders.list_video_encoders`].
            pretrained: its weights, see [`~diffsal_diffusers.encoders.create_video_encoder`].
            encoder_config: further settings of the encoder.
            frame_size: height and width that the network sees, divisible by 32.
            num_frames: frames in a clip; `None` takes what the encoder was made for, or 16.
            frame_interval: frames of the video from one frame of a clip to the next.
            frame_stride: frames from one predicted map to the next where a call names none.
            salfom_config: further settings of [`SalFoM`].

        Raises:
            InputError: there is no such encoder, or the settings do not fit together.
        """
        salfom = SalFoM(encoder=encoder, encoder_config=encoder_config, num_frames=num_frames, **salfom_config)
        if pretrained is not False:
            salfom.video_encoder.load_pretrained(pretrained)
        processor = SaliencyProcessor(
            frame_size=frame_size,
            num_frames=salfom.num_frames,
            frame_interval=frame_interval,
            target_frame=salfom.num_frames - 1,
            clip_start="mirror",
            image_mean=salfom.video_encoder.image_mean,
            image_std=salfom.video_encoder.image_std,
            audio_slices=0,
        )
        return cls(salfom.eval(), processor, default_frame_stride=frame_stride)

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        return {"decoder": self.salfom.decoder, "video_encoder": self.salfom.video_encoder}

    def check_denoising(self, denoising: Denoising) -> None:
        for setting in fields(Denoising):
            # What a callback would get means nothing without one.
            if setting.name == "callback_on_step_end_tensor_inputs":
                continue
            if getattr(denoising, setting.name) != setting.default:
                raise InputError(f"`{setting.name}` is for denoising, and SalFoM predicts in one pass: leave it out")

    def clip_predictor(
        self, sound: AudioSource | None, generator: torch.Generator | None, denoising: Denoising
    ) -> ClipPredictor:
        def predict(windows: list[ClipWindow]) -> list[torch.Tensor]:
            saliency = self.salfom(self.stack_clips(windows, self.salfom.dtype)).saliency  # b 1 h w
            return [saliency.squeeze(1).float()]

        return predict
