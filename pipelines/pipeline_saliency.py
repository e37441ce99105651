"""What the pipelines share: a video in, a saliency map for every frame out, whatever network predicts it."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from numbers import Integral
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from diffusers.utils import logging
from PIL import Image

from ..encoders import AudioEncoder
from ..errors import InputError, check_finite, check_positive_integer
from ..media.audio import AudioSource, open_audio
from ..media.video import DEFAULT_FPS, find_sound, open_video
from ..media.windows import ClipWindow, clip_windows
from ..processing import SaliencyProcessor
from .pipeline_output import SaliencyPipelineOutput

logger = logging.get_logger(__name__)

OUTPUT_TYPES = ("np", "pt", "pil")
# From clips to what a call gives of each: the map and, where it is asked for, the uncertainty, `(b, h, w)` each.
ClipPredictor = Callable[[list[ClipWindow]], list[torch.Tensor]]


@dataclass
class Denoising:
    """The arguments of [`SaliencyPipeline.__call__`] that are about noise, with their defaults."""

    num_inference_steps: int | None = None
    ensemble_size: int = 1
    output_uncertainty: bool = False
    audio_guidance_scale: float = 1.0
    independent_noise: bool = False
    callback_on_step_end: Callable | None = None
    callback_on_step_end_tensor_inputs: tuple[str, ...] = ("sample",)


class SaliencyPipeline(DiffusionPipeline):
    """Base class of the pipelines: the call, the stream, media and outputs.

    A subclass registers a `processor` and a `default_frame_stride`, says in `check_denoising` what it takes of the
    arguments that are about noise, and predicts in what `clip_predictor` returns.
    """

    processor: SaliencyProcessor
    audio_encoder: AudioEncoder | None = None

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        """The networks by name, as they are counted, frozen and trained."""
        return {name: part for name, part in self.components.items() if isinstance(part, torch.nn.Module)}

    def check_denoising(self, denoising: Denoising) -> None:
        """Refuses settings of the denoising that cannot be right.

        Raises:
            InputError: names the argument, the value got and the values allowed.
        """
        raise NotImplementedError

    def clip_predictor(
        self, sound: AudioSource | None, generator: torch.Generator | None, denoising: Denoising
    ) -> ClipPredictor:
        """What predicts the clips of one video, in their order."""
        raise NotImplementedError

    def check_inputs(
        self,
        video: Any,
        audio: Any,
        height: int | None,
        width: int | None,
        frame_stride: int,
        batch_size: int,
        audio_guidance_scale: float,
        generator: torch.Generator | None,
        output_type: str,
        fps: float | None,
    ) -> None:
        """Refuses arguments that cannot be right before any work is done.

        Raises:
            InputError: names the argument, the value got and the values allowed.
        """
        for name, value in (("frame_stride", frame_stride), ("batch_size", batch_size)):
            check_positive_integer(name, value)
        if fps is not None:
            check_finite("fps", fps)
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"`output_type` must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise InputError(f"`generator` must be a torch.Generator, got {type(generator).__name__}")
        if audio is True:
            raise InputError("`audio` must be a path, a (waveform, rate) pair, None (the video's own) or False (none)")
        if audio is not None and audio is not False and self.audio_encoder is None:
            raise InputError(
                "`audio` was given, but this pipeline has no audio encoder; pass `audio=False` or nothing"
            )
        if audio_guidance_scale != 1.0 and (self.audio_encoder is None or audio is False):
            raise InputError(f"`audio_guidance_scale` = {audio_guidance_scale} needs sound and an audio encoder")
        if audio_guidance_scale != 1.0 and video is None:
            raise InputError(f"`audio_guidance_scale` = {audio_guidance_scale} needs a picture to guide away from")
        if video is not None:
            if height is not None or width is not None:
                raise InputError("`height` and `width` are for `video=None`; otherwise the video has its own size")
            return
        if self.audio_encoder is None or audio is None or audio is False:
            raise InputError(
                "`video=None` asks for prediction from sound alone: `audio` and an audio encoder are needed"
            )
        for name, value in (("height", height), ("width", width)):
            if not isinstance(value, Integral) or value < 1:
                raise InputError(f"`video=None` needs the maps' `{name}` in pixels, got {value!r}")

    @torch.no_grad()
    def __call__(
        self,
        video: Any = None,
        audio: Any = None,
        num_inference_steps: int | None = None,
        frame_stride: int | None = None,
        batch_size: int = 4,
        ensemble_size: int = 1,
        output_uncertainty: bool = False,
        audio_guidance_scale: float = 1.0,
        independent_noise: bool = False,
        generator: torch.Generator | None = None,
        output_type: str = "np",
        match_input_resolution: bool = True,
        fps: float | None = None,
        start: float = 0.0,
        duration: float | None = None,
        height: int | None = None,
        width: int | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ("sample",),
        return_dict: bool = True,
    ) -> SaliencyPipelineOutput | tuple:
        """Predicts a saliency map for every frame of a video.

        All maps are held in memory; for a long video use [`~SaliencyPipeline.stream`]. [`SalFoMPipeline`] neither
        listens nor denoises: it has no use for a `generator`, and refuses an `audio` to listen to and what is about
        denoising (`num_inference_steps`, `ensemble_size`, `output_uncertainty`, `audio_guidance_scale`,
        `independent_noise`, the callback).

        Args:
            video: a path of a video file or of a folder of frames; a list of PIL images; an array
                `(frames, height, width, 3)` or a tensor `(frames, 3, height, width)`, uint8 or float in [0, 1]. `None`
                predicts from sound alone.
            audio: a path, or a pair of a waveform (`(samples,)` or `(channels, samples)`, float in [-1, 1] or int16)
                and its rate in Hz; `None` takes the video's own sound, where there is one; `False` ignores it.
            num_inference_steps: denoising steps; `None` takes the model's default.
            frame_stride: a map is predicted for every so many frames, and those between are interpolated in time;
                `None` takes the model's default.
            batch_size: clips predicted together.
            ensemble_size: noise maps denoised for each frame; their mean is the saliency map.
            output_uncertainty: also return the standard deviation over the ensemble, pixel by pixel.
            audio_guidance_scale: classifier-free guidance on the sound: 0 ignores it, 1 takes it as it is, more
                strengthens what it changes.
            independent_noise: draw a noise map for every frame. By default all frames start from the same one, so that
                the maps do not flicker.
            generator: of the noise. The same seed gives the same maps, whatever the batch size and whether streamed.
            output_type: `"np"`, `"pt"` or `"pil"`.
            match_input_resolution: resize the maps to the frames' size; otherwise they have the processor's.
            fps: frame rate of frames that have no times of their own, 25 by default; also of the maps of `video=None`.
            start, duration: the part of the media to predict, in seconds. For `video=None`, maps go on to the end of
                `duration`, in silence where the sound ends before.
            height, width: size of the maps for `video=None`.
            callback_on_step_end: called after each step as `callback(pipe, step, timestep, tensors)`; may return a
                dictionary with another `"sample"` for the next step or, at the last one, another `"prediction"`.
            callback_on_step_end_tensor_inputs: what the callback gets: `"sample"` (the state), `"prediction"` (the
                estimate of the clean map).
            return_dict: whether to return a [`SaliencyPipelineOutput`] instead of a tuple.

        Returns:
            [`SaliencyPipelineOutput`], or the tuple (saliency, uncertainty).

        Raises:
            InputError: an argument or a file is wrong; the message says which, and what would be right.

        Examples:

        ```py
        >>> import diffsal_diffusers
        >>> from diffusers import DiffusionPipeline

        >>> pipe = DiffusionPipeline.from_pretrained(diffsal_diffusers.pretrained("tiny"))
        >>> saliency = pipe("clip.mp4", generator=torch.Generator().manual_seed(0)).saliency
        ```
        """
        stream = self.stream(
            video,
            audio,
            num_inference_steps=num_inference_steps,
            frame_stride=frame_stride,
            batch_size=batch_size,
            ensemble_size=ensemble_size,
            output_uncertainty=output_uncertainty,
            audio_guidance_scale=audio_guidance_scale,
            independent_noise=independent_noise,
            generator=generator,
            output_type=output_type,
            match_input_resolution=match_input_resolution,
            fps=fps,
            start=start,
            duration=duration,
            height=height,
            width=width,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        times, saliency, *uncertainty = zip(*stream, strict=True)
        gather = {"np": np.stack, "pt": torch.stack, "pil": list}[output_type]
        saliency = gather(saliency)
        uncertainty = gather(uncertainty[0]) if uncertainty else None
        if not return_dict:
            return saliency, uncertainty
        return SaliencyPipelineOutput(saliency=saliency, uncertainty=uncertainty, times=np.array(times))

    def stream(
        self,
        video: Any = None,
        audio: Any = None,
        num_inference_steps: int | None = None,
        frame_stride: int | None = None,
        batch_size: int = 4,
        ensemble_size: int = 1,
        output_uncertainty: bool = False,
        audio_guidance_scale: float = 1.0,
        independent_noise: bool = False,
        generator: torch.Generator | None = None,
        output_type: str = "np",
        match_input_resolution: bool = True,
        fps: float | None = None,
        start: float = 0.0,
        duration: float | None = None,
        height: int | None = None,
        width: int | None = None,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ("sample",),
    ) -> Iterator[tuple]:
        """Like calling the pipeline, but yields (time, map) for one frame after another, while the video is read.

        Memory does not grow with the video's length. Arguments are those of [`~SaliencyPipeline.__call__`].

        Yields:
            the frame's presentation time in seconds and its map `(height, width)`, of `output_type`; with
            `output_uncertainty`, the uncertainty map as a third item.

        Raises:
            InputError: at once for wrong arguments and files that cannot be opened; later for damage found on the way.
        """
        # 1. Check the arguments.
        if frame_stride is None:
            frame_stride = self.config.default_frame_stride
        denoising = Denoising(
            num_inference_steps,
            ensemble_size,
            output_uncertainty,
            audio_guidance_scale,
            independent_noise,
            callback_on_step_end,
            tuple(callback_on_step_end_tensor_inputs or ()),
        )
        self.check_denoising(denoising)
        self.check_inputs(
            video,
            audio,
            height,
            width,
            frame_stride,
            batch_size,
            audio_guidance_scale,
            generator,
            output_type,
            fps,
        )

        # 2. Open the media.
        with ExitStack() as opened:
            source = None
            if video is not None:
                source = opened.enter_context(open_video(video, fps=fps, start=start, duration=duration))
            sound = self.open_sound(video, audio)
            if sound is not None:
                opened.enter_context(sound)
            elif audio_guidance_scale != 1.0:
                raise InputError(f"`audio_guidance_scale` = {audio_guidance_scale} needs sound, and there is none")
            if source is None:
                size = (height, width)
                frames, num_frames = self.sound_times(sound, fps, start, duration)
            else:
                size = (source.info.height, source.info.width)
                frames = ((frame.time, self.processor.preprocess_frame(frame.pixels)) for frame in source)
                num_frames = source.info.num_frames
            media = opened.pop_all()

        # 3. Predict clip after clip.
        return self._stream(
            media,
            clip_windows(frames, stride=frame_stride, **self.processor.clip_settings),
            self.clip_predictor(sound, generator, denoising),
            num_frames=num_frames,
            size=size if match_input_resolution else None,
            batch_size=batch_size,
            output_type=output_type,
        )

    @torch.no_grad()
    def _stream(
        self,
        media: ExitStack,
        windows: Iterator[ClipWindow],
        predict: ClipPredictor,
        *,
        num_frames: int | None,
        size: tuple[int, int] | None,
        batch_size: int,
        output_type: str,
    ) -> Iterator[tuple]:
        last_time, last_maps = None, None
        total = float("inf") if num_frames is None else num_frames
        with media, self.progress_bar(total=total) as progress, ExitStack() as offloading:
            offloading.callback(self.maybe_free_model_hooks)
            while batch := list(islice(windows, batch_size)):
                results = predict(batch)  # b h w each
                # Fill in the frames between, give out.
                for window, *current in zip(batch, *results, strict=True):
                    for time in window.times:
                        between = current
                        if last_maps is not None and window.target.time > last_time:
                            weight = (time - last_time) / (window.target.time - last_time)
                            between = [torch.lerp(a, b, weight) for a, b in zip(last_maps, current, strict=True)]
                        yield (time, *(self.postprocess(m, size, output_type) for m in between))
                        progress.update()
                    last_time, last_maps = window.target.time, current

    def open_sound(self, video: Any, audio: Any) -> AudioSource | None:
        """The sound that goes with a call's `video` and `audio`, or `None` where there is none to listen to."""
        if audio is False or self.audio_encoder is None:
            return None
        if audio is not None:
            return open_audio(audio)
        path = find_sound(video)
        if path is None:
            if isinstance(video, (str, os.PathLike)):
                logger.warning(f"{video} has no sound: predicting from the picture alone")
            return None
        return open_audio(path)

    def sound_times(
        self, sound: AudioSource, fps: float | None, start: float, duration: float | None
    ) -> tuple[Iterator[tuple[float, None]], int]:
        """Times in seconds of the maps for sound without a picture, as frames without content, and their number."""
        fps = DEFAULT_FPS if fps is None else fps
        if not 0 < fps <= 1000:
            raise InputError(f"`fps` must be above 0, at most 1000, got {fps}")
        if not 0 <= start <= 1e9 or (duration is not None and not 0 < duration <= 1e9):
            raise InputError(f"`start` must be 0 or more and `duration` above 0, got {start} and {duration}")
        end = sound.end() if duration is None else start + duration
        count = round((end - start) * fps)
        if count < 1 or start >= sound.end():
            raise InputError(f"the sound ends at {sound.end():.2f} s: nothing is left from `start` = {start} on")
        return ((start + i / fps, None) for i in range(count)), count

    def stack_clips(self, windows: list[ClipWindow], dtype: torch.dtype) -> torch.Tensor:
        """The frames of some clips as a network takes them, `(b, 3, t, height, width)`, on its device."""
        frames = {frame.index: frame.content for window in windows for frame in window.frames}
        place = {index: i for i, index in enumerate(frames)}
        pixels = torch.stack(list(frames.values())).to(self._execution_device)
        pixels = self.processor.normalize(pixels).to(dtype)  # n 3 h w
        clips = torch.stack([pixels[[place[f.index] for f in window.frames]] for window in windows])  # b t 3 h w
        return clips.transpose(1, 2)

    def postprocess(
        self, saliency: torch.Tensor, size: tuple[int, int] | None, output_type: str
    ) -> np.ndarray | torch.Tensor | Image.Image:
        """One map `(h, w)` in [0, 1], resized to `size` where given, as float32 array or tensor or 16-bit image."""
        if size is not None:
            saliency = F.interpolate(saliency[None, None], size=size, mode="bilinear", antialias=True)[0, 0]
        if output_type == "pt":
            return saliency
        saliency = saliency.cpu().numpy()
        if output_type == "np":
            return saliency
        return Image.fromarray((saliency * 65535).round().astype(np.uint16))
