"""The Saliency-UNet: what its output depends on, its sizes, its shapes, its equations."""

import itertools

import pytest
import torch
from accelerate import cpu_offload
from peft import LoraConfig
from reference_weights import draw_weights
from torch.utils.flop_counter import FlopCounterMode

from diffsal_diffusers import InputError, SaliencyUNet
from diffsal_diffusers.models.attention import SpatioTemporalCompression, SpatioTemporalCrossAttention
from diffsal_diffusers.models.audio_enhancement import AudioTemporalEnhancement
from diffsal_diffusers.models.interaction import INTERACTIONS, MultiModalInteraction
from diffsal_diffusers.models.saliency_unet import TemporalConvolution

SMALL = {
    "block_out_channels": (16, 24, 32, 40),
    "video_channels": (6, 7, 8, 9),
    "audio_channels": 12,
    "head_channels": 16,
    "norm_num_groups": 8,
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_inputs(unet, batch=1, size=(64, 96), slices=None, seed=0):
    """Noise, video features and audio features that fit the network."""
    g = generator(seed)
    height, width = size
    config = unet.config
    slices = slices or config.video_time_slices
    noise = torch.randn(batch, config.in_channels, height, width, generator=g)
    video = [
        torch.randn(batch, c, t, height // stride, width // stride, generator=g)
        for c, t, stride in zip(config.video_channels, slices, (4, 8, 16, 32), strict=True)
    ]
    audio = torch.randn(batch, config.audio_channels, config.audio_time_slices, 7, 12, generator=g)
    return noise, video, audio


@pytest.fixture(scope="module")
def small_unet():
    return draw_weights(SaliencyUNet(**SMALL))


@pytest.fixture(scope="module")
def paper_unet():
    return draw_weights(SaliencyUNet())


def relative_change(a: torch.Tensor, b: torch.Tensor) -> float:
    """Root-mean-square difference as a share of the output's standard deviation."""
    return ((a - b).pow(2).mean().sqrt() / a.std()).item()


@pytest.fixture(scope="module")
def inputs(paper_unet):
    return make_inputs(paper_unet, size=(224, 384))


@pytest.fixture(scope="module", params=["audio-visual", "video-only"])
def case(request, paper_unet, inputs):
    noise, video, audio = inputs
    audio = audio if request.param == "audio-visual" else None
    with torch.no_grad():
        return noise, video, audio, paper_unet(noise, 900, video, audio).sample


class TestWhatTheOutputDependsOn:
    """At the paper's config and size, at t = 900, with weights drawn by the rule."""

    @torch.no_grad()
    def test_noise(self, paper_unet, case):
        noise, video, audio, output = case
        other = torch.randn(noise.shape, generator=generator(1))
        assert relative_change(output, paper_unet(other, 900, video, audio).sample) > 0.05

    @torch.no_grad()
    @pytest.mark.parametrize("timestep", [100, 500, 700])
    def test_timestep(self, paper_unet, case, timestep):
        noise, video, audio, output = case
        assert relative_change(output, paper_unet(noise, timestep, video, audio).sample) > 0.05

    @torch.no_grad()
    @pytest.mark.parametrize("slice_", range(8))
    def test_every_video_slice(self, paper_unet, case, slice_):
        noise, video, audio, output = case
        changed = [feature.clone() for feature in video]
        for feature in changed:
            feature[:, :, slice_] = torch.randn(feature[:, :, slice_].shape, generator=generator(1))
        assert relative_change(output, paper_unet(noise, 900, changed, audio).sample) > 0.05

    @torch.no_grad()
    def test_sound(self, paper_unet, inputs):
        noise, video, audio = inputs
        other = torch.randn(audio.shape, generator=generator(1))
        output = paper_unet(noise, 900, video, audio).sample
        assert relative_change(output, paper_unet(noise, 900, video, other).sample) > 0.05
        assert relative_change(output, paper_unet(noise, 900, video).sample) > 0.05


class TestSizes:
    def test_parameters(self, paper_unet):
        assert 35e6 < paper_unet.num_parameters() < 42e6

    @torch.no_grad()
    @pytest.mark.parametrize("with_audio", [True, False])
    def test_operations_of_one_step(self, with_audio):
        """Counted on the device `meta`, where the attention is counted too."""
        with torch.device("meta"):
            unet = SaliencyUNet()
        noise, video, audio = make_inputs(unet, size=(224, 384))
        inputs = noise.to("meta"), 900, [v.to("meta") for v in video], audio.to("meta") if with_audio else None
        with FlopCounterMode(display=False) as counter:
            unet(*inputs)
        assert 80e9 < counter.get_total_flops() < 110e9

    @torch.no_grad()
    def test_conditions_are_not_computed_again(self, small_unet):
        noise, video, audio = make_inputs(small_unet)
        conditions = small_unet.encode_conditions(64, 96, video, audio)
        with FlopCounterMode(display=False) as whole:
            expected = small_unet(noise, 900, video, audio).sample
        with FlopCounterMode(display=False) as step:
            output = small_unet(noise, 900, conditions=conditions).sample
        assert torch.equal(output, expected)
        assert step.get_total_flops() < whole.get_total_flops()


class TestShapes:
    @torch.no_grad()
    @pytest.mark.parametrize("size", [(32, 32), (64, 96), (96, 32), (224, 384)])
    @pytest.mark.parametrize("slices", [(8, 8, 8, 8), (1, 1, 1, 1), (4, 4, 4, 4), (13, 13, 13, 13), (8, 8, 4, 2)])
    def test_frame_sizes_and_clip_lengths(self, small_unet, size, slices):
        noise, video, audio = make_inputs(small_unet, size=size, slices=slices)
        output = small_unet(noise, 500, video, audio).sample
        assert output.shape == noise.shape
        assert output.isfinite().all() and output.std() > 0

    @torch.no_grad()
    def test_slices_that_differ_from_scale_to_scale(self):
        unet = draw_weights(SaliencyUNet(**SMALL, video_time_slices=(8, 8, 4, 2)))
        noise, video, audio = make_inputs(unet)
        output = unet(noise, 500, video, audio).sample
        for scale, slices in enumerate((8, 8, 4, 2)):
            for i in range(slices):
                changed = [feature.clone() for feature in video]
                changed[scale][:, :, i] += 1
                assert relative_change(output, unet(noise, 500, changed, audio).sample) > 1e-4

    @torch.no_grad()
    def test_several_maps_of_one_clip(self, small_unet):
        _, video, audio = make_inputs(small_unet, batch=2)
        noise = torch.randn(6, 1, 64, 96, generator=generator(3))
        timesteps = torch.tensor([0, 100, 300, 500, 900, 999])
        together = small_unet(noise, timesteps, video, audio).sample
        for i in range(6):
            clip = slice(i // 3, i // 3 + 1)
            alone = small_unet(noise[i : i + 1], timesteps[i], [v[clip] for v in video], audio[clip]).sample
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-4)

    @torch.no_grad()
    def test_output_is_in_the_sample_range(self):
        for sample_range in ((-1.0, 1.0), (0.0, 1.0)):
            unet = draw_weights(SaliencyUNet(**SMALL, sample_range=sample_range))
            noise, video, audio = make_inputs(unet)
            output = unet(100 * noise, 500, video, audio).sample
            assert sample_range[0] <= output.min() and output.max() <= sample_range[1]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"sample": torch.zeros(1, 3, 64, 96)}, "`sample` must be"),
            ({"sample": torch.zeros(1, 1, 60, 96)}, "divisible by 32, got 60x96"),
            ({"sample": torch.zeros(1, 1, 64, 64)}, "`video_features` must have"),
            ({"audio_features": torch.zeros(1, 5, 9, 7, 12)}, "`audio_features` must be"),
            ({"audio_features": torch.zeros(2, 12, 9, 7, 12)}, "of the same clips, got 1 and 2"),
            ({"video_features": None, "audio_features": None}, "got neither"),
        ],
    )
    def test_wrong_shapes_are_refused(self, small_unet, change, message):
        noise, video, audio = make_inputs(small_unet)
        arguments = {"sample": noise, "video_features": video, "audio_features": audio} | change
        with pytest.raises(InputError, match=message):
            small_unet(timestep=0, **arguments)

    @torch.no_grad()
    def test_conditions_and_timesteps_of_other_maps_are_refused(self, small_unet):
        noise, video, audio = make_inputs(small_unet)
        conditions = small_unet.encode_conditions(64, 96, video, audio)
        with pytest.raises(InputError, match="`conditions` are for maps of 64x96, got a `sample` of 32x96"):
            small_unet(noise[:, :, :32], 0, conditions=conditions)
        with pytest.raises(InputError, match="one for each of the 1 maps, got 2"):
            small_unet(noise, torch.zeros(2), conditions=conditions)

    def test_maps_that_do_not_divide_among_the_clips_are_refused(self, small_unet):
        _, video, audio = make_inputs(small_unet, batch=2)
        with pytest.raises(InputError, match="multiple of the number of clips, 2, got 3"):
            small_unet(torch.zeros(3, 1, 64, 96), 0, video, audio)


class TestModalities:
    @torch.no_grad()
    def test_each_sample_of_a_batch_has_its_own(self, small_unet):
        noise, video, audio = make_inputs(small_unet, batch=3)
        video_mask, audio_mask = torch.tensor([True, True, False]), torch.tensor([True, False, True])
        mixed = small_unet(noise, 700, video, audio, video_mask, audio_mask).sample
        for i in range(3):
            one_video = [v[i : i + 1] for v in video] if video_mask[i] else None
            one_audio = audio[i : i + 1] if audio_mask[i] else None
            alone = small_unet(noise[i : i + 1], 700, one_video, one_audio).sample
            torch.testing.assert_close(mixed[i : i + 1], alone, atol=1e-5, rtol=1e-4)

    @torch.no_grad()
    def test_an_absent_modality_has_no_influence(self, small_unet):
        noise, video, audio = make_inputs(small_unet)
        absent = torch.tensor([False])
        one = small_unet(noise, 700, video, audio, audio_mask=absent).sample
        other = small_unet(noise, 700, video, audio * 5 - 1, audio_mask=absent).sample
        assert torch.equal(one, other)

    def test_null_conditions_learn(self, small_unet):
        noise, video, audio = make_inputs(small_unet)
        unet = draw_weights(SaliencyUNet(**SMALL))
        unet(noise, 700, None, audio).sample.sum().backward()
        unet(noise, 700, video, None).sample.sum().backward()
        gradients = [unet.null_audio.grad, *(null.grid.grad for null in unet.null_video)]
        assert all(gradient.abs().sum() > 0 for gradient in gradients)


class TestEquations:
    @torch.no_grad()
    @pytest.mark.parametrize("compression", [None, (2, 2, 2), (5, 4, 4)])
    def test_cross_attention(self, compression):
        """Equations 7 and 8 written out with plain products, on the module's own weights."""
        module = draw_weights(SpatioTemporalCrossAttention(8, num_heads=2, compression=compression))
        x, key = torch.randn(2, 2, 8, 5, 4, 6, generator=generator(0)).unbind()

        def compress(y, stc):
            if compression is None:
                return stc(y)
            padded = y.new_zeros(2, 8, *(-(-n // k) * k for n, k in zip(y.shape[2:], compression, strict=True)))
            padded[:, :, :5, :4, :6] = y
            for axis, k in enumerate(compression):
                padded = padded.unfold(axis + 2, k, k)
            blocks = padded  # b c t h w kt kh kw
            summed = torch.einsum("bcthwijk,cijk->bcthw", blocks, stc.conv.weight[:, 0])
            return stc.norm((summed + stc.conv.bias.view(1, -1, 1, 1, 1)).flatten(2).mT)

        q = module.to_q(module.norm_q(x))
        k = module.to_k(compress(key, module.compress_k))
        v = module.to_v(compress(x, module.compress_v))
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            scores = q[..., head] @ k[..., head].mT / 4**0.5
            heads.append(scores.softmax(dim=-1) @ v[..., head])
        expected = module.to_out(torch.cat(heads, dim=-1)).mT.view(x.shape)
        torch.testing.assert_close(module(x, key), expected)

    @torch.no_grad()
    @pytest.mark.parametrize("slices", [9, 5])
    def test_audio_temporal_enhancement(self, slices):
        """Equations 4 and 5 written out token by token, on the module's own weights."""
        module = draw_weights(AudioTemporalEnhancement(6, time_slices=9, num_heads=2, head_dim=4, mlp_channels=10))
        audio = torch.randn(2, 6, slices, 2, 3, generator=generator(0))
        positions = module.temporal_position
        if slices != 9:
            positions = torch.nn.functional.interpolate(positions, size=slices, mode="linear")
        tokens = []
        for t, h, w in itertools.product(range(slices), range(2), range(3)):
            tokens.append(module.patch_embedding(audio[:, :, t, h, w]) + positions[:, :, t])  # eq. 4
        x = torch.stack(tokens, dim=1)  # b n c
        qkv = module.to_qkv(module.norm1(x))
        heads = []
        for head in range(2):
            q, k, v = (qkv[..., 8 * i + 4 * head : 8 * i + 4 * head + 4] for i in range(3))
            heads.append((q @ k.mT / 4**0.5).softmax(dim=-1) @ v)
        x = x + module.to_out(torch.cat(heads, dim=-1))  # eq. 5
        x = x + module.mlp(module.norm2(x))
        torch.testing.assert_close(module(audio), x.mT.reshape(audio.shape))
        assert not torch.allclose(module(audio.flip(2)).flip(2), module(audio), atol=1e-3)  # the order in time counts

    @torch.no_grad()
    def test_interactions_of_the_ablations(self):
        """Table 3: bilinear, addition and concatenation, written out position by position."""
        x, audio = torch.randn(2, 1, 4, 3, 2, 2, generator=generator(0)).unbind()
        modules = {name: draw_weights(INTERACTIONS[name](4)) for name in INTERACTIONS}
        for t, h, w in itertools.product(range(3), range(2), range(2)):
            a, b = x[0, :, t, h, w], audio[0, :, t, h, w]
            bilinear, concatenation = modules["bilinear"], modules["concatenation"]
            product = (bilinear.factor.weight[..., 0, 0, 0] @ a + bilinear.factor.bias) * b
            expected = {
                "bilinear": bilinear.out.weight[..., 0, 0, 0] @ product + bilinear.out.bias,
                "addition": a + b,
                "concatenation": concatenation.out.weight[..., 0, 0, 0] @ torch.cat([a, b]) + concatenation.out.bias,
                "none": a,
            }
            for name, value in expected.items():
                torch.testing.assert_close(modules[name](x, audio)[0, :, t, h, w], value)

    @torch.no_grad()
    def test_compression_counts_every_slice_and_pixel(self):
        stc = draw_weights(SpatioTemporalCompression(3, (4, 8, 8)))
        x = torch.randn(1, 3, 9, 7, 12, generator=generator(0))
        output = stc(x)
        assert output.shape == (1, 3 * 1 * 2, 3)
        for t, h, w in itertools.product((0, 7, 8), (0, 6), (0, 11)):
            changed = x.clone()
            changed[:, 0, t, h, w] += 1
            assert not torch.equal(stc(changed), output)

    def test_multi_modal_interaction(self):
        """Equation 9, element by element."""
        x, audio = torch.randn(2, 1, 2, 3, 2, 2, dtype=torch.float64, generator=generator(0))
        output = MultiModalInteraction(2)(x, audio)
        for c in range(2):
            pooled = (x[0, c] * audio[0, c]).sum(dim=0) / 3
            softmax = pooled.exp() / pooled.exp().sum()
            expected = softmax / softmax.max() * audio[0, c]
            torch.testing.assert_close(output[0, c], expected)

    @torch.no_grad()
    def test_temporal_kernel_is_a_function_of_time(self):
        """A clip twice as long whose slices come in pairs gives what the clip itself gives; every slice counts."""
        conv = draw_weights(TemporalConvolution(3, 5, slices=9))
        x = torch.randn(1, 3, 9, 4, 4, generator=generator(0))
        longer = torch.cat([x[:, :, :-1].repeat_interleave(2, dim=2), x[:, :, -1:]], dim=2)
        torch.testing.assert_close(conv(longer), conv(x), atol=1e-5, rtol=1e-4)
        for slices in (2, 4, 13, 30):
            x = torch.randn(1, 3, slices, 4, 4, generator=generator(1))
            for i in range(slices):
                changed = x.clone()
                changed[:, :, i] += 1
                assert (conv(changed) - conv(x)).abs().min() > 1e-3


class TestConfigurations:
    @torch.no_grad()
    def test_ablations_differ(self):
        outputs = {}
        for attention, interaction in itertools.product(("eca", "sca", "none"), INTERACTIONS):
            unet = draw_weights(SaliencyUNet(**SMALL, attention=attention, interaction=interaction))
            noise, video, audio = make_inputs(unet)
            outputs[attention, interaction] = unet(noise, 700, video, audio).sample
            silent = unet(noise, 700, video).sample
            assert torch.equal(outputs[attention, interaction], silent) == (interaction == "none")
        for a, b in itertools.combinations(outputs.values(), 2):
            assert not torch.allclose(a, b, atol=1e-4)

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"attention": "full"}, "`attention` must be one of eca, sca, none, got 'full'"),
            ({"interaction": "sum"}, "`interaction` must be one of mim"),
            ({"block_out_channels": (16, 24, 32)}, "one number for each of the strides"),
            ({"norm_num_groups": 0}, "`norm_num_groups` must be positive, got 0"),
            ({"norm_num_groups": 5}, "divisible by `norm_num_groups` = 5"),
            ({"head_channels": 0}, "`head_channels` must be divisible"),
            ({"mlp_ratio": 0.0}, "`mlp_ratio` must give the MLP at least one channel, got 0.0"),
            ({"video_time_slices": (8, 8, 0, 8)}, "`video_time_slices` must be positive"),
            ({"sample_range": (1.0, -1.0)}, "`sample_range` must be two numbers, the lower first"),
        ],
    )
    def test_wrong_configs_are_refused(self, config, message):
        with pytest.raises(InputError, match=message):
            SaliencyUNet(**(SMALL | config))

    def test_gradient_checkpointing_changes_nothing(self):
        gradients = []
        for checkpointing in (False, True):
            unet = draw_weights(SaliencyUNet(**SMALL)).train()
            if checkpointing:
                unet.enable_gradient_checkpointing()
            calls = []
            for stage in unet.stages:
                stage.register_forward_pre_hook(lambda stage, _, calls=calls: calls.append(stage))
            noise, video, audio = make_inputs(unet)
            unet(noise, 700, video, audio).sample.square().mean().backward()
            assert len(calls) == (8 if checkpointing else 4)  # computed again on the way back
            gradients.append({name: p.grad for name, p in unet.named_parameters()})
        for name, gradient in gradients[0].items():
            if gradient is None:
                assert gradients[1][name] is None
            else:
                torch.testing.assert_close(gradients[1][name], gradient)

    @torch.no_grad()
    def test_lora_adapters(self, tmp_path):
        unet = draw_weights(SaliencyUNet(**SMALL))
        noise, video, audio = make_inputs(unet)
        before = unet(noise, 700, video, audio).sample
        config = LoraConfig(r=2, target_modules=["to_q", "to_out", "temporal_conv.conv"], init_lora_weights=False)
        unet.add_adapter(config, adapter_name="mine")
        adapted = unet(noise, 700, video, audio).sample
        assert relative_change(before, adapted) > 1e-3
        unet.save_lora_adapter(tmp_path, adapter_name="mine")

        other = draw_weights(SaliencyUNet(**SMALL))
        other.load_lora_adapter(str(tmp_path), prefix=None, adapter_name="mine", use_safetensors=True)
        torch.testing.assert_close(other(noise, 700, video, audio).sample, adapted)
        other.disable_adapters()
        torch.testing.assert_close(other(noise, 700, video, audio).sample, before)

    @torch.no_grad()
    def test_samples_of_a_batch_do_not_mix(self, small_unet):
        unet = SaliencyUNet(**SMALL).train()  # no dropout, no batch statistics
        noise, video, audio = make_inputs(unet, batch=2)
        together = unet(noise, 700, video, audio).sample
        alone = unet(noise[:1], 700, [v[:1] for v in video], audio[:1]).sample
        torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-4)

    def test_every_parameter_learns(self):
        unet = draw_weights(SaliencyUNet(**SMALL))
        noise, video, audio = make_inputs(unet, batch=2)
        masks = torch.tensor([True, False]), torch.tensor([False, True])
        unet(noise, 700, video, audio, *masks).sample.square().mean().backward()
        for name, parameter in unet.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name

    @torch.no_grad()
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, small_unet, dtype):
        noise, video, audio = make_inputs(small_unet)
        expected = small_unet(noise, 700, video, 30 * audio).sample
        unet = draw_weights(SaliencyUNet(**SMALL)).to(dtype)
        output = unet(noise.to(dtype), 700, video, 30 * audio).sample  # features of another dtype are cast
        assert output.dtype == dtype
        assert relative_change(expected, output.float()) < 0.2

    @torch.no_grad()
    def test_interaction_of_large_values_in_half_precision(self):
        """A mask with a single peak times a loud sound stays finite."""
        x, audio = (torch.full((1, 2, 3, 56, 96), value, dtype=torch.float16) for value in (1.0, 40.0))
        x[..., 30, 50] = 4.0
        assert MultiModalInteraction(2)(x, audio).isfinite().all()

    @torch.no_grad()
    def test_weights_that_are_brought_in_layer_by_layer(self, small_unet):
        """accelerate's sequential offloading, to the CPU itself: no weight is used outside its module's forward."""
        noise, video, audio = make_inputs(small_unet, slices=(5, 5, 5, 5))
        for picture, sound in ((video, audio), (None, audio), (video, None)):
            expected = small_unet(noise, 700, picture, sound).sample
            unet = cpu_offload(draw_weights(SaliencyUNet(**SMALL)), execution_device=torch.device("cpu"))
            torch.testing.assert_close(unet(noise, 700, picture, sound).sample, expected)
