"""SalFoM's network and its video encoder: against transformers' own model, and the authors' numbers."""

import json
import math
import re
import resource
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from hypothesis import given
from hypothesis import strategies as st
from reference_weights import draw_weights, reference_tensor
from safetensors.torch import load_file
from stand_ins import TINY_DECODER, TINY_UMT, tiny_salfom
from torchvision.models.swin_transformer import SwinTransformerBlock
from torchvision.models.video.swin_transformer import ShiftedWindowAttention3d
from transformers import VideoMAEConfig, VideoMAEModel

from diffsal_diffusers import DiffSalPipeline, InputError, SalFoM, UMTEncoder
from diffsal_diffusers.cli import main
from diffsal_diffusers.conversion import convert_umt
from diffsal_diffusers.conversion.checkpoint import sources_by_name
from diffsal_diffusers.conversion.salfom import DECODER_NAMES, SALFOM_UNUSED, umt_sources
from diffsal_diffusers.encoders import (
    EncoderOutput,
    FeatureInfo,
    VideoEncoder,
    create_video_encoder,
    register_video_encoder,
    registry,
)
from diffsal_diffusers.encoders.umt import resize_positions, sine_cosine_positions
from diffsal_diffusers.models import SALFOM_CONFIGS
from diffsal_diffusers.models.salfom import BRANCHES, LocalityAwareBlock

FIXTURES = Path(__file__).parent / "fixtures" / "released"
SHAPES = json.loads((FIXTURES / "salfom_keys.json").read_text())
WEIGHTS = "diffusion_pytorch_model.safetensors"
B16 = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}


def tiny(encoder="umt_l16", **config) -> SalFoM:
    return tiny_salfom(encoder=encoder, **config).salfom


def clip(frames: int = 16, height: int = 32, width: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, 3, frames, height, width, generator=torch.Generator().manual_seed(seed))


def published_umt(encoder: UMTEncoder) -> dict[str, torch.Tensor]:
    """An encoder's weights as UMT's program writes them."""
    tensors = {}
    state = encoder.state_dict()
    for name, value in state.items():
        if name.startswith("patch_embed."):
            tensors[name.replace("patch_embed.", "patch_embed.proj.")] = value
    for i in range(encoder.config.num_hidden_layers):
        ours, theirs = f"encoder.layer.{i}", f"blocks.{i}"
        parts = [state[f"{ours}.attention.attention.{part}.weight"] for part in ("query", "key", "value")]
        tensors[f"{theirs}.attn.qkv.weight"] = torch.cat(parts)
        tensors[f"{theirs}.attn.q_bias"] = state[f"{ours}.attention.attention.query.bias"]
        tensors[f"{theirs}.attn.v_bias"] = state[f"{ours}.attention.attention.value.bias"]
        for a, b in (
            ("layernorm_before", "norm1"), ("layernorm_after", "norm2"), ("attention.output.dense", "attn.proj"),
            ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2"),
        ):  # fmt: skip
            for kind in ("weight", "bias"):
                tensors[f"{theirs}.{b}.{kind}"] = state[f"{ours}.{a}.{kind}"]
    head = {"fc_norm.weight": 768, "fc_norm.bias": 768, "head.weight": (710, 768), "head.bias": 710}
    return tensors | {name: torch.zeros(shape) for name, shape in head.items()}


class TestEncoder:
    @torch.no_grad()
    def test_it_is_transformers_model(self):
        """At 8 frames of 224x224, for which transformers' positions are made, too; nothing is normed at the end."""
        theirs = VideoMAEModel(
            VideoMAEConfig(
                hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_frames=8,
                tubelet_size=1, layer_norm_eps=1e-6, use_mean_pooling=True,
            )
        )  # fmt: skip
        ours = create_video_encoder("umt_l16", num_frames=8, **TINY_UMT).eval()
        table = theirs.embeddings.position_embeddings[0]
        torch.testing.assert_close(ours.pos_embed.flatten(0, 2), table, atol=2e-6, rtol=0)
        draw_weights(theirs)
        with torch.no_grad():
            ours.patch_embed.load_state_dict(theirs.embeddings.patch_embeddings.projection.state_dict())
        ours.encoder.load_state_dict(theirs.encoder.state_dict())
        video = clip(8, 224, 224)
        expected = theirs(video.transpose(1, 2)).last_hidden_state  # b n c
        (found,) = ours(video).features
        assert found.shape == (1, 16, 8, 14, 14) and ours.feature_info == [(16, 16, 8)]
        torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=1e-4)

    def test_sixteen_frames_have_positions_between_those_of_eight(self):
        """The centres of 16 slices lie a quarter of an eighth around the others'."""
        table = sine_cosine_positions(6)
        found = create_video_encoder("umt_l16", hidden_size=6, num_hidden_layers=1, num_attention_heads=1).pos_embed
        places = (np.arange(16) + 0.5) / 2 - 0.5
        for h, w, c in ((0, 0, 0), (13, 7, 3), (5, 13, 5)):
            expected = np.interp(places, np.arange(8), table[:, h, w, c].numpy())
            np.testing.assert_allclose(found[:, h, w, c].detach(), expected, atol=1e-5)

    @given(t=st.integers(1, 20), h=st.integers(1, 20), w=st.integers(1, 20))
    def test_positions_of_any_grid(self, t, h, w):
        ramp = torch.linspace(0, 1, 8).view(8, 1, 1, 1).expand(8, 14, 14, 2)
        found = resize_positions(ramp, (t, h, w))
        assert found.shape == (t, h, w, 2)
        expected = np.interp((np.arange(t) + 0.5) * 8 / t - 0.5, np.arange(8), np.linspace(0, 1, 8))
        np.testing.assert_allclose(found[:, h // 2, w // 2, 0], expected, atol=1e-5)

    @pytest.mark.parametrize(("name", "channels", "parameters"), [("umt_l16", 1024, 306.28), ("umt_b16", 768, 88.04)])
    def test_published_sizes(self, name, channels, parameters):
        with torch.device("meta"):
            encoder = create_video_encoder(name)
            features = encoder(torch.zeros(1, 3, 16, 224, 224)).features
            pyramid = create_video_encoder(f"{name}_pyramid")
            scales = pyramid(torch.zeros(1, 3, 16, 224, 384)).features
        assert round(sum(p.numel() for p in encoder.parameters()) / 1e6, 2) == parameters
        assert encoder.feature_info == [(channels, 16, 16)]
        assert [tuple(f.shape) for f in features] == [(1, channels, 16, 14, 14)]
        assert pyramid.feature_info == [(96, 4, 8), (192, 8, 8), (384, 16, 8), (768, 32, 8)]
        assert [tuple(f.shape) for f in scales] == [
            (1, 96, 8, 56, 96), (1, 192, 8, 28, 48), (1, 384, 8, 14, 24), (1, 768, 8, 7, 12),
        ]  # fmt: skip

    def test_diffsal_on_its_pyramid(self, tmp_path):
        encoder = create_video_encoder(
            "umt_l16_pyramid", num_frames=5, **TINY_UMT | {"pyramid_channels": (8, 8, 8, 8)}
        )
        unet = {"block_out_channels": (8, 8, 8, 8), "head_channels": 8, "norm_num_groups": 4}
        pipe = DiffSalPipeline.from_encoders(encoder, None, frame_size=(32, 64), num_frames=5, **unet)
        assert pipe.unet.config.video_time_slices == (3, 3, 3, 3)
        pipe.set_progress_bar_config(disable=True)
        frames = np.random.default_rng(0).integers(0, 256, (3, 32, 64, 3), np.uint8)
        maps = pipe(frames, generator=torch.Generator().manual_seed(0)).saliency
        pipe.save_pretrained(tmp_path)
        again = DiffSalPipeline.from_pretrained(tmp_path)
        np.testing.assert_array_equal(again(frames, generator=torch.Generator().manual_seed(0)).saliency, maps)

    def test_diffsal_does_not_take_it_without_one(self):
        encoder = create_video_encoder("umt_l16", **TINY_UMT)
        with pytest.raises(InputError, match=r"at strides \(4, 8, 16, 32\); UMTEncoder has \(16,\)"):
            DiffSalPipeline.from_encoders(encoder, None)

    @pytest.mark.parametrize("kind", ["umt", "salfom", "salfom on timm"])
    def test_checkpointing_changes_no_gradient(self, kind):
        torch.manual_seed(0)
        if kind == "umt":
            network = create_video_encoder("umt_l16", **TINY_UMT).train()
        elif kind == "salfom":
            network = tiny(num_frames=4).train()
        else:
            network = tiny(encoder="timm/mambaout_femto", encoder_config=None, num_frames=4).train()
        kept, gradients = [], []
        for enabled in (False, True):
            network.enable_gradient_checkpointing() if enabled else network.disable_gradient_checkpointing()
            assert network.is_gradient_checkpointing == enabled
            network.zero_grad()
            numbers = 0

            def count(tensor):
                nonlocal numbers
                numbers += tensor.numel()
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
                out = network(clip(4))
                loss = (out.features[0] if kind == "umt" else out.saliency).square().sum()
            loss.backward()
            kept.append(numbers)
            gradients.append([p.grad.clone() for p in network.parameters() if p.grad is not None])
        assert kept[1] < 0.9 * kept[0]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other)

    def test_an_encoder_that_cannot_checkpoint(self):
        with pytest.raises(ValueError, match="S3DEncoder does not support gradient checkpointing"):
            tiny(encoder="s3d", encoder_config=None).enable_gradient_checkpointing()

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"hidden_size": 15}, "must be even and a multiple of `num_attention_heads`"),
            ({"num_attention_heads": 3}, "must be even and a multiple of `num_attention_heads`"),
            ({"num_attention_heads": 0}, "must be even and a multiple of `num_attention_heads`"),
            ({"num_frames": 0}, "`num_frames` must be at least 1, got 0"),
            ({"pyramid_channels": (8, 8)}, "`pyramid_channels` must be four positive numbers or None"),
        ],
    )
    def test_settings_that_cannot_be(self, config, message):
        with pytest.raises(InputError, match=message):
            create_video_encoder("umt_l16", **TINY_UMT | config)

    def test_weights_from_a_folder(self, tmp_path):
        saved = draw_weights(create_video_encoder("umt_l16", **TINY_UMT))
        saved.save_pretrained(tmp_path)
        for name, frames in (("umt_l16", 16), ("umt_l16_pyramid", 8)):
            encoder = create_video_encoder(name, pretrained=tmp_path, num_frames=frames, **TINY_UMT)
            assert torch.equal(encoder.patch_embed.weight, saved.patch_embed.weight)
            expected = resize_positions(saved.pos_embed.detach(), (frames, 14, 14))
            assert torch.equal(encoder.pos_embed, expected)
        with pytest.raises(InputError, match="not the weights of this UMTEncoder"):
            create_video_encoder("umt_l16", pretrained=tmp_path, **TINY_UMT | {"num_hidden_layers": 3})
        torch.save(published_umt(saved), tmp_path / "published.pth")
        torch.save({"model": published_umt(saved)}, tmp_path / "nested.pth")
        for source in (True, tmp_path / "absent", tmp_path / "published.pth", tmp_path / "nested.pth"):
            with pytest.raises(InputError, match="`diffsal convert umt CHECKPOINT FOLDER` makes the folder to give"):
                create_video_encoder("umt_l16", pretrained=source, **TINY_UMT)


class TestNetwork:
    def test_the_papers_network_and_what_the_release_has_besides(self):
        with torch.device("meta"):
            salfom = SalFoM()
        parameters = sum(p.numel() for p in salfom.parameters())
        assert parameters == 402_520_368
        sources = umt_sources(salfom.video_encoder, "encoder.") | sources_by_name(salfom.decoder, DECODER_NAMES)
        used = {name: shape for source in sources.values() for name, shape in source.shapes.items()}
        assert all(tuple(SHAPES[name]) == shape for name, shape in used.items())
        left = SHAPES.keys() - used.keys()
        indices = {name for name in left if name.endswith("relative_position_index")}
        assert (len(left - indices), len(indices)) == (14, 18)
        numbers = sum(math.prod(SHAPES[name]) for name in left)
        assert sum(math.prod(shape) for shape in SHAPES.values()) == parameters + numbers == 402_945_587
        assert all(any(re.fullmatch(pattern, name) for pattern in SALFOM_UNUSED) for name in left)

    @pytest.mark.parametrize("branches", [b for n in (1, 2, 3) for b in combinations(BRANCHES, n)])
    def test_every_branch_counts(self, branches):
        salfom = tiny(branches=branches)
        saliency = salfom(clip()).saliency
        assert saliency.shape == (1, 1, 32, 64) and 0 <= saliency.min() < saliency.max() <= 1
        saliency.sum().backward()
        unused = {n for n, p in salfom.named_parameters() if p.grad is None or not p.grad.any()}
        # Where one slice is left, it attends to itself alone, whatever queries and biases are.
        assert all("stages.2" in name and "bias_table" in name for name in unused)
        assert [getattr(salfom.decoder, name) is not None for name in BRANCHES] == [b in branches for b in BRANCHES]

    @pytest.mark.parametrize("frames", [1, 2, 4, 8, 16])
    def test_clips_of_other_lengths(self, frames):
        salfom = tiny(num_frames=frames)
        with torch.no_grad():
            assert salfom(clip(frames, 64, 32)).saliency.shape == (1, 1, 64, 32)

    @pytest.mark.parametrize("encoder", ["timm/test_efficientnet", "s3d", "umt_b16_pyramid"])
    def test_other_encoders(self, encoder, tmp_path):
        config = TINY_UMT if encoder.startswith("umt") else None
        salfom = SalFoM(encoder=encoder, encoder_config=config, **TINY_DECODER).eval()
        (info,) = [info for info in salfom.video_encoder.feature_info if info.stride == 16]
        assert salfom.decoder.dfd.convs[0].in_channels == info.channels
        salfom.save_pretrained(tmp_path)
        again = SalFoM.from_pretrained(tmp_path)
        with torch.no_grad():
            assert torch.equal(again(clip()).saliency, salfom(clip()).saliency)

    @torch.no_grad()
    def test_every_frame_counts_and_clips_do_not_mix(self):
        salfom, video = tiny(), torch.cat([clip(seed=1), clip(seed=2)])
        saliency = salfom(video).saliency
        (single,) = salfom(video[1:], return_dict=False)
        torch.testing.assert_close(single, saliency[1:], atol=1e-6, rtol=1e-5)
        for frame in (0, 7, 15):
            changed = video.clone()
            changed[0, :, frame] += 1
            other = salfom(changed).saliency
            assert (other[0] - saliency[0]).abs().max() > 1e-6
            torch.testing.assert_close(other[1], saliency[1], atol=1e-6, rtol=1e-5)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"branches": ()}, r"`branches` must be a list of some of tcfe, dfd, sfd, each once, got \(\)"),
            ({"branches": "dfd"}, "each once, got 'dfd'"),
            ({"branches": ("dfd", "dfd")}, "each once"),
            ({"branches": ("cnn",)}, "must be a list of some of tcfe, dfd, sfd"),
            ({"branches": ["dfd", ["sfd"]]}, "must be a list of some"),
            ({"branches": 5}, "must be a list of some"),
            ({"decoder_channels": (8, 8)}, "must be six numbers"),
            ({"decoder_channels": 6}, "must be six numbers, got 6"),
            ({"decoder_channels": (8, 8, 8, 8, 8, 0)}, r"`decoder_channels\[5\]` must be a positive integer, got 0"),
            ({"num_attention_heads": 0}, "`num_attention_heads` must be a positive integer, got 0"),
            ({"depth": 2.5}, "`depth` must be a positive integer, got 2.5"),
            ({"num_frames": True}, "`num_frames` must be a positive integer, got True"),
            ({"encoder": None}, "`encoder` must be the name of a registered encoder, got NoneType"),
            ({"encoder_config": {"num_frames": 8}}, "must not have 'num_frames': pass it to SalFoM itself"),
            ({"encoder_config": {"pretrained": "umt"}}, "must not have 'pretrained': pass it to `from_encoder`"),
            ({"num_attention_heads": 3}, "must divide the second, fourth and sixth"),
            ({"num_frames": 12}, "1, 2, 4, 8 or 16 time slices until one is left, and the encoder gives 12"),
            ({"num_frames": 32}, "the encoder gives 32"),
            ({"encoder": "umt_h14"}, "there is no video encoder 'umt_h14'"),
            ({"encoder_config": {"width": 3}}, "configuration key of 'umt_l16', 'width'"),
        ],
    )
    def test_settings_that_do_not_fit(self, config, message):
        with pytest.raises(InputError, match=message):
            tiny(**config)

    @pytest.mark.parametrize(("slices", "window", "shift"), [(8, 2, 0), (8, 2, 1), (4, 4, 2), (8, 4, 2), (1, 4, 2)])
    @torch.no_grad()
    def test_a_block_is_torchvisions(self, slices, window, shift):
        theirs = SwinTransformerBlock(
            8, 2, window_size=[window, 1, 1], shift_size=[shift, 0, 0], attn_layer=ShiftedWindowAttention3d
        ).eval()
        ours = LocalityAwareBlock(8, 2, window, shift).eval()
        draw_weights(ours)
        names = {name.replace("mlp.2", "mlp.3"): value for name, value in ours.state_dict().items()}
        theirs.load_state_dict(names | {"attn.relative_position_index": theirs.attn.relative_position_index})
        x = torch.randn(2, slices, 3, 5, 8, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_weights_that_are_brought_in_layer_by_layer(self):
        """accelerate's sequential offloading, to the CPU itself: no weight is used outside its module's forward."""
        salfom = tiny()
        expected = salfom(clip()).saliency
        offloaded = cpu_offload(tiny(), execution_device=torch.device("cpu"))
        torch.testing.assert_close(offloaded(clip()).saliency, expected)

    def test_settings_by_name(self):
        with torch.device("meta"):
            assert sum(p.numel() for p in SalFoM(**SALFOM_CONFIGS["base"]).parameters()) == 402_520_368
        assert tiny().config.decoder_channels == SALFOM_CONFIGS["small"]["decoder_channels"]

    @torch.no_grad()
    def test_an_encoder_without_a_number_of_frames(self):
        """It is not told one, and clips have 16 frames."""

        class Plain(VideoEncoder):
            def __init__(self):
                super().__init__()
                self.conv = torch.nn.Conv3d(3, 4, (2, 16, 16), (2, 16, 16))
                self.feature_info = [FeatureInfo(4, 16, 8)]

            def forward(self, video):
                return EncoderOutput(features=[self.conv(video)])

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(registry, "_VIDEO_ENCODERS", dict(registry._VIDEO_ENCODERS))
            register_video_encoder("plain")(Plain)
            salfom = SalFoM(encoder="plain", **TINY_DECODER)
            assert (salfom.num_frames, salfom(clip()).saliency.shape) == (16, (1, 1, 32, 64))
            with pytest.raises(InputError, match="'num_frames'"):
                SalFoM(encoder="plain", num_frames=16, **TINY_DECODER)

    def test_clips_that_do_not_fit(self):
        salfom = tiny()
        with pytest.raises(InputError, match=r"must be \(b, 3, 16, height, width\), got \(1, 3, 8, 32, 64\)"):
            salfom(clip(8))
        with pytest.raises(InputError, match="divisible by 32"):
            salfom(clip(16, 48, 64))


class TestUMTCheckpoint:
    @pytest.fixture(scope="class")
    def encoder(self):
        with torch.no_grad():
            return draw_weights(create_video_encoder("umt_b16"))

    @pytest.mark.parametrize("container", ["model", "module", None])
    def test_from_the_command_line_to_an_encoder(self, encoder, container, tmp_path, capfd):
        """Positions that are not learned are not in the file; those that are may be for another number of frames."""
        published, file, folder = published_umt(encoder), tmp_path / "b16.pth", tmp_path / "umt"
        if container == "model":
            published["pos_embed"] = encoder.pos_embed.detach().flatten(0, 2)[None]
        elif container == "module":
            published["pos_embed"] = encoder.pos_embed.detach()[:8].flatten(0, 2)[None]
        torch.save(published if container is None else {container: published, "epoch": 3}, file)
        assert main(["convert", "umt", str(file), str(folder)]) == 0
        out = capfd.readouterr().out
        assert "UMTEncoder, 88.04 M parameters; in a training run `model.pretrained` takes it" in out
        assert "4 tensors:" in out and "head.weight" in out
        made = load_file(folder / WEIGHTS)
        for name, value in encoder.state_dict().items():
            if name != "pos_embed":
                assert torch.equal(made[name], value)
        expected = {
            "model": encoder.pos_embed.detach(),
            "module": resize_positions(encoder.pos_embed.detach()[:8], (16, 14, 14)),
            None: resize_positions(sine_cosine_positions(768), (16, 14, 14)),
        }[container]
        torch.testing.assert_close(made["pos_embed"], expected)

    def test_files_that_are_not_that(self, encoder, tmp_path):
        published, file = published_umt(encoder), tmp_path / "file.pth"
        cases = {
            "it has no 5-dimensional `patch_embed.proj.weight`": {"conv1.weight": torch.zeros(3)},
            "it has no 5-dimensional": {"patch_embed.proj.weight": torch.zeros(())},
            "it has 384 channels": {"patch_embed.proj.weight": torch.zeros(384, 3, 1, 16, 16)},
            "tensors missing: 1, the first is blocks.3.attn.q_bias": {
                n: v for n, v in published.items() if n != "blocks.3.attn.q_bias"
            },
            "tensors of another shape: 1, the first is pos_embed": published | {"pos_embed": torch.zeros(1, 100, 768)},
            "shape: 1, the first is pos_embed": published
            | {"pos_embed": torch.zeros(1, 16 * 21 * 21, 768)},  # 336 pixels
            ": 1, the first is pos_embed": published | {"pos_embed": torch.zeros(1, 16 * 28 * 28, 768)},  # 448 pixels
            "tensors of another shape: 2, the first is pos_embed": published
            | {"patch_embed.proj.weight": torch.zeros(768, 3, 2, 16, 16), "pos_embed": torch.zeros(768)},
            "tensors not known: 1, the first is clip_decoder.weight": published
            | {"clip_decoder.weight": torch.zeros(1)},
        }
        for message, tensors in cases.items():
            torch.save(tensors, file)
            with pytest.raises(InputError, match=str(file)) as error:
                convert_umt(file)
            assert message in str(error.value)


PREDICT = """
import sys, resource
import numpy as np, torch
import diffsal_diffusers
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained(sys.argv[1])
with torch.no_grad():
    (tokens,) = pipe.salfom.video_encoder(torch.from_numpy(np.load(sys.argv[2]))).features
    saliency = pipe.salfom.decoder(tokens)[:, 0]
tokens = tokens.flatten(2).transpose(1, 2)[:, ::49, ::4]
np.savez(sys.argv[3], tokens=tokens, saliency=saliency, pos_embed=pipe.salfom.video_encoder.pos_embed.detach())
"""


@pytest.mark.slow
def test_the_authors_numbers(tmp_path):
    """From a checkpoint with weights drawn by the rule, in 6 GB of memory at most for each command."""
    torch.save(
        {name: reference_tensor(name, tuple(shape)) for name, shape in SHAPES.items() if "position_index" not in name},
        tmp_path / "salfom.pth",
    )
    rng_name, shape = "input/video", (1, 3, 16, 224, 224)
    video = reference_tensor(rng_name, shape).numpy() * np.float32(np.sqrt(np.prod(shape[1:])))
    np.save(tmp_path / "video.npy", video)
    command = [sys.executable, "-m", "diffsal_diffusers.cli", "convert", "salfom"]
    command += [str(tmp_path / "salfom.pth"), str(tmp_path / "salfom")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "SalFoMPipeline, 402.52 M parameters" in done.stdout and "14 tensors" in done.stdout
    out = tmp_path / "out.npz"
    arguments = [str(tmp_path / "salfom"), str(tmp_path / "video.npy"), str(out)]
    subprocess.run([sys.executable, "-c", PREDICT, *arguments], check=True)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < 6e9
    with np.load(FIXTURES / "salfom_seed0.npz") as expected, np.load(out) as found:
        error = np.abs(found["tokens"] - expected["tokens"]).max()
        assert error <= 1e-5 * np.abs(expected["tokens"]).max()
        np.testing.assert_allclose(found["saliency"], expected["saliency"], atol=1e-5)
        positions = found["pos_embed"].reshape(1, -1, 1024)[:, ::49, ::4]
        np.testing.assert_allclose(positions, expected["pos_embed"], atol=1e-7)
