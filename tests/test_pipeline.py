"""The pipeline on real media: tables of equivalences, arguments, encoders of one's own, loading."""

import importlib
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffsal_diffusers.schedulers import SCHEDULERS, create_scheduler
from diffusers import DiffusionPipeline
from diffusers.pipelines import pipeline_loading_utils
from media_files import make_video
from PIL import Image
from safetensors.torch import load_file, save_file
from stand_ins import TINY_UNET, tiny_pipeline

from diffsal_diffusers import DiffSalPipeline, InputError, SaliencyPipelineOutput, SaliencyProcessor, load_pipeline
from diffsal_diffusers.encoders import create_audio_encoder, registry
from diffsal_diffusers.media.audio import open_audio
from diffsal_diffusers.media.video import open_video

ROOT = Path(__file__).parent.parent
CLIP = ROOT / "examples" / "big_buck_bunny.mp4"  # 640x360, 25 fps, 5.3 s, stereo
PART = {"start": 1.0, "duration": 0.4}  # 10 frames


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def keep_arguments(function, kept):
    """The function, which also keeps what it is called with."""

    def keeping(argument):
        kept.append(argument)
        return function(argument)

    return keeping


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def expected(pipe):
    return pipe(CLIP, generator=seeded(), match_input_resolution=False, **PART).saliency


@pytest.fixture(scope="module")
def frames():
    with open_video(CLIP, **PART) as source:
        return np.stack([frame.pixels for frame in source])


class TestOutput:
    def test_a_map_for_every_frame_at_the_videos_size(self, pipe):
        out = pipe(str(CLIP), generator=seeded(), **PART)
        assert isinstance(out, SaliencyPipelineOutput)
        assert out.saliency.shape == (10, 360, 640)
        assert out.saliency.dtype == np.float32
        assert 0 <= out.saliency.min() < out.saliency.max() <= 1
        assert out.uncertainty is None
        np.testing.assert_allclose(out.times, 1 + np.arange(10) / 25, atol=1e-6)

    def test_forms(self, pipe, expected):
        kwargs = {"generator": seeded(), "match_input_resolution": False, **PART}
        tensors = pipe(CLIP, output_type="pt", **kwargs).saliency
        np.testing.assert_allclose(tensors, expected, atol=1e-6)
        images = pipe(CLIP, output_type="pil", **(kwargs | {"generator": seeded()})).saliency
        assert [image.size for image in images] == [(96, 64)] * 10
        np.testing.assert_allclose(np.stack(images) / 65535, expected, atol=1e-5)
        saliency, uncertainty = pipe(CLIP, return_dict=False, **(kwargs | {"generator": seeded()}))
        np.testing.assert_array_equal(saliency, expected)
        assert uncertainty is None

    def test_seeds(self, pipe, expected):
        again = pipe(CLIP, generator=seeded(), match_input_resolution=False, **PART).saliency
        other = pipe(CLIP, generator=seeded(1), match_input_resolution=False, **PART).saliency
        np.testing.assert_array_equal(again, expected)
        assert np.abs(other - expected).max() > 1e-3

    def test_a_still_picture_does_not_flicker(self, pipe, frames):
        still = np.repeat(frames[:1], 20, axis=0)
        maps = pipe(still, generator=seeded()).saliency
        np.testing.assert_allclose(maps, np.repeat(maps[:1], 20, axis=0), atol=1e-5)
        independent = pipe(still, generator=seeded(), independent_noise=True).saliency
        assert np.abs(np.diff(independent, axis=0)).max(axis=(1, 2)).min() > 1e-3


class TestEquivalences:
    @pytest.mark.parametrize("independent_noise", [False, True])
    @pytest.mark.parametrize("scheduler", SCHEDULERS)
    def test_batch_size_and_streaming(self, scheduler, independent_noise):
        pipe = tiny_pipeline()
        pipe.scheduler = create_scheduler(scheduler, pipe.scheduler.config)
        kwargs = {"num_inference_steps": 3, "independent_noise": independent_noise, **PART}
        whole = pipe(CLIP, batch_size=1, generator=seeded(), **kwargs).saliency
        for batch_size in (3, 10):
            batched = pipe(CLIP, batch_size=batch_size, generator=seeded(), **kwargs).saliency
            np.testing.assert_allclose(batched, whole, atol=1e-4)
        streamed = list(pipe.stream(CLIP, batch_size=4, generator=seeded(), **kwargs))
        np.testing.assert_allclose(np.stack([saliency for _, saliency in streamed]), whole, atol=1e-4)

    def test_a_whole_clip_encoder_agrees_too(self):
        pipe = tiny_pipeline(video="s3d", audio=None)
        one = pipe(CLIP, batch_size=1, generator=seeded(), **PART).saliency
        many = pipe(CLIP, batch_size=4, generator=seeded(), **PART).saliency
        np.testing.assert_allclose(many, one, atol=1e-4)

    @pytest.mark.parametrize("kind", ["array", "float array", "tensor", "images", "folder"])
    def test_kinds_of_video(self, pipe, frames, expected, kind, tmp_path):
        if kind == "folder":
            for i, pixels in enumerate(frames):
                Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        video = {
            "array": frames,
            "float array": frames / 255,
            "tensor": torch.from_numpy(frames).permute(0, 3, 1, 2),
            "images": [Image.fromarray(pixels) for pixels in frames],
            "folder": tmp_path,
        }[kind]
        # The clip starts a second into the file, so does its sound.
        with open_audio(CLIP) as source:
            waveform = source.read(16000, 32000)
        sound_before = pipe(CLIP, audio=False, generator=seeded(), match_input_resolution=False, **PART).saliency
        maps = pipe(video, generator=seeded(), fps=25, match_input_resolution=False).saliency
        np.testing.assert_allclose(maps, sound_before, atol=1e-4)
        heard = pipe(video, audio=(waveform, 16000), generator=seeded(), fps=25, match_input_resolution=False).saliency
        assert np.abs(heard - sound_before).max() > 1e-4

    @pytest.mark.parametrize("kind", ["path", "waveform"])
    def test_kinds_of_sound(self, pipe, expected, kind):
        with open_audio(CLIP) as source:
            waveform = source.read(0, 5 * 16000)
        audio = CLIP if kind == "path" else (waveform, 16000)
        maps = pipe(CLIP, audio=audio, generator=seeded(), match_input_resolution=False, **PART).saliency
        np.testing.assert_allclose(maps, expected, atol=1e-4)

    def test_frames_between_are_interpolated(self, pipe, expected):
        kwargs = {"generator": seeded(), "match_input_resolution": False, **PART}
        strided = pipe(CLIP, frame_stride=4, **kwargs).saliency
        for i in (0, 4, 8, 9):  # every fourth, and the last
            np.testing.assert_allclose(strided[i], expected[i], atol=1e-5)
        for i in (1, 2, 3):
            between = expected[0] * (1 - i / 4) + expected[4] * i / 4
            np.testing.assert_allclose(strided[i], between, atol=1e-5)

    def test_a_part_of_a_video_starts_as_if_it_were_all(self, pipe):
        part = pipe(CLIP, audio=False, generator=seeded(), start=1.0, duration=0.4).saliency
        with open_video(CLIP, **PART) as source:
            alone = np.stack([frame.pixels for frame in source])
        np.testing.assert_allclose(pipe(alone, generator=seeded()).saliency, part, atol=1e-4)


class TestArguments:
    def test_sound_matters(self, pipe, expected):
        deaf = pipe(CLIP, audio=False, generator=seeded(), match_input_resolution=False, **PART).saliency
        assert np.abs(deaf - expected).max() > 1e-3

    def test_audio_guidance(self, pipe, expected):
        kwargs = {"match_input_resolution": False, "num_inference_steps": 1, **PART}
        deaf = pipe(CLIP, audio=False, generator=seeded(), **kwargs).saliency
        heard = pipe(CLIP, generator=seeded(), **kwargs).saliency
        for scale in (0.0, 0.5, 2.0):
            guided = pipe(CLIP, audio_guidance_scale=scale, generator=seeded(), **kwargs).saliency
            np.testing.assert_allclose(guided, (deaf + scale * (heard - deaf)).clip(0, 1), atol=1e-4)

    def test_ensemble(self, pipe):
        kwargs = {"match_input_resolution": False, **PART}
        members = []

        def keep(pipe, step, timestep, tensors):
            if step == 1:
                members.append(tensors["prediction"])

        out = pipe(
            CLIP,
            ensemble_size=3,
            output_uncertainty=True,
            generator=seeded(),
            callback_on_step_end=keep,
            callback_on_step_end_tensor_inputs=["prediction"],
            **kwargs,
        )
        members = (torch.cat(members).unflatten(0, (10, 3)).squeeze(2) + 1) / 2  # b e h w
        np.testing.assert_allclose(out.saliency, members.mean(dim=1), atol=1e-5)
        np.testing.assert_allclose(out.uncertainty, members.std(dim=1), atol=1e-5)
        assert out.uncertainty.max() > 1e-3
        first = pipe(CLIP, generator=seeded(), **kwargs).saliency
        np.testing.assert_allclose(members[:, 0], first, atol=1e-4)

    def test_each_frame_is_encoded_once(self, monkeypatch):
        pipe = tiny_pipeline()
        encoded, clips = [], []
        encode_frames, mix_frames = pipe.video_encoder.encode_frames, pipe.video_encoder.mix_frames

        def count_frames(frames):
            encoded.append(len(frames))
            return encode_frames(frames)

        def count_clips(features):
            clips.append(len(features[0]))
            return mix_frames(features)

        monkeypatch.setattr(pipe.video_encoder, "encode_frames", count_frames)
        monkeypatch.setattr(pipe.video_encoder, "mix_frames", count_clips)
        pipe(CLIP, ensemble_size=2, num_inference_steps=3, start=1.0, duration=1.2)
        assert sum(encoded) == 30
        assert sum(clips) == 30

    def test_features_of_past_frames_are_let_go(self, monkeypatch):
        pipe = tiny_pipeline()
        sizes, encode_video = [], pipe.encode_video

        def watched(windows, frame_cache):
            features = encode_video(windows, frame_cache)
            sizes.append(len(frame_cache))
            return features

        monkeypatch.setattr(pipe, "encode_video", watched)
        pipe(CLIP, num_inference_steps=1, match_input_resolution=False)
        assert len(sizes) == 33 and max(sizes) <= 16 + 4

    @pytest.mark.parametrize("video", ["timm/efficientnet_lite0", "s3d"])
    def test_the_encoders_see_the_clip_around_each_frame_in_order(self, video, frames, monkeypatch):
        """Of 10 frames: a clip has 8 before its target and 7 behind it; the first and last stand in at the ends."""
        pipe = tiny_pipeline(video=video)
        pixels = torch.stack([pipe.processor.preprocess_frame(frame) for frame in frames])
        pixels = pipe.processor.normalize(pixels)
        seen, heard = [], []
        method = "forward" if video == "s3d" else "mix_frames"
        monkeypatch.setattr(pipe.video_encoder, method, keep_arguments(getattr(pipe.video_encoder, method), seen))
        monkeypatch.setattr(pipe.audio_encoder, "forward", keep_arguments(pipe.audio_encoder.forward, heard))
        pipe(CLIP, batch_size=10, num_inference_steps=1, **PART)

        indices = torch.tensor([[min(max(i, 0), 9) for i in range(t - 8, t + 8)] for t in range(10)])
        if video == "s3d":
            torch.testing.assert_close(seen[0], pixels[indices].transpose(1, 2))  # b c t h w
        else:
            with torch.no_grad():
                features = pipe.video_encoder.encode_frames(pixels)
            for got, feature in zip(seen[0], features, strict=True):
                torch.testing.assert_close(got, feature[indices].transpose(1, 2))
        with open_audio(CLIP) as sound:
            times = [[1 + i / 25 for i in range(t - 8, t + 8)] for t in range(10)]  # sound goes on at the ends
            torch.testing.assert_close(heard[0], pipe.processor.log_mel_slices(sound, times))

    @pytest.mark.parametrize("config", [{"audio_alignment": "released"}, {}])
    @pytest.mark.parametrize("num_frames", [2, 4, 16])
    def test_sound_goes_with_clips_of_any_length(self, config, num_frames):
        pipe = tiny_pipeline(video="timm/resnet18", num_frames=num_frames)
        pipe.processor = SaliencyProcessor(**(dict(pipe.processor.config) | config))
        one = pipe(CLIP, batch_size=1, generator=seeded(), duration=0.6).saliency
        many = pipe(CLIP, batch_size=4, generator=seeded(), duration=0.6).saliency
        np.testing.assert_allclose(many, one, atol=1e-4)

    @pytest.mark.parametrize("alignment", ["clip", "released"])
    @pytest.mark.parametrize("before", [1, 2, 9, 14])
    def test_a_pause_between_frames(self, alignment, before, tmp_path):
        pipe = tiny_pipeline()
        pipe.processor = SaliencyProcessor(**(dict(pipe.processor.config) | {"audio_alignment": alignment}))
        times = [i / 25 for i in range(before)] + [before / 25 + 20 + i / 25 for i in range(12)]
        path = make_video(tmp_path / "pause.mp4", times=times)
        maps = [pipe(path, batch_size=b, generator=seeded()).saliency for b in (1, 4)]
        assert len(maps[0]) == len(times)
        np.testing.assert_allclose(maps[1], maps[0], atol=1e-4)

    def test_guidance_without_sound_is_refused(self, pipe, frames):
        with pytest.raises(InputError, match="needs sound, and there is none"):
            pipe(frames, audio_guidance_scale=2.0)

    @pytest.mark.parametrize("part", [{"start": -1}, {"fps": float("inf")}, {"duration": -1}, {"start": float("nan")}])
    def test_wrong_parts_of_sound_alone(self, pipe, part):
        with pytest.raises(InputError, match=next(iter(part))):
            pipe(None, audio=CLIP, height=8, width=8, **part)

    def test_a_stream_reads_no_further_than_its_maps_need(self, pipe, monkeypatch):
        read = []
        preprocess_frame = pipe.processor.preprocess_frame

        def count(pixels):
            read.append(len(read))
            return preprocess_frame(pixels)

        monkeypatch.setattr(pipe.processor, "preprocess_frame", count)
        stream = pipe.stream(CLIP, batch_size=2)
        assert read == []
        next(stream)
        assert len(read) == 2 + 7
        next(stream), next(stream)
        assert len(read) == 4 + 7
        stream.close()

    def test_callback_may_change_the_state(self, pipe):
        steps = []

        def blank(pipe, step, timestep, tensors):
            assert list(tensors) == ["sample"]
            steps.append((step, int(timestep)))
            return {"sample": torch.zeros_like(tensors["sample"])}

        kwargs = {"match_input_resolution": False, "num_inference_steps": 2, "batch_size": 10, **PART}
        changed = [pipe(CLIP, generator=seeded(s), callback_on_step_end=blank, **kwargs).saliency for s in (0, 1)]
        np.testing.assert_allclose(changed[0], changed[1], atol=1e-6)
        assert steps == [(0, 999), (1, 499)] * 2

    def test_default_steps_come_from_the_model(self):
        pipe = tiny_pipeline(num_inference_steps=3)
        steps = []
        pipe(CLIP, callback_on_step_end=lambda p, i, t, k: steps.append(i), batch_size=10, **PART)
        assert steps == [0, 1, 2]

    def test_sound_alone(self, pipe):
        out = pipe(None, audio=CLIP, height=50, width=70, fps=10, generator=seeded(), duration=2.0)
        assert out.saliency.shape == (20, 50, 70)
        np.testing.assert_allclose(out.times, np.arange(20) / 10, atol=1e-6)
        assert np.abs(np.diff(out.saliency, axis=0)).max() > 1e-4  # the sound changes

    def test_half_precision(self, expected):
        pipe = tiny_pipeline().to(torch.bfloat16)
        maps = pipe(CLIP, generator=seeded(), match_input_resolution=False, **PART).saliency
        assert maps.dtype == np.float32
        assert np.abs(maps - expected).mean() < 0.05

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"num_inference_steps": 0}, "`num_inference_steps` must be a positive integer, got 0"),
            ({"frame_stride": 1.5}, "`frame_stride` must be a positive integer, got 1.5"),
            ({"batch_size": -1}, "`batch_size` must be a positive integer, got -1"),
            ({"num_inference_steps": 2000}, "DDIMScheduler cannot take 2000 steps"),
            ({"output_uncertainty": True}, "needs an `ensemble_size` of at least 2"),
            ({"audio_guidance_scale": math.nan}, "`audio_guidance_scale` must be a finite number, got nan"),
            ({"audio_guidance_scale": "2"}, "`audio_guidance_scale` must be a finite number, got '2'"),
            ({"fps": "25"}, "`fps` must be a finite number, got '25'"),
            ({"output_type": "latent"}, "`output_type` must be one of np, pt, pil, got 'latent'"),
            ({"generator": 3}, "`generator` must be a torch.Generator, got int"),
            ({"audio": True}, "`audio` must be a path"),
            ({"audio": False, "audio_guidance_scale": 2.0}, "needs sound and an audio encoder"),
            (
                {"video": None, "audio": CLIP, "height": 8, "width": 8, "audio_guidance_scale": 2.0},
                "needs a picture to guide away from",
            ),
            ({"height": 20}, "`height` and `width` are for `video=None`"),
            ({"video": None}, "`audio` and an audio encoder are needed"),
            ({"video": None, "audio": CLIP}, "needs the maps' `height` in pixels, got None"),
            ({"callback_on_step_end_tensor_inputs": ["noise"]}, "may name sample, prediction, got 'noise'"),
            ({"video": "nowhere.mp4"}, "nowhere.mp4"),
            ({"start": 100.0}, "big_buck_bunny.mp4"),
        ],
    )
    def test_wrong_arguments(self, pipe, change, message):
        with pytest.raises(InputError, match=message):
            pipe.stream(**({"video": CLIP} | change))

    def test_numbers_of_numpy_and_no_callback_tensors(self, pipe, expected):
        maps = pipe(
            CLIP,
            num_inference_steps=np.int64(2),
            audio_guidance_scale=np.float32(1),
            callback_on_step_end=lambda pipe, step, timestep, tensors: tensors,
            callback_on_step_end_tensor_inputs=None,
            generator=seeded(),
            match_input_resolution=False,
            **PART,
        ).saliency
        np.testing.assert_array_equal(maps, expected)

    def test_small_frames_get_averages(self, pipe):
        """A map that is shrunk to the frame's size shows every pixel of it."""
        dots = torch.zeros(64, 96)
        dots[::8, ::8] = 1.0
        small = pipe.postprocess(dots, (8, 12), "np")
        np.testing.assert_allclose(small[1:-1, 1:-1], dots.mean().item(), rtol=0.3)

    def test_a_network_of_another_precision(self, folder, expected):
        types = {"unet": torch.bfloat16, "default": torch.float32}
        pipe = DiffusionPipeline.from_pretrained(folder, dtype=types)
        pipe.set_progress_bar_config(disable=True)
        maps = pipe(CLIP, generator=seeded(), match_input_resolution=False, **PART).saliency
        assert np.abs(maps - expected).mean() < 0.05

    def test_pipelines_without_an_encoder(self):
        blind, deaf = tiny_pipeline(video=None), tiny_pipeline(audio=None)
        with pytest.raises(InputError, match="no video encoder"):
            blind(CLIP)
        with pytest.raises(InputError, match="no audio encoder"):
            deaf(CLIP, audio=CLIP)
        assert deaf(CLIP, **PART).saliency.shape == (10, 360, 640)
        assert blind(None, audio=CLIP, height=36, width=64, duration=0.4).saliency.shape == (10, 36, 64)

    def test_from_encoders_takes_weights_from_files(self, tmp_path):
        vggish = create_audio_encoder("vggish").state_dict()
        save_file(vggish, tmp_path / "audio.safetensors")
        weights = timm.create_model("efficientnet_lite0").state_dict()
        save_file(weights, tmp_path / "video.safetensors")
        pipe = DiffSalPipeline.from_encoders(
            "timm/efficientnet_lite0",
            "vggish",
            pretrained=tmp_path / "video.safetensors",
            audio_pretrained=tmp_path / "audio.safetensors",
            **TINY_UNET,
        )
        assert torch.equal(pipe.audio_encoder.features[0].weight, vggish["features.0.weight"])
        assert torch.equal(pipe.video_encoder.backbone.conv_stem.weight, weights["conv_stem.weight"])

    def test_from_encoders_refuses(self):
        with pytest.raises(InputError, match="both are None"):
            DiffSalPipeline.from_encoders(None, None)
        with pytest.raises(InputError, match="there is no video encoder 'mvit'"):
            DiffSalPipeline.from_encoders("mvit")
        with pytest.raises(InputError, match="`frame_size` must be two positive multiples of 32"):
            tiny_pipeline(frame_size=(60, 90))

    def test_offloading_sees_every_network_before_its_first_use(self):
        """Offloading's hooks, which bring a network to its device, recorded in place of a device."""
        pipe = tiny_pipeline()
        order = []

        class Recorder(ModelHook):
            def __init__(self, name):
                self.name = name

            def pre_forward(self, module, *args, **kwargs):
                order.append(self.name)
                return args, kwargs

        modules = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
        for name, module in modules.items():
            add_hook_to_module(module, Recorder(name))
        pipe(CLIP, **PART)
        assert list(dict.fromkeys(order)) == pipe.model_cpu_offload_seq.split("->")
        assert set(order) == set(modules)


def test_the_light_model_is_light():
    assert load_pipeline("untrained-light").unet.num_parameters() < 3e6


def test_the_papers_system_is_of_the_papers_size():
    pipe = DiffSalPipeline.from_encoders()
    total = sum(part.num_parameters() for part in pipe.components.values() if isinstance(part, torch.nn.Module))
    assert 72e6 < total < 80e6


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    pipe.save_pretrained(folder)
    return folder


class TestLoading:
    @pytest.mark.parametrize("loader", [DiffusionPipeline, DiffSalPipeline])
    def test_round_trip(self, folder, loader, expected):
        pipe = loader.from_pretrained(folder)
        pipe.set_progress_bar_config(disable=True)
        maps = pipe(CLIP, generator=seeded(), match_input_resolution=False, **PART).saliency
        np.testing.assert_array_equal(maps, expected)

    def test_a_fresh_process_needs_the_import_only(self, folder, expected, tmp_path):
        code = (
            "import sys, numpy, torch, diffsal_diffusers; from diffusers import DiffusionPipeline\n"
            "pipe = DiffusionPipeline.from_pretrained(sys.argv[1])\n"
            "maps = pipe(sys.argv[2], generator=torch.Generator().manual_seed(0), match_input_resolution=False, "
            "start=1.0, duration=0.4).saliency\n"
            "numpy.save(sys.argv[3], maps)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, folder, CLIP, tmp_path / "maps.npy"],
            cwd=tmp_path,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 0
        np.testing.assert_array_equal(np.load(tmp_path / "maps.npy"), expected)

    @pytest.mark.parametrize("kind", ["video", "audio"])
    def test_an_absent_encoder_stays_absent(self, kind, tmp_path):
        tiny_pipeline(**{kind: None}).save_pretrained(tmp_path)
        loaded = DiffusionPipeline.from_pretrained(tmp_path)
        assert loaded.components[f"{kind}_encoder"] is None

    def test_the_default_stride_and_interval_are_the_models(self, tmp_path):
        tiny_pipeline(frame_interval=2, frame_stride=3).save_pretrained(tmp_path)
        pipe = DiffusionPipeline.from_pretrained(tmp_path)
        assert pipe.config.default_frame_stride == 3 and pipe.processor.config.frame_interval == 2
        video = np.random.default_rng(0).integers(0, 255, (8, 32, 64, 3), dtype=np.uint8)
        maps, strided, every = (
            pipe(video, generator=torch.Generator().manual_seed(0), **settings).saliency
            for settings in ({}, {"frame_stride": 3}, {"frame_stride": 1})
        )
        assert np.array_equal(maps, strided) and not np.array_equal(maps, every)
        np.testing.assert_allclose(maps[1], (2 * maps[0] + maps[3]) / 3, atol=1e-6)

    def test_the_index_names_the_package(self, folder):
        index = json.loads((folder / "model_index.json").read_text())
        assert index["unet"] == ["diffsal_diffusers", "SaliencyUNet"]
        assert index["processor"] == ["diffsal_diffusers", "SaliencyProcessor"]
        assert index["default_num_inference_steps"] == 2

    def test_the_hubs_loader_takes_the_components_for_known(self, folder):
        index = json.loads((folder / "model_index.json").read_text())
        custom, folders = pipeline_loading_utils._get_custom_components_and_folders("a/model", index, filenames=[])
        assert custom == {}
        assert {"unet", "video_encoder", "audio_encoder", "scheduler", "processor"} <= set(folders)

    @pytest.mark.parametrize(
        "damage", ["missing weight", "wrong shape", "extra weight", "pickle", "truncated", "absent"]
    )
    def test_incomplete_weights_are_refused(self, folder, damage, tmp_path):
        broken = tmp_path / "model"
        shutil.copytree(folder, broken)
        file = broken / "unet" / "diffusion_pytorch_model.safetensors"
        weights = load_file(file)
        if damage == "missing weight":
            del weights["head.2.weight"]
        elif damage == "wrong shape":
            weights["head.2.weight"] = weights["head.2.weight"][:, :1].contiguous()
        elif damage == "extra weight":
            weights["tail"] = torch.zeros(1)
        if damage == "truncated":
            file.write_bytes(file.read_bytes()[:1000])
        elif damage in ("pickle", "absent"):
            file.unlink()
        else:
            save_file(weights, file, metadata={"format": "pt"})
        if damage == "pickle":
            torch.save(weights, file.with_suffix(".bin"))
        with pytest.raises(InputError, match="unet") as raised:
            DiffusionPipeline.from_pretrained(broken)
        assert "\n" not in str(raised.value)


OWN_ENCODERS = """
import timm
import torch
import diffsal_diffusers as dd
from diffsal_diffusers.encoders import LogMelCNNEncoder, PerFrameVideoEncoder
from diffusers.configuration_utils import register_to_config

@dd.register_video_encoder("pyramid")
class PyramidEncoder(dd.VideoEncoder):
    @register_to_config
    def __init__(self, channels: int = 4):
        super().__init__()
        kernels = [(2, s, s) for s in (4, 8, 16, 32)]
        self.convs = torch.nn.ModuleList(torch.nn.Conv3d(3, channels, k, stride=k) for k in kernels)
        self.feature_info = [dd.FeatureInfo(channels, stride, 8) for stride in (4, 8, 16, 32)]

    def forward(self, video):
        return dd.EncoderOutput(features=[conv(video) for conv in self.convs])

@dd.register_video_encoder("frames")
class FramesEncoder(PerFrameVideoEncoder):
    feature_info = [dd.FeatureInfo(4, stride, 16) for stride in (4, 8, 16, 32)]

    def __init__(self):
        super().__init__()
        self.convs = torch.nn.ModuleList(torch.nn.Conv2d(3, 4, s, stride=s) for s in (4, 8, 16, 32))

    def encode_frames(self, frames):
        return [conv(frames) for conv in self.convs]

    def mix_frames(self, features):
        return dd.EncoderOutput(features=features)

@dd.register_audio_encoder("short")
class ShortEncoder(LogMelCNNEncoder):
    @register_to_config
    def __init__(self):
        super().__init__(channels=32)
        self.feature_info = [dd.FeatureInfo(32, 16, time_slices=4)]
"""


@pytest.mark.parametrize(("video", "audio"), [("pyramid", "short"), ("frames", None), (None, "short")])
def test_encoders_from_a_users_own_file(video, audio, tmp_path, monkeypatch):
    module = f"my_encoders_{video}_{audio}"
    (tmp_path / f"{module}.py").write_text(OWN_ENCODERS)
    monkeypatch.syspath_prepend(tmp_path)
    for kind in ("_VIDEO_ENCODERS", "_AUDIO_ENCODERS"):
        monkeypatch.setattr(registry, kind, dict(getattr(registry, kind)))
    importlib.import_module(module)

    pipe = tiny_pipeline(video=video, audio=audio)
    if video is None:
        inputs = {"audio": CLIP, "height": 36, "width": 64, "duration": 0.4}
    else:
        inputs = {"video": CLIP, **PART}
    expected = pipe(**inputs, generator=seeded()).saliency
    pipe.save_pretrained(tmp_path / "model")
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    declared = index["video_encoder"] if video else index["audio_encoder"]
    assert declared[0] == module
    assert pipe.processor.config.audio_slices == (4 if audio == "short" else 9)
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "model")
    np.testing.assert_allclose(loaded(**inputs, generator=seeded()).saliency, expected, atol=1e-6)
