"""The DiffSal pipeline: a video with sound in, a saliency map for every frame out."""

import inspect
import os
from collections.abc import Callable
from typing import Any

import torch
from diffusers import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from ..encoders import AudioEncoder, PerFrameVideoEncoder, VideoEncoder, create_audio_encoder, create_video_encoder
from ..errors import InputError, check_finite, check_positive_integer
from ..media.audio import AudioSource
from ..media.video import find_sound
from ..media.windows import ClipWindow
from ..modeling import STRIDES
from ..models import ReleasedConditions, ReleasedSaliencyUNet, SaliencyConditions, SaliencyUNet
from ..processing import SaliencyProcessor
from ..schedulers import check_num_steps, check_scheduler, create_scheduler
from .pipeline_saliency import ClipPredictor, Denoising, SaliencyPipeline

NEEDS_SOUND = "the released network needs it; for videos without, convert the release's video-only checkpoint"


class DiffSalPipeline(SaliencyPipeline):
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

    def check_denoising(self, denoising: Denoising) -> None:
        check_scheduler(self.scheduler)
        steps = self._num_steps(denoising)
        for name, value in (("num_inference_steps", steps), ("ensemble_size", denoising.ensemble_size)):
            check_positive_integer(name, value)
        check_finite("audio_guidance_scale", denoising.audio_guidance_scale)
        check_num_steps(self.scheduler, steps)
        if denoising.audio_guidance_scale != 1.0 and isinstance(self.unet, ReleasedSaliencyUNet):
            raise InputError("`audio_guidance_scale` must be 1 for the released network, which knows no silence")
        if denoising.output_uncertainty and denoising.ensemble_size == 1:
            raise InputError("`output_uncertainty=True` needs an `ensemble_size` of at least 2, got 1")
        unknown = set(denoising.callback_on_step_end_tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise InputError(
                f"`callback_on_step_end_tensor_inputs` may name {', '.join(self._callback_tensor_inputs)}, "
                f"got {sorted(unknown)[0]!r}"
            )

    def check_inputs(self, video: Any, audio: Any, *args, **kwargs) -> None:
        if video is not None and self.video_encoder is None:
            raise InputError(
                "this pipeline has no video encoder; pass `video=None` with `audio`, `height` and `width`"
            )
        if isinstance(self.unet, ReleasedSaliencyUNet):
            # One network, one kind of input: none of its modalities was ever dropped in its training.
            if video is None:
                raise InputError("the released network needs a picture; `video=None` is for networks of this package")
            if audio is False and self.audio_encoder is not None:
                raise InputError(f"{NEEDS_SOUND}; predict with its sound")
        super().check_inputs(video, audio, *args, **kwargs)

    def _num_steps(self, denoising: Denoising) -> int:
        steps = denoising.num_inference_steps
        return self.config.default_num_inference_steps if steps is None else steps

    def clip_predictor(
        self, sound: AudioSource | None, generator: torch.Generator | None, denoising: Denoising
    ) -> ClipPredictor:
        """What predicts the clips of one video, in their order: by encoding them and by denoising (algorithm 2)."""
        # 1. One seed for the whole video: every map draws its noise from a generator of its own.
        device = "cpu" if generator is None else generator.device
        seed = int(torch.randint(2**62, (), generator=generator, device=device))
        steps, ensemble_size = self._num_steps(denoising), denoising.ensemble_size
        guided = denoising.audio_guidance_scale != 1.0
        frame_cache: dict[int, list[torch.Tensor]] = {}

        def predict(windows: list[ClipWindow]) -> list[torch.Tensor]:
            # 2. Encode: once a clip, for all steps and all maps of the ensemble.
            video_features = self.encode_video(windows, frame_cache)
            audio_features = self.encode_audio(windows, sound)
            height, width = self.processor.config.frame_size
            conditions = self.unet.encode_conditions(height, width, video_features, audio_features)
            without_sound = None
            if guided and audio_features is not None:
                without_sound = self.unet.encode_conditions(height, width, video_features, None)

            # 3. Denoise.
            generators = [
                torch.Generator().manual_seed(
                    seed + member + (window.target.index * ensemble_size if denoising.independent_noise else 0)
                )
                for window in windows
                for member in range(ensemble_size)
            ]
            maps = self.denoise(
                conditions,
                generators,
                steps,
                without_sound=without_sound,
                audio_guidance_scale=denoising.audio_guidance_scale,
                callback=denoising.callback_on_step_end,
                callback_tensors=denoising.callback_on_step_end_tensor_inputs,
            )  # b*e 1 h w

            # 4. Reduce the ensemble.
            maps = maps.unflatten(0, (len(windows), ensemble_size)).squeeze(2)  # b e h w
            return [maps.mean(dim=1), maps.std(dim=1)] if denoising.output_uncertainty else [maps.mean(dim=1)]

        return predict

    def open_sound(self, video: Any, audio: Any) -> AudioSource | None:
        if isinstance(self.unet, ReleasedSaliencyUNet) and self.audio_encoder is not None and audio is None:
            if find_sound(video) is None:
                name = video if isinstance(video, (str, os.PathLike)) else "the video"
                raise InputError(f"{name} has no sound; {NEEDS_SOUND}")
        return super().open_sound(video, audio)

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
        encoder = self.video_encoder
        if not isinstance(encoder, PerFrameVideoEncoder):
            return encoder(self.stack_clips(windows, encoder.dtype)).features

        frames = {frame.index: frame.content for window in windows for frame in window.frames}
        wanted = [index for index in frames if index not in frame_cache]
        for chunk in range(0, len(wanted), len(windows) * 4):
            indices = wanted[chunk : chunk + len(windows) * 4]
            pixels = torch.stack([frames[index] for index in indices]).to(self._execution_device)
            features = encoder.encode_frames(self.processor.normalize(pixels).to(encoder.dtype))
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
