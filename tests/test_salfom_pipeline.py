"""SalFoM in the same house: what DiffSal's pipeline, commands and training do, with the other network."""

import json
from pathlib import Path

import dataset_trees as trees
import numpy as np
import pytest
import torch
import yaml
from diffsal_diffusers.training.config import build_config, list_configs, load_config
from diffsal_diffusers.training.memory import activation_bytes, state_bytes
from diffsal_diffusers.training.networks import build_pipeline
from diffsal_diffusers.training.train import main as train_main
from diffsal_diffusers.training.train import train
from diffsal_diffusers.training.validation import step_pictures
from diffusers import DiffusionPipeline
from launching import finish, launch
from media_files import make_video
from PIL import Image
from reference_weights import reference_tensor
from safetensors.torch import load_file
from stand_ins import TINY_DECODER, TINY_UMT, tiny_pipeline, tiny_salfom

from diffsal_diffusers import InputError, SalFoMPipeline, SaliencyPipelineOutput, SaliencyProcessor, load_pipeline
from diffsal_diffusers.cli import main
from diffsal_diffusers.conversion.checkpoint import sources_by_name
from diffsal_diffusers.conversion.salfom import DECODER_NAMES, umt_sources
from diffsal_diffusers.data import SaliencyClips, SyntheticScene, load_saliency_dataset
from diffsal_diffusers.encoders import EncoderOutput, FeatureInfo, VideoEncoder, register_video_encoder, registry
from diffsal_diffusers.evaluation import PipelinePredictor

CLIP = Path(__file__).parent.parent / "examples" / "big_buck_bunny.mp4"  # 640x360, 25 fps, 5.3 s, stereo
WEIGHTS = "diffusion_pytorch_model.safetensors"
LIST_DECODER = {key: list(value) if isinstance(value, tuple) else value for key, value in TINY_DECODER.items()}
TINY = {
    "model": {
        "kind": "salfom",
        "video": "timm/test_efficientnet",
        "frame_size": [32, 64],
        "num_frames": 4,
        "salfom": LIST_DECODER,
    },
    "data": [{"name": "synthetic", "limit": 4}],
    "batch_size": 2,
    "steps": 4,
    "learning_rate": 1e-3,
    "loss": {"kl": 1.0, "cc": 1.0},
    "workers": 0,
    "log_every": 1,
    "ema_decay": 0.0,
    "tracker": "none",
}


@pytest.fixture(scope="module")
def pipe():
    return tiny_salfom()


@pytest.fixture(scope="module")
def folder(pipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "salfom"
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 256, (40, 48, 80, 3), np.uint8)


@pytest.fixture(scope="module")
def expected(pipe, frames):
    return pipe(frames, batch_size=1).saliency


class TestPipeline:
    def test_the_same_call_and_output_as_diffsal(self, pipe):
        """One call for both: file in, a map for every frame at its size and time out."""
        for each in (pipe, tiny_pipeline()):
            out = each(str(CLIP), audio=False, start=1.0, duration=0.4, generator=torch.Generator().manual_seed(0))
            assert isinstance(out, SaliencyPipelineOutput)
            assert out.saliency.shape == (10, 360, 640) and out.saliency.dtype == np.float32
            assert 0 <= out.saliency.min() < out.saliency.max() <= 1 and out.uncertainty is None
            np.testing.assert_allclose(out.times, 1 + np.arange(10) / 25, atol=1e-6)

    @torch.no_grad()
    def test_each_map_is_of_its_clips_last_frame(self, pipe, frames):
        """The sixteen frames up to it; of the first fifteen frames, it and those after it, backwards."""
        maps = pipe(frames, match_input_resolution=False, output_type="pt").saliency
        pixels = torch.stack([pipe.processor.preprocess_frame(frame) for frame in frames])
        pixels = pipe.processor.normalize(pixels)
        for target in (0, 7, 14, 15, 16, 39):
            clip = pixels[target - 15 : target + 1] if target >= 15 else pixels[target : target + 16].flip(0)
            saliency = pipe.salfom(clip.transpose(0, 1)[None]).saliency[0, 0]
            torch.testing.assert_close(maps[target], saliency, atol=1e-5, rtol=1e-5)

    def test_batches_streams_and_forms(self, pipe, frames, expected):
        for batch_size in (3, 40):
            np.testing.assert_allclose(pipe(frames, batch_size=batch_size).saliency, expected, atol=1e-5)
        times, maps = zip(*pipe.stream(frames, batch_size=7), strict=True)
        np.testing.assert_allclose(maps, expected, atol=1e-5)
        np.testing.assert_allclose(times, np.arange(40) / 25)
        images = pipe([Image.fromarray(frame) for frame in frames], output_type="pil").saliency
        np.testing.assert_allclose(np.stack(images) / 65535, expected, atol=1e-4)
        saliency, uncertainty = pipe(frames, batch_size=1, return_dict=False)
        np.testing.assert_array_equal(saliency, expected)
        assert uncertainty is None
        np.testing.assert_array_equal(
            pipe(frames, batch_size=1, generator=torch.Generator().manual_seed(5)).saliency, expected
        )

    def test_strides(self, pipe, frames, expected):
        maps = pipe(frames, frame_stride=6).saliency
        np.testing.assert_allclose(maps[[0, 6, 36, 39]], expected[[0, 6, 36, 39]], atol=1e-5)
        np.testing.assert_allclose(maps[7], (5 * expected[6] + expected[12]) / 6, atol=1e-5)

    @pytest.mark.parametrize("length", [1, 5, 16, 20])
    def test_short_videos(self, pipe, frames, length):
        assert pipe(frames[:length]).saliency.shape == (length, 48, 80)

    def test_loading(self, pipe, folder, frames, expected):
        for again in (DiffusionPipeline.from_pretrained(folder), load_pipeline(folder)):
            assert type(again) is SalFoMPipeline
            np.testing.assert_array_equal(again(frames, batch_size=1).saliency, expected)
        index = json.loads((folder / "model_index.json").read_text())
        assert {name for name in index if not name.startswith("_")} == {"salfom", "processor", "default_frame_stride"}

    def test_half_precision(self, folder, frames, expected):
        half = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
        assert half.salfom.dtype == torch.bfloat16
        maps = half(frames[:20], batch_size=8).saliency
        assert maps.dtype == np.float32 and np.abs(maps - expected[:20])[15:19].max() < 0.05

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"num_inference_steps": 4}, "`num_inference_steps` is for denoising, and SalFoM predicts in one pass"),
            ({"ensemble_size": 2}, "`ensemble_size` is for denoising"),
            ({"output_uncertainty": True}, "`output_uncertainty` is for denoising"),
            ({"audio_guidance_scale": 2.0}, "`audio_guidance_scale` is for denoising"),
            ({"independent_noise": True}, "`independent_noise` is for denoising"),
            ({"callback_on_step_end": print}, "`callback_on_step_end` is for denoising"),
            ({"audio": "clip.wav"}, "has no audio encoder"),
            ({"video": None, "audio": False}, "an audio encoder"),
            ({"height": 3}, "`height` and `width` are for `video=None`"),
            ({"batch_size": 0}, "`batch_size` must be a positive integer, got 0"),
            ({"frame_stride": True}, "`frame_stride` must be a positive integer, got True"),
            ({"fps": float("nan")}, "`fps` must be a finite number"),
            ({"output_type": "jpg"}, "must be one of np, pt, pil, got 'jpg'"),
            ({"generator": 3}, "must be a torch.Generator, got int"),
        ],
    )
    def test_arguments_that_cannot_be_right(self, pipe, frames, arguments, message):
        with pytest.raises(InputError, match=message):
            pipe(**{"video": frames} | arguments)

    def test_a_processor_that_does_not_fit(self, pipe):
        for changes, numbers in (({"num_frames": 8, "target_frame": 7}, "8 and 7"), ({"target_frame": 8}, "16 and 8")):
            config = dict(pipe.processor.config) | {"clip_start": "repeat"} | changes
            with pytest.raises(InputError, match=f"takes 16 frames and predicts the last one.* are {numbers}"):
                SalFoMPipeline(pipe.salfom, SaliencyProcessor.from_config(config))

    def test_its_processor_reads_no_sound(self, pipe):
        with pytest.raises(InputError, match="reads no sound"):
            pipe.processor.log_mel_slices(None, [[0.0, 1.0]])

    def test_from_encoder(self, tmp_path):
        encoder = tiny_salfom().salfom.video_encoder
        encoder.save_pretrained(tmp_path)
        pipe = SalFoMPipeline.from_encoder(
            pretrained=tmp_path,
            encoder_config=TINY_UMT,
            num_frames=8,
            frame_interval=2,
            frame_stride=3,
            **TINY_DECODER,
        )
        config = pipe.processor.config
        assert (config.num_frames, config.target_frame, config.frame_interval) == (8, 7, 2)
        assert (config.frame_size, config.clip_start, config.audio_slices) == ((224, 224), "mirror", 0)
        assert config.image_mean == encoder.image_mean and pipe.config.default_frame_stride == 3
        assert torch.equal(pipe.salfom.video_encoder.patch_embed.weight, encoder.patch_embed.weight)
        with pytest.raises(InputError, match="there is no video encoder 'nothing'"):
            SalFoMPipeline.from_encoder("nothing")


class TestCommands:
    @pytest.fixture
    def video(self, tmp_path):
        return make_video(tmp_path / "clip.mp4", 20)

    def test_predict(self, folder, video, tmp_path, capfd):
        out = tmp_path / "out"
        command = ["predict", str(video), "--model", str(folder), "--output", str(out)]
        assert main([*command, "--formats", "overlay,heatmap,maps,csv", "--frame-stride", "5"]) == 0
        assert len(capfd.readouterr().out.splitlines()) == 4
        assert len(list((out / "clip_saliency").iterdir())) == 20
        assert len((out / "clip_attention.csv").read_text().splitlines()) == 21
        for options, message in (
            (["--steps", "4"], "--steps is for models that denoise, and"),
            (["--ensemble", "2"], "--ensemble is for models that denoise"),
            (["--scheduler", "ddpm"], "--scheduler is for models that denoise"),
        ):
            assert main([*command, *options]) == 1
            out_lines, err = capfd.readouterr()
            assert out_lines == "" and err.count("\n") == 1 and message in err

    def test_evaluate(self, folder, tmp_path, capfd):
        command = ["evaluate", "--model", str(folder), "--dataset", "synthetic", "--limit", "2", "--frame-step", "25"]
        command += ["--baselines", "centre", "--output", str(tmp_path / "out")]
        assert main(command) == 0
        assert "salfom (v)" in capfd.readouterr().out
        scores = json.loads((tmp_path / "out" / "scores.json").read_text())
        assert scores["settings"]["steps"] is None and scores["settings"]["modality"] == "v"
        assert main([*command, "--steps", "2"]) == 1
        assert "--steps is for models that denoise" in capfd.readouterr().err
        assert main([*command, "--modality", "av"]) == 1
        assert "the modality 'av' is more than this model takes, which is 'v'" in capfd.readouterr().err

    def test_the_predictor_says_so_at_once(self, pipe):
        with pytest.raises(InputError, match="`ensemble_size` is for denoising"):
            PipelinePredictor(pipe, ensemble_size=3)
        with pytest.raises(InputError, match="`independent_noise` is for denoising"):
            PipelinePredictor(pipe, independent_noise=True)
        with pytest.raises(InputError, match="the modality 'av' is more than this model takes, which is 'v'"):
            PipelinePredictor(pipe, "av")
        assert (PipelinePredictor(pipe).modality, PipelinePredictor(tiny_pipeline()).modality) == ("v", "av")

    def test_info(self, folder, capfd):
        assert main(["info", "--model", str(folder)]) == 0
        out = capfd.readouterr().out
        assert "salfom         SalFoM" in out and "decoder        HeterogeneousDecoder" in out
        assert "GFLOP a clip" in out and "denoising" not in out
        total = sum(p.numel() for p in load_pipeline(folder).salfom.parameters()) / 1e6
        assert f"{total:.2f} M parameters" in out

    def test_a_checkpoint_of_a_small_salfom(self, tmp_path, capfd, monkeypatch):
        """Named and shaped as the authors', with what nothing reads."""
        tiny = tiny_salfom()
        decoder, encoder = tiny.salfom.decoder, tiny.salfom.video_encoder
        monkeypatch.setattr(SalFoMPipeline, "from_encoder", lambda *args, **kwargs: tiny)
        sources = (sources_by_name(decoder, DECODER_NAMES) | umt_sources(encoder, "encoder.")).values()
        shapes = {name: shape for source in sources for name, shape in source.shapes.items()}
        tensors = {name: reference_tensor(name, shape) for name, shape in shapes.items()}
        tensors |= {f"transformer_{i}.norm.weight": torch.zeros(8) for i in (1, 2, 3)}
        index = "transformer_1.layers.0.blocks.0.attn.relative_position_index"
        tensors |= {index: torch.zeros(2, 2, dtype=torch.long), "final_map.bias": torch.zeros(1)}
        torch.save(
            {"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}}, tmp_path / "file.pth"
        )
        assert main(["convert", "salfom", str(tmp_path / "file.pth"), str(tmp_path / "out")]) == 0
        out = capfd.readouterr().out
        assert "5 tensors:" in out and index in out and f"diffsal predict VIDEO --model {tmp_path / 'out'}" in out
        made = load_pipeline(tmp_path / "out").salfom
        assert torch.equal(made.decoder.sfd.scales[3][2].weight, tensors["conv_2D_8.weight"])
        assert torch.equal(made.decoder.tcfe.stages[1].blocks[1].mlp[2].bias, tensors[
            "transformer_2.layers.0.blocks.1.mlp.fc2.bias"
        ])  # fmt: skip
        key = made.video_encoder.encoder.layer[1].attention.attention.key.weight
        assert torch.equal(key, tensors["encoder.blocks.1.attn.qkv.weight"][16:32])
        without = {name: tensor for name, tensor in tensors.items() if name != "encoder.pos_embed"}
        torch.save(without, tmp_path / "file.pth")
        assert main(["convert", "salfom", str(tmp_path / "file.pth"), str(tmp_path / "other")]) == 1
        assert "tensors missing: 1, the first is encoder.pos_embed" in capfd.readouterr().err

    def test_a_checkpoint_that_is_not_salfoms(self, tmp_path, capfd, monkeypatch):
        tiny = tiny_salfom()
        monkeypatch.setattr(SalFoMPipeline, "from_encoder", lambda *args, **kwargs: tiny)
        torch.save({"state_dict": {"conv1.weight": torch.zeros(3)}}, tmp_path / "file.pth")
        assert main(["convert", "salfom", str(tmp_path / "file.pth"), str(tmp_path / "out")]) == 1
        err = capfd.readouterr().err
        assert "not SalFoM's released checkpoint; tensors missing" in err and not (tmp_path / "out").exists()


class TestTraining:
    def config(self, output: Path, **changes) -> dict:
        return TINY | {"output": str(output)} | changes

    def test_clips_are_those_of_prediction(self, tmp_path):
        """Also the ones that run backwards; and sound is not read."""
        trees.audio_visual(tmp_path, lists={("train", 1): {"a": 40}})
        processor = SaliencyProcessor(frame_size=(32, 64), target_frame=15, clip_start="mirror", audio_slices=0)
        clips = SaliencyClips(load_saliency_dataset("AVAD", tmp_path, fold=1), processor)
        first, later = clips[3], clips[18]
        assert torch.equal(first["frames"].flip(0), later["frames"])
        assert not first["has_audio"] and first["log_mel"].shape[1] == 0

    def test_the_loss_falls_and_the_folder_predicts(self, tmp_path, capsys):
        """Until the network has one clip by heart; the loss is KL - CC."""
        settings = self.config(tmp_path / "run", steps=60, batch_size=2, augment=False, learning_rate=3e-3)
        settings["data"] = [{"name": "synthetic", "limit": 1, "stride": 100}]
        last = train(build_config(settings))
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
        losses = [float(line.split("loss ")[1].split(",")[0]) for line in lines]
        assert losses[-1] < losses[0] - 0.5 and losses[-1] > -1
        pipe = DiffusionPipeline.from_pretrained(last)
        scene = SyntheticScene(0, num_frames=5, size=(60, 90))
        assert pipe(scene.media()["video"]).saliency.shape == (5, 60, 90)

    def test_frozen_checkpointed_and_resumed(self, tmp_path):
        changes = {"video": "umt_l16", "video_config": TINY_UMT}
        model = TINY["model"] | changes
        begin = build_pipeline(build_config(self.config(tmp_path / "x", model=model)))
        assert all(p.requires_grad for p in begin.salfom.parameters())
        common = {"model": model | {"freeze": ["video_encoder"]}, "checkpoint_every": 2}
        whole = train(build_config(self.config(tmp_path / "whole", **common)))
        train(build_config(self.config(tmp_path / "parts", **common | {"steps": 2})))
        resumed = train(build_config(self.config(tmp_path / "parts", **common)), resume="latest")
        one, other = (load_file(folder / "salfom" / WEIGHTS) for folder in (whole, resumed))
        earlier = load_file(tmp_path / "whole" / "checkpoints" / "step-00000002" / "salfom" / WEIGHTS)
        assert all(torch.equal(one[name], other[name]) for name in one)
        changed = {name for name in one if not torch.equal(one[name], earlier[name])}
        assert changed and all(name.startswith("decoder.") for name in changed)

        plain = train(build_config(self.config(tmp_path / "plain", model=model)))
        saved = train(build_config(self.config(tmp_path / "saved", model=model, gradient_checkpointing=True)))
        one, other = (load_file(folder / "salfom" / WEIGHTS) for folder in (plain, saved))
        for name in one:
            torch.testing.assert_close(one[name], other[name], atol=1e-5, rtol=1e-4)

    def test_a_folder_goes_on_and_is_validated(self, folder, tmp_path):
        validation = {"data": {"name": "synthetic", "split": "validation", "limit": 1}, "frame_step": 50, "every": 1}
        model = {"folder": str(folder), "frame_size": [32, 64], "freeze": ["decoder"]}
        settings = self.config(
            tmp_path / "run", steps=1, model=model, validation=validation, tracker="tensorboard",
            learning_rate_scale={"video_encoder": 0.1},
        )  # fmt: skip
        last = load_pipeline(train(build_config(settings)))
        assert last.processor.config.frame_size == [32, 64] or last.processor.config.frame_size == (32, 64)
        assert (tmp_path / "run" / "checkpoints" / "best" / "validation.json").exists()
        before = load_pipeline(folder).salfom.state_dict()
        changed = {n for n, v in last.salfom.state_dict().items() if not torch.equal(v, before[n])}
        assert changed and all(name.startswith("video_encoder.") for name in changed)

    def test_a_folder_of_another_kind(self, folder, tmp_path):
        for model, message in (
            ({"folder": str(folder), "kind": "diffsal"}, "`model.kind` is salfom there, and diffsal in this config"),
            ({"folder": "tiny", "kind": "salfom"}, "tiny: `model.kind` is diffsal there, and salfom"),
            ({"folder": str(folder), "salfom": {"depth": 3}}, "`model.salfom` is for a new network"),
            ({"folder": str(folder), "num_frames": 8}, "`model.num_frames` is for a new network"),
        ):
            with pytest.raises(InputError, match=message):
                build_pipeline(build_config(self.config(tmp_path, model=model)))

    def test_what_the_map_does_not_read_is_not_trained(self, tmp_path):
        """The encoder's finest and coarsest scales: processes would wait for their gradients."""
        pipe = build_pipeline(build_config(self.config(tmp_path)))
        frozen = {n for n, p in pipe.salfom.named_parameters() if not p.requires_grad}
        assert frozen and all(name.startswith("video_encoder.") for name in frozen)
        pipe.salfom.train()(torch.randn(1, 3, 4, 32, 64)).saliency.sum().backward()
        assert all((p.grad is not None) == p.requires_grad for p in pipe.salfom.parameters())

    def test_an_encoder_of_ones_own(self, tmp_path, monkeypatch):
        """It knows no `num_frames`, and cannot tell without data which of its parts the map reads."""

        class Plain(VideoEncoder):
            def __init__(self):
                super().__init__()
                self.conv = torch.nn.Conv3d(3, 4, (2, 16, 16), (2, 16, 16))
                self.spare = torch.nn.Linear(2, 2)
                self.feature_info = [FeatureInfo(4, 16, 8)]

            def forward(self, video):
                assert video.abs().max().item() >= 0
                return EncoderOutput(features=[self.conv(video)])

        monkeypatch.setattr(registry, "_VIDEO_ENCODERS", dict(registry._VIDEO_ENCODERS))
        register_video_encoder("plain")(Plain)
        model = {"kind": "salfom", "video": "plain", "frame_size": [32, 64], "salfom": LIST_DECODER}
        pipe = build_pipeline(build_config(self.config(tmp_path, model=model)))
        assert pipe.processor.config.num_frames == 16
        assert all(p.requires_grad for p in pipe.salfom.parameters())

    @pytest.mark.parametrize(("sharded", "video"), [(None, "timm"), ("fsdp", "timm"), ("fsdp", "umt")])
    def test_two_processes_are_one(self, tmp_path, sharded, video):
        model = TINY["model"] if video == "timm" else TINY["model"] | {"video": "umt_l16", "video_config": TINY_UMT}
        settings = self.config(tmp_path / "two", model=model, steps=2)
        code, _, err = finish(launch(settings, tmp_path, processes=2, sharded=sharded))
        assert code == 0, err
        train(build_config(settings | {"output": str(tmp_path / "one")}))
        one, two = (
            load_file(tmp_path / run / "checkpoints" / "step-00000002" / "salfom" / WEIGHTS) for run in ("one", "two")
        )
        for name in one:
            torch.testing.assert_close(one[name], two[name], atol=1e-4, rtol=1e-4)  # they moved by 2e-3

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"timestep_shift": 2.0}, "`timestep_shift` is for DiffSal, and SalFoM neither denoises nor listens"),
            ({"drop_audio": 0.5}, "`drop_audio` is for DiffSal"),
            ({"scheduler": "ddpm"}, "`scheduler` is for DiffSal"),
            ({"model": {"lora_rank": 4}}, "`model.lora_rank` is for DiffSal"),
            ({"model": {"audio": "log_mel_cnn"}}, "`model.audio` is for DiffSal"),
            ({"model": {"unet": {"attention": "sca"}}}, "`model.unet` is for DiffSal"),
            ({"model": {"freeze": ["unet"]}}, "`model.freeze`: this model has decoder, video_encoder, got 'unet'"),
            ({"learning_rate_scale": {"unet": 0.1}}, "`learning_rate_scale`: this model has"),
            ({"model": {"freeze": ["video_encoder", "decoder"]}}, "nothing is left to train"),
            ({"model": {"salfom": {"num_attention_heads": 0}}}, "`num_attention_heads` must be a positive integer"),
            ({"model": {"video_config": {"num_frames": 8}}}, "`model.video_config.num_frames` must be given as"),
            ({"model": {"salfom": {"width": 3}}}, "there is no key `model.salfom.width`; there are decoder_channels,"),
            ({"model": {"salfom": {"encoder": "umt_b16"}}}, "there is no key `model.salfom.encoder`"),
            ({"model": {"kind": "diffsal"}}, "`model.salfom` is for `model.kind` salfom"),
            ({"model": {"kind": "tased"}}, "`model.kind` must be one of null, diffsal, salfom, got 'tased'"),
            ({"model": {"video": None}}, "`model.video` must name an encoder"),
            ({"model": {"num_frames": 5}}, "the encoder gives 3"),
        ],
    )
    def test_settings_that_are_not_for_it(self, tmp_path, capsys, changes, message):
        changes = changes | {"model": TINY["model"] | changes.get("model", {})}
        file = tmp_path / "run.yaml"
        file.write_text(yaml.safe_dump(self.config(tmp_path / "run", **changes)))
        assert train_main(["--config", str(file)]) == 1
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1

    def test_configs(self):
        """The paper's settings, and its ablations by overrides."""
        for name in ("salfom_dhf1k", "salfom_hollywood2", "salfom_ucf_sports", "salfom_light"):
            assert name in list_configs()
            config = load_config(name)
            assert config.loss == {"kl": 1.0, "cc": 1.0}
            if name != "salfom_light":
                assert config.learning_rate == 1e-5 and config.weight_decay == 0.0
        ablations = {
            "model.salfom.branches=[dfd,sfd]": lambda salfom: salfom.decoder.tcfe is None,
            "model.num_frames=8": lambda salfom: salfom.config.num_frames == 8,
            "model.video=timm/test_efficientnet": lambda salfom: salfom.config.encoder == "timm/test_efficientnet",
        }
        small = [f"model.video_config={TINY_UMT}", f"model.salfom={LIST_DECODER}", "model.pretrained=false"]
        for override, holds in ablations.items():
            settings = [*small, override]
            if override.startswith("model.video="):
                settings = [*small[1:], override]
            assert holds(build_pipeline(load_config("salfom_dhf1k", settings)).salfom)

    def test_memory_is_counted(self, pipe):
        parameters = sum(p.numel() for p in pipe.salfom.parameters())
        assert state_bytes(pipe, ema=False) == 5 * 4 * parameters
        assert activation_bytes(pipe, 2) == 2 * activation_bytes(pipe, 1) > 0

    def test_pictures_show_the_frame_its_truth_and_the_map(self, pipe):
        scene = SyntheticScene(0, num_frames=11, size=(60, 90))
        strip = step_pictures(pipe, scene, seed=0)
        assert strip.shape == (120, 3 * 180, 3) and strip.dtype == np.uint8
        last = pipe(scene.media()["video"], frame_stride=5).saliency[5]
        assert abs(strip[:, -180:, 0].mean() / 255 - last.mean()) < 0.02
