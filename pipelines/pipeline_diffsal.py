"""The DiffSal pipeline: a video with sound in, a saliency map for every frame out."""

import inspect
import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import islice
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

from ..encoders import AudioEncoder, PerFrameVideoEncoder, VideoEncoder, create_audio_encoder, create_video_encoder
from ..errors import InputError
from ..media.audio import AudioSource, open_audio
from ..media.video import DEFAULT_FPS, find_sound, open_video
from ..media.windows import ClipWindow, clip_windows
from ..modeling import STRIDES
from ..models import ReleasedConditions, ReleasedSaliencyUNet, SaliencyConditions, SaliencyUNet
from ..processing import SaliencyProcessor
from ..schedulers import check_num_steps, check_scheduler, create_scheduler
from .pipeline_output import SaliencyPipelineOutput

logger = logging.get_logger(__name__)

OUTPUT_TYPES = ("np", "pt", "pil")
NEEDS_SOUND = "the released network needs it; for videos without, convert the release's video-only checkpoint"


class DiffSalPipeline(DiffusionPipeline):
    """Audio-visual saliency prediction by conditional diffusion: DiffSal (arXiv 2403.01226).

    This model inherits from [`DiffusionPipeline`]: see there for loading, saving and moving between devices.

    Args:
        unet: the Saliency-UNet, or the network of the authors' release.
        video_encoder: the video encoder; `None` for a pipeline that listens only.
        audio_encoder: the audio encoder; `None` for a pipeline that sees only.
        scheduler: one of [`~diffsal_diffusers.schedulers.list_schedulers`].
        processor: sizes, normalisation and log-mel settings.
        default_num_inference_steps: denoising steps where a call names none.
        default_frame_stride: frames from one predicted map to the next where a call names no `frame_stride`.
    """

    model_cpu_offload_seq = "video_encoder->audio_encoder->unet"
    _optional_components = ["video_encoder", "audio_encoder"]
    _callback_tensor_inputs = ["sample", "prediction"]

    def __init__(
        self,
        unet: SaliencyUNet | ReleasedSaliencyUNet,
        video_encoder: VideoEncoder | None,
        audio_encoder: AudioEncoder | None,
        scheduler: SchedulerMixin,
        processor: SaliencyProcessor,
        default_num_inference_steps: int = 4,
        default_frame_stride: int = 1,
    ):
        super().__init__()
        self.register_modules(
            unet=unet,
            video_encoder=video_encoder,
            audio_encoder=audio_encoder,
            scheduler=scheduler,
            processor=processor,
        )
        self.register_to_config(
            default_num_inference_steps=default_num_inference_steps, default_frame_stride=default_frame_stride
        )

    @classmethod
    def from_encoders(
        cls,
        video: str | VideoEncoder | None = "mvit_v2_s",
        audio: str | AudioEncoder | None = "vggish",
        *,
        pretrained: bool | str | os.PathLike = False,
        audio_pretrained: bool | str | os.PathLike = False,
        frame_size: tuple[int, int] = (224, 384),
        num_frames: int | None = None,
        frame_interval: int = 1,
        num_inference_steps: int = 4,
        frame_stride: int = 1,
        **unet_config,
    ) -> "DiffSalPipeline":
        """A new pipeline whose Saliency-UNet and processor match the encoders. The U-Net is untrained.

        Args:
            video: a video encoder or its name, see [`~diffsal_diffusers.encoders.list_video_encoders`], or `None`.
            audio: an audio encoder or its name, see [`~diffsal_diffusers.encoders.list_audio_encoders`], or `None`.
            pretrained, audio_pretrained: the weights of an encoder given by name, see
                [`~diffsal_diffusers.encoders.create_video_encoder`]: `True` downloads its library's, a path reads them
                from a file.
            frame_size: height and width that the networks see, divisible by 32.
            num_frames: frames in a clip; `None` takes what the video encoder was made for, or 16.
            frame_interval: frames of the video from one frame of a clip to the next.
            num_inference_steps: denoising steps where a call names none.
            frame_stride: frames from one predicted map to the next where a call names none.
            unet_config: further settings of [`SaliencyUNet`].

        Raises:
            InputError: there is no such encoder, or its features do not fit the U-Net.
        """
        if video is None and audio is None:
            raise InputError("`video` or `audio` must name an encoder, both are None")
        for name in ("video_channels", "video_time_slices", "audio_channels", "audio_time_slices"):
            if name in unet_config:
                raise InputError(f"`{name}` follows from the encoders; leave it out")
        if isinstance(video, str):
            length = {} if num_frames is None else {"num_frames": num_frames}
            video = create_video_encoder(video, pretrained=pretrained, **length)
        if isinstance(audio, str):
            audio = create_audio_encoder(audio, pretrained=audio_pretrained)
        if num_frames is None:
            num_frames = 16 if video is None else video.config.get("num_frames", 16)
        processor_config = {
            "frame_size": frame_size,
            "num_frames": num_frames,
            "frame_interval": frame_interval,
            "target_frame": num_frames // 2,
        }
        if video is not None:
            strides = tuple(info.stride for info in video.feature_info)
            if strides != STRIDES:
                name = type(video).__name__
                raise InputError(f"the Saliency-UNet takes video features at strides {STRIDES}; {name} has {strides}")
            unet_config["video_channels"] = tuple(info.channels for info in video.feature_info)
            unet_config["video_time_slices"] = tuple(info.time_slices for info in video.feature_info)
            processor_config |= {"image_mean": video.image_mean, "image_std": video.image_std}
        if audio is not None:
            (info,) = audio.feature_info
            unet_config["audio_channels"] = info.channels
            processor_config |= {"audio_slices": info.time_slices, "audio_size": audio.input_size}
        processor = SaliencyProcessor(**processor_config)
        return cls(
            unet=SaliencyUNet(audio_time_slices=processor.config.audio_slices, **unet_config).eval(),
            video_encoder=None if video is None else video.eval(),
            audio_encoder=None if audio is None else audio.eval(),
            scheduler=create_scheduler("ddim"),
            processor=processor,
            default_num_inference_steps=num_inference_steps,
            default_frame_stride=frame_stride,
        )

    def check_inputs(
        self,
        video: Any,
        audio: Any,
        height: int | None,
        width: int | None,
        num_inference_steps: int,
        frame_stride: int,
        batch_size: int,
        ensemble_size: int,
        output_uncertainty: bool,
        audio_guidance_scale: float,
        generator: torch.Generator | None,
        output_type: str,
        fps: float | None,
        callback_on_step_end_tensor_inputs: list[str],
    ) -> None:
        """Refuses arguments that cannot be right before any work is done.

        Raises:
            InputError: names the argument, the value got and the values allowed.
        """
        check_scheduler(self.scheduler)
        for name, value in (
            ("num_inference_steps", num_inference_steps),
            ("frame_stride", frame_stride),
            ("batch_size", batch_size),
            ("ensemble_size", ensemble_size),
        ):
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise InputError(f"`{name}` must be a positive integer, got {value!r}")
        for name, value in (("audio_guidance_scale", audio_guidance_scale), ("fps", 1.0 if fps is None else fps)):
            if not isinstance(value, Real) or isinstance(value, bool) or not math.isfinite(value):
                raise InputError(f"`{name}` must be a finite number, got {value!r}")
        check_num_steps(self.scheduler, num_inference_steps)
        if output_uncertainty and ensemble_size == 1:
            raise InputError("`output_uncertainty=True` needs an `ensemble_size` of at least 2, got 1")
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"`output_type` must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
        if generator is not None and not isinstance(generator, torch.Generator):
            raise InputError(f"`generator` must be a torch.Generator, got {type(generator).__name__}")
        unknown = set(callback_on_step_end_tensor_inputs or ()) - set(self._callback_tensor_inputs)
        if unknown:
            raise InputError(
                f"`callback_on_step_end_tensor_inputs` may name {', '.join(self._callback_tensor_inputs)}, "
                f"got {sorted(unknown)[0]!r}"
            )
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
        if isinstance(self.unet, ReleasedSaliencyUNet):
            # One network, one kind of input: none of its modalities was ever dropped in its training.
            if video is None:
                raise InputError("the released network needs a picture; `video=None` is for networks of this package")
            if audio is False and self.audio_encoder is not None:
                raise InputError(f"{NEEDS_SOUND}; predict with its sound")
            if audio_guidance_scale != 1.0:
                raise InputError("`audio_guidance_scale` must be 1 for the released network, which knows no silence")
        if video is None:
            if self.audio_encoder is None or audio is None or audio is False:
                raise InputError(
                    "`video=None` asks for prediction from sound alone: `audio` and an audio encoder are needed"
                )
            for name, value in (("height", height), ("width", width)):
                if not isinstance(value, Integral) or value < 1:
                    raise InputError(f"`video=None` needs the maps' `{name}` in pixels, got {value!r}")
        else:
            if self.video_encoder is None:
                raise InputError(
                    "this pipeline has no video encoder; pass `video=None` with `audio`, `height` and `width`"
                )
            if height is not None or width is not None:
                raise InputError("`height` and `width` are for `video=None`; otherwise the video has its own size")

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

        All maps are held in memory; for a long video use [`~DiffSalPipeline.stream`].

        Args:
            video: a path of a video file or of a folder of frames; a list of PIL images; an array
                `(frames, height, width, 3)` or a tensor `(frames, 3, height, width)`, uint8 or float in [0, 1]. `None`
                predicts from sound alone.
            audio: a path, or a pair of a waveform (`(samples,)` or `(channels, samples)`, float in [-1, 1] or int16)
                and its rate in Hz; `None` takes the video's own sound, where there is one; `False` ignores it.
            num_inference_steps: denoising steps; `None` takes the model's default.
            frame_stride: a map is predicted for every so many frames, and those between are interpolated in time;
                `None` takes the model's default.
            batch_size: clips denoised together.
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

        Memory does not grow with the video's length. Arguments are those of [`~DiffSalPipeline.__call__`].

        Yields:
            the frame's presentation time in seconds and its map `(height, width)`, of `output_type`; with
            `output_uncertainty`, the uncertainty map as a third item.

        Raises:
            InputError: at once for wrong arguments and files that cannot be opened; later for damage found on the way.
        """
        # 1. Check the arguments.
        if num_inference_steps is None:
            num_inference_steps = self.config.default_num_inference_steps
        if frame_stride is None:
            frame_stride = self.config.default_frame_stride
        self.check_inputs(
            video,
            audio,
            height,
            width,
            num_inference_steps,
            frame_stride,
            batch_size,
            ensemble_size,
            output_uncertainty,
            audio_guidance_scale,
            generator,
            output_type,
            fps,
            callback_on_step_end_tensor_inputs,
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

        # 3. One seed for the whole video: every map draws its noise from a generator of its own.
        seed = int(
            torch.randint(2**62, (), generator=generator, device="cpu" if generator is None else generator.device)
        )

        config = self.processor.config
        windows = clip_windows(frames, config.num_frames, config.target_frame, frame_stride, config.frame_interval)
        return self._stream(
            media,
            windows,
            sound,
            num_frames=num_frames,
            size=size if match_input_resolution else None,
            seed=seed,
            num_inference_steps=num_inference_steps,
            batch_size=batch_size,
            ensemble_size=ensemble_size,
            output_uncertainty=output_uncertainty,
            audio_guidance_scale=audio_guidance_scale,
            independent_noise=independent_noise,
            output_type=output_type,
            callback=callback_on_step_end,
            callback_tensors=callback_on_step_end_tensor_inputs or (),
        )

    @torch.no_grad()
    def _stream(
        self,
        media: ExitStack,
        windows: Iterator[ClipWindow],
        sound: AudioSource | None,
        *,
        num_frames: int | None,
        size: tuple[int, int] | None,
        seed: int,
        num_inference_steps: int,
        batch_size: int,
        ensemble_size: int,
        output_uncertainty: bool,
        audio_guidance_scale: float,
        independent_noise: bool,
        output_type: str,
        callback: Callable | None,
        callback_tensors: list[str],
    ) -> Iterator[tuple]:
        frame_cache: dict[int, list[torch.Tensor]] = {}
        last_time, last_maps = None, None
        total = float("inf") if num_frames is None else num_frames
        with media, self.progress_bar(total=total) as progress, ExitStack() as offloading:
            offloading.callback(self.maybe_free_model_hooks)
            while batch := list(islice(windows, batch_size)):
                # 4. Encode: once a clip, for all steps and all maps of the ensemble.
                video_features = self.encode_video(batch, frame_cache)
                audio_features = self.encode_audio(batch, sound)
                height, width = self.processor.config.frame_size
                conditions = self.unet.encode_conditions(height, width, video_features, audio_features)
                without_sound = None
                if audio_guidance_scale != 1.0 and audio_features is not None:
                    without_sound = self.unet.encode_conditions(height, width, video_features, None)

                # 5. Denoise.
                generators = [
                    torch.Generator().manual_seed(
                        seed + member + (window.target.index * ensemble_size if independent_noise else 0)
                    )
                    for window in batch
                    for member in range(ensemble_size)
                ]
                maps = self.denoise(
                    conditions,
                    generators,
                    num_inference_steps,
                    without_sound=without_sound,
                    audio_guidance_scale=audio_guidance_scale,
                    callback=callback,
                    callback_tensors=callback_tensors,
                )  # b*e 1 h w

                # 6. Reduce the ensemble, fill in the frames between, give out.
                maps = maps.unflatten(0, (len(batch), ensemble_size)).squeeze(2)  # b e h w
                results = [maps.mean(dim=1)]
                if output_uncertainty:
                    results.append(maps.std(dim=1))
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
            if isinstance(self.unet, ReleasedSaliencyUNet):
                name = video if isinstance(video, (str, os.PathLike)) else "the video"
                raise InputError(f"{name} has no sound; {NEEDS_SOUND}")
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

    def encode_video(
        self, windows: list[ClipWindow], frame_cache: dict[int, list[torch.Tensor]]
    ) -> list[torch.Tensor] | None:
        """Video features `(b, c, t, h, w)` of some clips, finest first; `None` where there is no picture.

        Args:
            windows: the clips, in order.
            frame_cache: of an encoder that sees frames one by one: the features of frames that earlier clips saw.
        """
        if windows[0].target.content is None:
            return None
        encoder, device = self.video_encoder, self._execution_device
        frames = {frame.index: frame.content for window in windows for frame in window.frames}
        per_frame = isinstance(encoder, PerFrameVideoEncoder)
        wanted = [index for index in frames if not (per_frame and index in frame_cache)]
        place = {index: i for i, index in enumerate(wanted)}
        if wanted:
            pixels = torch.stack([frames[index] for index in wanted]).to(device)
            pixels = self.processor.normalize(pixels).to(encoder.dtype)  # n 3 h w

        if not per_frame:
            clips = torch.stack([pixels[[place[f.index] for f in window.frames]] for window in windows])  # b t 3 h w
            return encoder(clips.transpose(1, 2)).features

        for chunk in range(0, len(wanted), len(windows) * 4):
            indices = wanted[chunk : chunk + len(windows) * 4]
            features = encoder.encode_frames(pixels[chunk : chunk + len(indices)])
            for i, index in enumerate(indices):
                frame_cache[index] = [feature[i] for feature in features]  # c h w
        clips = [
            torch.stack([torch.stack([frame_cache[f.index][s] for f in w.frames], dim=1) for w in windows])
            for s in range(len(encoder.feature_info))
        ]  # b c t h w
        for index in [index for index in frame_cache if index < windows[-1].frames[0].index]:
            del frame_cache[index]
        return encoder.mix_frames(clips).features

    def encode_audio(self, windows: list[ClipWindow], sound: AudioSource | None) -> torch.Tensor | None:
        """Audio features `(b, c, t, h, w)` of some clips; `None` without sound."""
        if sound is None:
            return None
        log_mel = self.processor.log_mel_slices(sound, [window.frame_times for window in windows])
        log_mel = log_mel.to(self._execution_device, self.audio_encoder.dtype)  # b 1 t h w
        return self.audio_encoder(log_mel).features[0]

    def denoise(
        self,
        conditions: SaliencyConditions | ReleasedConditions,
        generators: list[torch.Generator],
        num_inference_steps: int,
        *,
        without_sound: SaliencyConditions | ReleasedConditions | None = None,
        audio_guidance_scale: float = 1.0,
        callback: Callable | None = None,
        callback_tensors: list[str] = (),
    ) -> torch.Tensor:
        """Algorithm 2 of the paper: from noise to saliency maps, by whatever scheduler the pipeline has.

        Args:
            conditions: of b clips.
            generators: one for each of the b * num_maps maps, the maps of a clip side by side.
            num_inference_steps: denoising steps.
            without_sound: the conditions without sound, for classifier-free guidance by `audio_guidance_scale`.

        Returns:
            maps `(b * num_maps, 1, height, width)` in [0, 1], float32.
        """
        device = self._execution_device
        shape = (len(generators), self.unet.config.in_channels, *self.processor.config.frame_size)
        low, high = self.unet.config.sample_range
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        step_kwargs = {"generator": generators} if takes_generator else {}
        num_maps = len(generators) // conditions.video[0].shape[0]
        conditions = conditions.repeat(num_maps)
        if without_sound is not None:
            without_sound = without_sound.repeat(num_maps)

        # The state stays in float32, whatever the network computes in: Euler's begins at a sigma of 20,000.
        sample = randn_tensor(shape, generator=generators, device=device) * self.scheduler.init_noise_sigma
        for i, t in enumerate(self.scheduler.timesteps):
            model_input = self.scheduler.scale_model_input(sample, t).to(self.unet.dtype)
            prediction = self.unet(model_input, t, conditions=conditions).sample.float()
            if without_sound is not None:
                silent = self.unet(model_input, t, conditions=without_sound).sample.float()
                prediction = torch.lerp(silent, prediction, audio_guidance_scale).clamp(low, high)
            sample = self.scheduler.step(prediction, t, sample, **step_kwargs).prev_sample
            if callback is not None:
                tensors = {"sample": sample, "prediction": prediction}
                changed = callback(self, i, t, {name: tensors[name] for name in callback_tensors}) or {}
                sample, prediction = changed.get("sample", sample), changed.get("prediction", prediction)
        # At the end of the schedule the state is the estimate of the clean map. The estimate itself also is where a
        # number of steps that does not divide the schedule leaves DDIM a little short of the end.
        return ((prediction - low) / (high - low)).clamp(0, 1)

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
