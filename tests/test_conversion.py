"""Published checkpoints as folders: the authors' numbers from the authors' weights, and files that are not those.

The fixtures are what the authors' program computes from weights drawn by the rule of `reference_weights.py`, thinned
out: every 64th channel of the audio feature and of the coarsest video feature, every fourth pixel of the maps.
"""

import json
import pickle
from pathlib import Path

import accelerate
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffsal_diffusers.training.config import build_config
from diffsal_diffusers.training.train import train
from diffusers import DiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from reference_weights import reference_tensor
from safetensors.torch import load_file
from torchvision.models import get_model

from diffsal_diffusers import InputError, MViTv2Encoder, ReleasedSaliencyUNet, VGGishEncoder
from diffsal_diffusers.cli import main
from diffsal_diffusers.conversion import convert_diffsal, convert_mvit_v2_s, convert_vggish, released_pipeline
from diffsal_diffusers.conversion.backbones import mvit_sources
from diffsal_diffusers.encoders import create_video_encoder
from diffsal_diffusers.models.upsampling import SummedConvolution, UpsampledConvolution

FIXTURES = Path(__file__).parent / "fixtures" / "released"
SHAPES = json.loads((FIXTURES / "diffsal_av_keys.json").read_text())
SOUND = ("audio_net.", "spatiotemp_net.", "fc.")
FULLY_CONNECTED = "audio_net.embeddings."  # 68 million numbers that nothing reads


def names(video_only: bool) -> list[str]:
    """The tensors of a released checkpoint."""
    return [name for name in SHAPES if not (video_only and name.startswith(SOUND))]


def empty(video_only: bool = False) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors in their shapes, in little memory: all zeros."""
    return {name: torch.zeros(()).expand(SHAPES[name]) for name in names(video_only)}


def save(file: Path, tensors: dict, **more) -> Path:
    """A file as the authors' program writes them."""
    state = {f"module.{name}": value for name, value in tensors.items()}
    torch.save({"state_dict": state, "epoch": 3, "step": 700, "optim_dict": {"state": {}}} | more, file)
    return file


def drawn(video_only: bool, seed: int = 0) -> dict[str, torch.Tensor]:
    """A checkpoint's tensors by the rule."""
    return empty(video_only) | {
        name: reference_tensor(name, tuple(SHAPES[name]), seed)
        for name in names(video_only)
        if not name.startswith(FULLY_CONNECTED)
    }


def drawn_input(name: str, *shape: int) -> torch.Tensor:
    """One of the fixtures' inputs: standard normal."""
    return reference_tensor(f"input/{name}", (1, 1, *shape)).view(shape) * np.sqrt(np.prod((1, *shape)))


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The two pipelines, and the features that they share."""
    folder = tmp_path_factory.mktemp("released")
    pipes = {}
    for video_only in (False, True):
        file = save(folder / "checkpoint.pth", drawn(video_only))
        pipes[video_only], unused = convert_diffsal(file, video_only)
        assert len(unused) == (65 if video_only else 24)
        file.unlink()
    with torch.no_grad():
        video = pipes[True].video_encoder(drawn_input("video", 1, 3, 16, 224, 384)).features
        audio = pipes[False].audio_encoder(drawn_input("audio", 1, 1, 9, 112, 192)).features[0]
    return pipes, video, audio


def expected(video_only: bool) -> dict[str, np.ndarray]:
    with np.load(FIXTURES / f"diffsal_{'v' if video_only else 'av'}_seed0.npz") as arrays:
        return dict(arrays)


class TestReleasedNumbers:
    def test_video_features(self, released):
        _, video, _ = released
        for i, step in enumerate((1, 2, 4, 8)):  # coarsest first
            found = video[3 - i][:, ::64, :, ::step, ::step].numpy()
            truth = expected(False)[f"video_features.{i}"]
            assert np.abs(found - truth).max() <= 1e-3 * np.abs(truth).max()
            assert np.linalg.norm(found - truth) <= 1e-4 * np.linalg.norm(truth)

    @torch.no_grad()
    def test_audio_features(self, released):
        pipes, _, audio = released
        found = pipes[False].unet.audio_transformer(audio).permute(0, 4, 1, 2, 3)[:, ::64].numpy()
        truth = expected(False)["audio_features"]
        assert np.abs(found - truth).max() <= 1e-4 * np.abs(truth).max()

    @pytest.mark.parametrize("video_only", [False, True])
    @torch.no_grad()
    def test_maps(self, released, video_only):
        """At three timesteps, and every state of the four steps of DDIM."""
        pipes, video, audio = released
        pipe, truth = pipes[video_only], expected(video_only)
        noise = drawn_input("noise", 1, 1, 224, 384)
        conditions = pipe.unet.encode_conditions(224, 384, video, None if video_only else audio)
        for t in (0, 500, 999):
            found = pipe.unet(noise, t, conditions=conditions).sample
            np.testing.assert_allclose(found[:, :, ::4, ::4].numpy(), truth[f"unet.t{t}"], atol=2e-5)
        pipe.scheduler.set_timesteps(4)
        assert pipe.scheduler.timesteps.tolist() == [750, 500, 250, 0]
        sample = noise
        for t in pipe.scheduler.timesteps:
            prediction = pipe.unet(sample, t, conditions=conditions).sample
            sample = pipe.scheduler.step(prediction, t, sample).prev_sample
            name = f"ddim4.after_t{t}" if t > 0 else "ddim4.final"
            np.testing.assert_allclose(sample[:, :, ::4, ::4].numpy(), truth[name], atol=2e-5)

    @torch.no_grad()
    def test_what_reaches_the_map(self, released):
        """Noise does with sound, and does not without; several maps of a clip stand side by side."""
        pipes, video, audio = released
        noise = torch.randn(2, 1, 224, 384, generator=torch.Generator().manual_seed(0))
        for video_only, pipe in pipes.items():
            conditions = pipe.unet.encode_conditions(224, 384, video, None if video_only else audio)
            both = pipe.unet(noise, 500, conditions=conditions).sample
            one = pipe.unet(noise[1:], 500, conditions=conditions).sample
            torch.testing.assert_close(both[1:], one, atol=1e-5, rtol=0)
            assert torch.equal(both[0], both[1]) == video_only

    def test_from_the_command_line_to_a_map(self, tmp_path, capfd):
        file, folder = save(tmp_path / "video.pth", drawn(True, seed=1)), tmp_path / "folder"
        assert main(["convert", "diffsal", str(file), str(folder), "--video-only"]) == 0
        out = capfd.readouterr().out
        assert "left out, since the network has no use for them, " in out and "decoder_net.conv_in.weight" in out
        assert f"diffsal predict VIDEO --model {folder}" in out
        pipe = DiffusionPipeline.from_pretrained(folder)
        assert (pipe.scheduler.config.timestep_spacing, pipe.config.default_num_inference_steps) == ("leading", 4)
        assert pipe.processor.config.audio_alignment == "released"
        pipe.set_progress_bar_config(disable=True)
        frames = np.random.default_rng(0).integers(0, 256, (1, 72, 96, 3), np.uint8)
        saliency = pipe(frames).saliency
        assert saliency.shape == (1, 72, 96) and 0 <= saliency.min() < saliency.max() <= 1


class TestWhatIsNotACheckpoint:
    def refused(self, file: Path, folder: Path, capfd, *options: str) -> str:
        """The sentence, of a command that leaves nothing behind."""
        before = sorted(file.parent.iterdir())
        assert main(["convert", "diffsal", str(file), str(folder), *options]) == 1
        out, err = capfd.readouterr()
        assert out == "" and err.count("\n") == 1 and str(file) in err
        assert sorted(file.parent.iterdir()) == before
        return err

    def test_files_of_other_kinds(self, tmp_path, capfd):
        class Hostile:
            def __reduce__(self):
                return Path.touch, (tmp_path / "touched",)

        whole = save(tmp_path / "whole.pth", empty()).read_bytes()
        contents = {
            "text.pth": b"no checkpoint",
            "nothing.pth": b"",
            "cut.pth": whole[: len(whole) // 2],
            "hostile.pth": pickle.dumps({"state_dict": Hostile()}),
        }
        for name, content in contents.items():
            (tmp_path / name).write_bytes(content)
            err = self.refused(tmp_path / name, tmp_path / "folder", capfd)
            assert "cannot be read as a PyTorch checkpoint of tensors" in err
        torch.save({"state_dict": Hostile()}, tmp_path / "newer.pth")
        assert "cannot be read" in self.refused(tmp_path / "newer.pth", tmp_path / "folder", capfd)
        assert not (tmp_path / "touched").exists()
        for content in ([1, 2], {"state_dict": 3}, {"epoch": 3}, {}):
            torch.save(content, tmp_path / "other.pth")
            assert "holds no weights" in self.refused(tmp_path / "other.pth", tmp_path / "folder", capfd)
        assert main(["convert", "diffsal", str(tmp_path / "absent.pth"), str(tmp_path / "folder")]) == 1
        assert "No such file or directory" in capfd.readouterr().err

    def test_other_tensors(self, tmp_path, capfd):
        name = "decoder_net.conv_in.weight"
        cases = {
            f"tensors missing: 1, the first is {name}": {n: v for n, v in empty().items() if n != name},
            "tensors not known: 2, the first is decoder_net.extra": empty()
            | {f"decoder_net.{n}": torch.zeros(1) for n in ("extra", "more")},
            f"tensors of another shape: 1, the first is {name}": empty() | {name: torch.zeros(96, 3, 3, 3)},
            f"no finite numbers: 1, the first is {name}": empty() | {name: torch.full(SHAPES[name], torch.nan)},
            "tensors not known: 1, the first is fc.0.weight\\x1b[31m": empty()
            | {"fc.0.weight\x1b[31m": torch.zeros(1)},
            "no finite numbers: 2, the first is decoder_net.invpt_decoder.mt_proj.0.weight": empty()
            | {"decoder_net.invpt_decoder.mt_proj.1.running_var": torch.full((96,), -1.0)},
            "no finite numbers: 1, the first is decoder_net.conv_in.bias": empty()
            | {"decoder_net.conv_in.bias": torch.full((96,), 1e300, dtype=torch.float64)},
            "tensors missing: ": {"conv1.weight": torch.zeros(64, 3, 7, 7)},
        }
        for message, tensors in cases.items():
            file = save(tmp_path / "file.pth", tensors)
            err = self.refused(file, tmp_path / "folder", capfd)
            assert f"not DiffSal's released audio-visual checkpoint; tensors {message.removeprefix('tensors ')}" in (
                err.replace("whose values are ", "")
            )

    def test_other_kinds_of_tensors(self, tmp_path, capfd):
        name = "decoder_net.conv_in.bias"
        for value in (
            torch.zeros(96).to_sparse(),
            torch.zeros(96, device="meta"),
            torch.zeros(96, dtype=torch.complex64),
            torch.quantize_per_tensor(torch.zeros(96), 0.1, 0, torch.quint8),
        ):
            file = save(tmp_path / "file.pth", empty() | {name: value})
            err = self.refused(file, tmp_path / "folder", capfd)
            assert f"the tensor module.{name} is not one of plain numbers" in err
        huge = empty() | {name: torch.zeros(()).expand(10**6, 10**6)}  # of four bytes in the file
        assert "of another shape: 1" in self.refused(save(tmp_path / "file.pth", huge), tmp_path / "folder", capfd)

    def test_the_other_of_the_two(self, tmp_path, capfd):
        file = save(tmp_path / "file.pth", empty())
        assert "not the video-only" in self.refused(file, tmp_path / "folder", capfd, "--video-only")
        file = save(tmp_path / "file.pth", empty(video_only=True))
        assert "add --video-only" in self.refused(file, tmp_path / "folder", capfd)

    def test_a_folder_that_is_there(self, tmp_path, capfd):
        file = save(tmp_path / "file.pth", empty())
        (tmp_path / "folder").mkdir()
        assert main(["convert", "diffsal", str(file), str(tmp_path / "folder")]) == 1
        assert "folder exists already" in capfd.readouterr().err

    def test_other_dictionaries(self, tmp_path):
        """The tensors alone, and other precisions, are as good."""
        tensors = {name: value.half() for name, value in empty(video_only=True).items()}
        torch.save(tensors, tmp_path / "file.pth")
        pipe, _ = convert_diffsal(tmp_path / "file.pth", video_only=True)
        assert pipe.unet.dtype == torch.float32


class TestReleasedPipeline:
    def test_it_needs_what_it_was_trained_with(self):
        pipe = released_pipeline()
        video, sound = np.zeros((1, 32, 32, 3), np.uint8), (np.zeros(1600, np.float32), 16000)
        for call, message in (
            ({"video": video}, "the video has no sound; .* for videos without, convert"),
            ({"video": video, "audio": False}, "needs it; .*; predict with its sound"),
            ({"video": video, "audio": sound, "audio_guidance_scale": 2.0}, "`audio_guidance_scale` must be 1"),
            ({"audio": sound, "height": 32, "width": 32}, "needs a picture"),
        ):
            with pytest.raises(InputError, match=message):
                pipe(**call)
        assert released_pipeline(video_only=True).audio_encoder is None

    @torch.no_grad()
    def test_layer_by_layer_on_a_device(self):
        """As sequential offloading does it, which brings a layer's weights when the layer is called."""
        unet = ReleasedSaliencyUNet(video_channels=(32, 32, 32, 32), audio_channels=8, head_channels=8).eval()
        video = [torch.randn(1, 32, 8, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
        inputs = (torch.randn(1, 1, 64, 96), 500, video, torch.randn(1, 8, 9, 2, 3))
        frames, encoder = torch.randn(1, 3, 4, 64, 64), MViTv2Encoder(norms_in_path=True).eval()
        expected = unet(*inputs).sample, encoder(frames).features[-1]
        for network in (unet, encoder):
            accelerate.cpu_offload(network, execution_device=torch.device("cpu"))
        found = unet(*inputs).sample, encoder(frames).features[-1]
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)

    def test_its_preprocessing(self):
        with_sound, without = (released_pipeline(video_only).processor for video_only in (False, True))
        white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
        found = with_sound.normalize(white)[0, :, 0, 0]
        np.testing.assert_allclose(found, [(255 - 114.7748) / 38.7568578, (255 - 107.7354) / 37.88248729,
                                           (255 - 99.475) / 40.02898126], rtol=1e-5)  # fmt: skip
        found = without.normalize(white)[0, :, 0, 0]
        np.testing.assert_allclose(found, [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225], rtol=1e-5)
        for processor in (with_sound, without):
            config = processor.config
            assert (tuple(config.frame_size), config.num_frames, config.target_frame) == ((224, 384), 16, 8)
            assert (config.audio_alignment, config.audio_slices) == ("released", 9)
            assert tuple(config.audio_size) == (112, 192)

    def test_shapes(self):
        unet = ReleasedSaliencyUNet(video_channels=(32, 32, 32, 32), audio_channels=8, head_channels=8)
        video = [torch.zeros(1, 32, 8, 64 // s, 96 // s) for s in (4, 8, 16, 32)]
        audio = torch.zeros(1, 8, 9, 2, 3)
        conditions = unet.encode_conditions(64, 96, video, audio)
        maps = unet(torch.zeros(2, 1, 64, 96), torch.tensor([3, 5]), conditions=conditions).sample
        assert maps.shape == (2, 1, 64, 96)
        for wrong, message in (
            ((96, 64, video, audio), r"`video_features` must be .*\(1, 32, 8, 24, 16\)"),
            ((64, 96, [*video[:3], video[3][:, :, :6]], audio), r"got .*\(1, 32, 6, 2, 3\)"),
            ((32, 96, video, audio), "must be multiples of 32 from 64 on, got 32x96"),
            ((64, 96, None, audio), "needs `video_features`"),
            ((64, 96, video, None), "was trained with sound"),
            ((64, 96, video, torch.cat([audio, audio])), "got .2, 8, 9, 2, 3."),
            ((64, 96, [f[:, :, :4] for f in video], audio), "reads 5 slices of the video, got 4"),
            ((64, 96, video, audio[:, :, :8]), r"must be \(1, 8, 9, h, w\), where h and w divide 2 and 3"),
            ((64, 96, video, audio[:, :, :, :, :2]), "got .1, 8, 9, 2, 2."),
        ):
            with pytest.raises(InputError, match=message):
                unet.encode_conditions(*wrong)
        for sample, timestep, message in (
            (torch.zeros(1, 1, 96, 64), 0, "`conditions` are for maps of 64x96"),
            (torch.zeros(1, 1, 70, 100), 0, "got a `sample` of 70x100"),
            (torch.zeros(1, 1, 64, 96), torch.zeros(3), "`timestep` must be one number"),
        ):
            with pytest.raises(InputError, match=message):
                unet(sample, timestep, conditions=conditions)

    def test_it_is_not_trained_on(self, tmp_path):
        released_pipeline(video_only=True).save_pretrained(tmp_path / "folder")
        settings = {"output": str(tmp_path / "run"), "data": [{"name": "synthetic"}]}
        with pytest.raises(InputError, match="the released network can predict, and cannot be trained here"):
            train(build_config(settings | {"model": {"folder": str(tmp_path / "folder")}}))


sizes = st.integers(1, 9)


class TestShortcuts:
    @given(rows=sizes, columns=sizes, seed=st.integers(0, 99))
    @settings(deadline=None, max_examples=50)
    def test_convolving_before_upsampling(self, rows, columns, seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(2, 3, rows, columns, generator=generator, dtype=torch.float64)
        conv = UpsampledConvolution(3, 4).double()
        upsampled = F.interpolate(x, scale_factor=2, mode="bilinear")
        torch.testing.assert_close(conv(x), torch.nn.Conv2d.forward(conv, upsampled))

    @given(rows=sizes, columns=sizes, scale=st.sampled_from([1, 2, 4]), seed=st.integers(0, 99))
    @settings(deadline=None, max_examples=50)
    def test_convolving_before_summing(self, rows, columns, scale, seed):
        generator = torch.Generator().manual_seed(seed)
        maps = [torch.randn(2, 3, rows * k, columns * k, generator=generator, dtype=torch.float64) for k in (1, scale)]
        size = (4 * rows, 4 * columns)
        conv = SummedConvolution(3, 4).double()
        upsampled = sum(F.interpolate(x, size=size, mode="bilinear") for x in maps)
        torch.testing.assert_close(conv(maps, size), torch.nn.Conv2d.forward(conv, upsampled))


class TestBackbones:
    def test_vggish(self, tmp_path, capfd):
        shapes = {n.removeprefix("audio_net."): s for n, s in SHAPES.items() if n.startswith("audio_net.")}
        tensors = {name: reference_tensor(name, tuple(shape)) for name, shape in shapes.items() if "feat" in name}
        file = tmp_path / "vggish.pth"
        torch.save({name: torch.zeros(()).expand(shape) for name, shape in shapes.items()} | tensors, file)
        encoder, unused = convert_vggish(file)
        assert len(unused) == 6 and all(name.startswith("embeddings.") for name in unused)
        for name, value in encoder.state_dict().items():
            assert torch.equal(value, tensors[name])
        assert main(["convert", "vggish", str(file), str(tmp_path / "folder")]) == 0
        saved = VGGishEncoder.from_pretrained(tmp_path / "folder")
        assert torch.equal(saved.features[0].weight, tensors["features.0.weight"])
        with pytest.raises(InputError, match="not mmaction2's weights of MViTv2-S; tensors missing: "):
            convert_mvit_v2_s(file)

    @torch.no_grad()
    def test_mvit(self, tmp_path, capfd):
        """The file of the network that torchvision publishes under other names gives torchvision's features."""
        published = get_model("mvit_v2_s", weights=None).eval()
        sources = mvit_sources(MViTv2Encoder(), "backbone.")
        tensors = {"cls_head.fc_cls.weight": torch.zeros(400, 768), "backbone.norm3.weight": published.norm.weight}
        tensors["backbone.norm3.bias"] = published.norm.bias
        for name, source in sources.items():
            if not name.startswith("norms."):
                ((theirs, shape),) = source.shapes.items()
                tensors[theirs] = published.state_dict()[name].view(shape)
        file = tmp_path / "mvit.pth"
        torch.save({"meta": {"epoch": 100}, "state_dict": tensors}, file)
        assert main(["convert", "mvit_v2_s_mmaction", str(file), str(tmp_path / "folder")]) == 0
        assert "cls_head.fc_cls.weight" in capfd.readouterr().out
        assert create_video_encoder("mvit_v2_s", pretrained=tmp_path / "folder").num_parameters() > 34e6
        encoder = MViTv2Encoder.from_pretrained(tmp_path / "folder")
        video = torch.randn(1, 3, 16, 224, 224)
        published.head = torch.nn.Identity()
        last = encoder(video).features[-1]
        assert last.shape == (1, 768, 8, 7, 7)
        tokens = []
        published.norm.register_forward_hook(lambda _, __, out: tokens.append(out))
        published(video)
        torch.testing.assert_close(last.flatten(2).transpose(1, 2), tokens[0][:, 1:], atol=1e-4, rtol=1e-4)
        whole = load_file(tmp_path / "folder" / "diffusion_pytorch_model.safetensors")
        assert torch.equal(whole["norms.0.weight"], torch.ones(96))


def test_a_silent_video(tmp_path, capfd):
    """The audio-visual network says that it cannot do without sound."""
    released_pipeline().save_pretrained(tmp_path / "folder")
    frames = tmp_path / "frames"
    frames.mkdir()
    Image.new("RGB", (96, 72)).save(frames / "1.png")
    assert main(["predict", str(frames), "--model", str(tmp_path / "folder"), "--output", str(tmp_path)]) == 1
    err = capfd.readouterr().err
    assert err.count("\n") == 1 and "frames has no sound; the released network needs it" in err
