"""What stands between media and networks: frame sizes, normalisation, log-mel settings, saved with the pipeline."""

import os
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config

from .errors import InputError
from .media.audio import SAMPLE_RATE, AudioSource
from .media.log_mel import (
    EXAMPLE_FRAMES,
    HOP_LENGTH,
    WINDOW_LENGTH,
    log_mel_spectrogram,
    released_log_mel_slices,
    resize_log_mel,
)

RELEASED_BUFFER = 35_280  # samples that the release's front end works on
RELEASED_SLICES = 15  # slices that it has room for
AUDIO_ALIGNMENTS = ("clip", "released")
CLIP_STARTS = ("repeat", "mirror")


class SaliencyProcessor(ConfigMixin):
    """Turns frames and sound into what the encoders take.

    Args:
        frame_size: height and width that frames are resized to, in pixels; divisible by 32.
        num_frames: frames in a clip.
        frame_interval: frames of the video from one frame of a clip to the next; 1 for neighbours.
        target_frame: place in the clip, from 0, of the frame that the map is for.
        clip_start: what stands before the video's first frame. `"repeat"`: that frame. `"mirror"`, for clips that end
            with their target: clips that would begin before it run backwards instead, from the frames after the
            target to it, as is the field's custom (TASED-Net, arXiv 1908.05786); no sound goes with them.
        image_mean, image_std: normalisation of RGB values in [0, 1].
        audio_slices: log-mel slices of a clip; 0 for a network that does not listen.
        audio_size: height (time) and width (mel bands) that each 64x64 log-mel slice is resized to.
        audio_alignment: `"clip"` spreads the slices evenly over the clip; `"released"` is the front end that the
            authors' weights were trained with: the clip's sound in the middle of 2.2 s of silence, a slice every
            110 ms from the start of that, which is not aligned with the frames.
    """

    config_name = "processor_config.json"

    @register_to_config
    def __init__(
        self,
        frame_size: tuple[int, int] = (224, 384),
        num_frames: int = 16,
        frame_interval: int = 1,
        target_frame: int = 8,
        clip_start: str = "repeat",
        image_mean: tuple[float, float, float] = (0.45, 0.45, 0.45),
        image_std: tuple[float, float, float] = (0.225, 0.225, 0.225),
        audio_slices: int = 9,
        audio_size: tuple[int, int] = (112, 192),
        audio_alignment: str = "clip",
    ):
        if len(frame_size) != 2 or any(side <= 0 or side % 32 for side in frame_size):
            raise InputError(f"`frame_size` must be two positive multiples of 32, got {tuple(frame_size)}")
        if not 0 <= target_frame < num_frames:
            raise InputError(f"`target_frame` must be from 0 to {num_frames - 1}, got {target_frame}")
        if clip_start not in CLIP_STARTS:
            raise InputError(f"`clip_start` must be one of {', '.join(CLIP_STARTS)}, got {clip_start!r}")
        if clip_start == "mirror" and (target_frame != num_frames - 1 or audio_slices):
            raise InputError(
                f"`clip_start` = 'mirror' needs the last frame as `target_frame`, {num_frames - 1}, and no "
                f"`audio_slices`, got {target_frame} and {audio_slices}"
            )
        if frame_interval < 1:
            raise InputError(f"`frame_interval` must be at least 1, got {frame_interval}")
        if len(image_mean) != 3 or len(image_std) != 3 or min(image_std) <= 0:
            raise InputError(
                f"`image_mean` and `image_std` must be three numbers each, the latter positive, "
                f"got {tuple(image_mean)} and {tuple(image_std)}"
            )
        if audio_slices < 0 or len(audio_size) != 2 or min(audio_size) < 1:
            raise InputError(
                f"`audio_slices` must be at least 0 and the two numbers of `audio_size` positive, "
                f"got {audio_slices} and {tuple(audio_size)}"
            )
        if audio_alignment not in AUDIO_ALIGNMENTS:
            raise InputError(
                f"`audio_alignment` must be one of {', '.join(AUDIO_ALIGNMENTS)}, got {audio_alignment!r}"
            )
        if audio_alignment == "released" and audio_slices > RELEASED_SLICES:
            raise InputError(
                f"the released front end has room for {RELEASED_SLICES} `audio_slices`, got {audio_slices}"
            )

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Writes `processor_config.json` into the folder."""
        self.save_config(save_directory, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs) -> "SaliencyProcessor":
        """Reads what `save_pretrained` wrote."""
        return cls.from_config(cls.load_config(pretrained_model_name_or_path, **kwargs))

    @property
    def clip_settings(self) -> dict[str, int | bool]:
        """How clips are taken from a video: arguments of [`~media.windows.clip_indices`]."""
        config = self.config
        return {
            "num_frames": config.num_frames,
            "target_frame": config.target_frame,
            "interval": config.frame_interval,
            "mirrored": config.clip_start == "mirror",
        }

    def preprocess_frame(self, pixels: np.ndarray) -> torch.Tensor:
        """One frame `(h, w, 3)`, uint8 RGB, resized: `(3, height, width)`, uint8, so that a stream's frames are
        kept small until they are used."""
        frame = torch.from_numpy(pixels).permute(2, 0, 1)[None]  # 1 3 h w
        if tuple(frame.shape[2:]) == tuple(self.config.frame_size):
            return frame[0]
        frame = F.interpolate(frame, size=tuple(self.config.frame_size), mode="bilinear", antialias=True)
        return frame[0]

    def normalize(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames `(n, 3, height, width)`, uint8, to the float32 values that the video encoder takes."""
        mean = torch.tensor(self.config.image_mean, device=frames.device).view(3, 1, 1)
        std = torch.tensor(self.config.image_std, device=frames.device).view(3, 1, 1)
        return (frames / 255 - mean) / std

    def log_mel_slices(self, sound: AudioSource, clip_times: Sequence[Sequence[float]]) -> torch.Tensor:
        """The log-mel slices of some clips.

        Args:
            sound: read forward: the clips of a later call begin no earlier.
            clip_times: presentation times in seconds of the frames of each clip.

        Returns:
            `(b, 1, t, height, width)`, t = `audio_slices`, of `audio_size`.

        Raises:
            InputError: the network does not listen.
        """
        if self.config.audio_slices == 0:
            raise InputError("this processor reads no sound: its `audio_slices` are 0")
        if self.config.audio_alignment == "released":
            slices = self._released_slices(sound, clip_times)
        else:
            slices = self._aligned_slices(sound, clip_times)  # b t 64 64
        return resize_log_mel(slices, tuple(self.config.audio_size)).unsqueeze(1)  # b 1 t h w

    def _aligned_slices(self, sound: AudioSource, clip_times: Sequence[Sequence[float]]) -> torch.Tensor:
        # The slices' centres divide the clip's time evenly; each slice lasts 0.65 s, so neighbours overlap. All clips
        # share one 10 ms grid: a slice does not depend on which clips are asked for together.
        first = torch.tensor([[times[0]] for times in clip_times], dtype=torch.float64)  # b 1
        last = torch.tensor([[times[-1]] for times in clip_times], dtype=torch.float64)  # b 1
        # A frame is shown until the next one: n frames last n/(n-1) of the time from the first to the last.
        places = (torch.arange(self.config.audio_slices, dtype=torch.float64) + 0.5) / self.config.audio_slices
        places = places + (places - 0.5) / max(self.config.num_frames - 1, 1)
        centres = first + (last - first) * places  # b t
        half = (EXAMPLE_FRAMES - 1) / 2 * HOP_LENGTH + WINDOW_LENGTH / 2
        starts = ((centres * SAMPLE_RATE - half) / HOP_LENGTH).round().long()  # log-mel frame that a slice starts at

        length = (EXAMPLE_FRAMES - 1) * HOP_LENGTH + WINDOW_LENGTH
        order = starts.unique(sorted=True)  # read once and forward; a pause between two slices is not read
        waveforms = torch.stack([sound.read(s * HOP_LENGTH, s * HOP_LENGTH + length) for s in order.tolist()])
        return log_mel_spectrogram(waveforms)[torch.searchsorted(order, starts)]  # b t 64 64

    def _released_slices(self, sound: AudioSource, clip_times: Sequence[Sequence[float]]) -> torch.Tensor:
        buffers = torch.zeros(len(clip_times), RELEASED_BUFFER)
        for buffer, times in zip(buffers, clip_times, strict=True):
            half_frame = (times[-1] - times[0]) / max(len(times) - 1, 1) / 2
            first, last = (round(t * SAMPLE_RATE) for t in (times[0] - half_frame, times[-1] + half_frame))
            length = min(last - first, RELEASED_BUFFER)
            offset = (RELEASED_BUFFER - length) // 2
            buffer[offset : offset + length] = sound.read(first, first + length)
        return released_log_mel_slices(buffers, self.config.audio_slices)  # b t 64 64
