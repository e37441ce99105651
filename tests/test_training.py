"""Training: losses against their formulas, configs, what a step sees, and that it learns."""

import math

import pytest
import torch
import torch.nn.functional as F
from diffsal_diffusers.schedulers import create_scheduler
from diffsal_diffusers.training.config import CONFIGS, build_config, list_configs, load_config
from diffsal_diffusers.training.data import StepSampler, change_view, draw_noise, draw_views
from diffsal_diffusers.training.losses import LOSSES, add_noise, saliency_losses, snr_weights
from diffsal_diffusers.training.module import DiffSalTraining
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_weights import draw_weights
from stand_ins import TINY_UNET, tiny_pipeline

from diffsal_diffusers import InputError, SaliencyUNet
from diffsal_diffusers.metrics import cc, kl_divergence, nss

SIZE = (32, 64)


def scenes(number: int, seed: int):
    """Two squares in the picture, one of them sounding: saliency is a blob on either, more on the one that sounds."""
    g = torch.Generator().manual_seed(seed)
    places = torch.randint(0, 8, (number, 2), generator=g)
    loud = torch.randint(0, 2, (number,), generator=g)
    x = (torch.arange(SIZE[1]) + 0.5) / SIZE[1]
    blobs = torch.exp(-(((x - (places[..., None] + 0.5) / 8) / 0.06) ** 2))  # b 2 w
    weights = torch.stack([1 - 0.6 * loud, 0.4 + 0.6 * loud], dim=1)[..., None]
    saliency = (blobs * weights).amax(dim=1)[:, None, None].expand(-1, 1, *SIZE).contiguous()
    video = []
    for stride in (4, 8, 16, 32):
        small = F.adaptive_avg_pool1d(blobs, SIZE[1] // stride)  # b 2 w
        video.append(small[:, :, None, None].expand(-1, -1, 8, SIZE[0] // stride, -1).contiguous())
    audio = F.one_hot(loud, 2).float()[:, :, None, None, None].expand(-1, -1, 9, 2, 2).contiguous()
    return saliency, video, audio


def tiny_unet() -> SaliencyUNet:
    torch.manual_seed(0)
    return SaliencyUNet(**TINY_UNET, video_channels=(2, 2, 2, 2), audio_channels=2)


def objective(unet, scheduler, saliency, video, audio, chance):
    """The mean square error of equation 10, as a training step has it."""
    noisy = add_noise(scheduler, saliency, chance.noise, chance.timesteps, unet.config.sample_range)
    prediction = unet(noisy, chance.timesteps, video, audio, chance.keep_video, chance.keep_audio).sample
    return saliency_losses((prediction + 1) / 2, saliency, None, {"mse": 1.0})


@pytest.fixture(scope="module")
def trained():
    """A small network after 250 steps, with the loss of each, modalities dropped at random."""
    unet, scheduler = tiny_unet().train(), create_scheduler()
    optimizer = torch.optim.Adam(unet.parameters(), lr=3e-3)
    losses = []
    for step in range(250):
        saliency, video, audio = scenes(8, seed=step)
        chance = draw_noise(1, step, range(8), SIZE, 1000, 1.0, 0.15, 0.15, 0.0)
        loss = objective(unet, scheduler, saliency, video, audio, chance).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return unet.eval(), losses


class TestObjective:
    def test_it_is_equation_10(self):
        unet, scheduler = draw_weights(tiny_unet()), create_scheduler()
        saliency, video, audio = scenes(3, seed=0)
        chance = draw_noise(5, 0, range(3), SIZE, 1000, 1.0, 0.0, 0.0, 0.0)
        assert len(set(chance.timesteps.tolist())) == 3  # one timestep a sample
        losses = objective(unet, scheduler, saliency, video, audio, chance)
        for i, t in enumerate(chance.timesteps):
            alpha = scheduler.alphas_cumprod[t]
            noisy = alpha.sqrt() * (2 * saliency[i] - 1) + (1 - alpha).sqrt() * chance.noise[i]
            prediction = unet(noisy[None], t, [v[i : i + 1] for v in video], audio[i : i + 1]).sample[0]
            expected = ((prediction + 1) / 2 - saliency[i]).square().mean().item()
            assert losses[i].item() == pytest.approx(expected, rel=1e-4)

    def test_it_learns(self, trained):
        _, losses = trained
        assert sum(losses[-20:]) < 0.5 * sum(losses[:20])

    @torch.no_grad()
    def test_after_training_more_steps_are_no_no_op(self, trained):
        unet, _ = trained
        saliency, video, audio = scenes(4, seed=1000)
        scheduler = create_scheduler()
        for sound in (audio, None):
            maps = {}
            for steps in (1, 4):
                scheduler.set_timesteps(steps)
                sample = torch.randn(saliency.shape, generator=torch.Generator().manual_seed(0))
                for t in scheduler.timesteps:
                    sample = scheduler.step(unet(sample, t, video, sound).sample, t, sample).prev_sample
                maps[steps] = sample
            difference = (maps[1] - maps[4]).square().mean().sqrt() / maps[1].std()
            assert difference > 0.02

    @torch.no_grad()
    def test_it_uses_the_sound(self, trained):
        """On held-out scenes the map is better with the right sound than without, and with another's it is worse."""
        unet, _ = trained
        saliency, video, audio = scenes(64, seed=2000)
        noise = torch.randn(saliency.shape, generator=torch.Generator().manual_seed(0))
        truth = 2 * saliency - 1

        def error(sound):
            return (unet(noise, 999, video, sound).sample - truth).square().mean().item()

        wrong = audio.flip(1)
        assert error(audio) < error(None) < error(wrong)

    def test_losses_are_their_formulas(self):
        g = torch.Generator().manual_seed(0)
        prediction, saliency = torch.rand(2, 3, 1, 8, 9, generator=g).unbind()
        fixations = torch.rand(3, 8, 9, generator=g) > 0.8
        each = {name: saliency_losses(prediction, saliency, fixations, {name: 1.0}) for name in LOSSES}
        flat = [x.flatten(1) for x in (prediction, saliency)]
        torch.testing.assert_close(each["mse"], (flat[0] - flat[1]).square().mean(1))
        bce = F.binary_cross_entropy(*flat, reduction="none").mean(1)
        torch.testing.assert_close(each["ce"], bce)
        torch.testing.assert_close(each["kl"], kl_divergence(prediction[:, 0], saliency[:, 0]).float())
        torch.testing.assert_close(each["cc"], -cc(prediction[:, 0], saliency[:, 0]).float())
        torch.testing.assert_close(each["nss"], -nss(prediction[:, 0], fixations).float())
        weights = {"mse": 0.5, "kl": 2.0, "cc": 1.0}
        total = saliency_losses(prediction, saliency, fixations, weights)
        torch.testing.assert_close(total, sum(w * each[name] for name, w in weights.items()))

    def test_what_is_not_defined_is_left_out(self):
        prediction = torch.rand(2, 1, 8, 9, requires_grad=True)
        saliency = torch.zeros(2, 1, 8, 9)
        nobody = torch.zeros(2, 8, 9, dtype=torch.bool)
        loss = saliency_losses(prediction, saliency, nobody, {"kl": 1.0, "cc": 1.0, "nss": 1.0})
        assert torch.equal(loss, torch.zeros(2))
        loss.sum().backward()
        assert prediction.grad.isfinite().all()

    def test_a_sure_prediction_has_a_gradient(self):
        prediction = torch.tensor([0.0, 1.0, 0.5, 0.0]).view(1, 1, 2, 2).requires_grad_()
        saliency = torch.tensor([1.0, 0.0, 0.5, 0.0]).view(1, 1, 2, 2)
        saliency_losses(prediction, saliency, None, {"ce": 1.0}).sum().backward()
        assert prediction.grad.isfinite().all()

    @pytest.mark.parametrize("loss", LOSSES)
    def test_no_number_is_no_loss_of_zero(self, loss):
        prediction, saliency = torch.full((1, 1, 4, 4), torch.nan), torch.rand(1, 1, 4, 4)
        try:
            value = saliency_losses(prediction, saliency, torch.ones(1, 4, 4, dtype=torch.bool), {loss: 1.0})
        except InputError:  # what the metrics say of it
            return
        assert not value.isfinite().any()

    def test_wrong_losses_are_refused(self):
        maps = torch.rand(1, 1, 4, 4)
        with pytest.raises(InputError, match="there is no loss 'l1'; there are mse, kl"):
            saliency_losses(maps, maps, None, {"l1": 1.0})
        with pytest.raises(InputError, match="needs a weight other than zero"):
            saliency_losses(maps, maps, None, {"mse": 0.0})

    def test_snr_weights(self):
        scheduler = create_scheduler()
        timesteps = torch.tensor([0, 500, 999])
        alphas = scheduler.alphas_cumprod[timesteps]
        expected = (alphas / (1 - alphas)).clamp(max=5.0)
        torch.testing.assert_close(snr_weights(scheduler, timesteps, 5.0), expected)
        assert expected[0] == 5.0 and expected[2] < 1e-3


class TestWhatAStepSees:
    @given(
        sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3),
        epoch=st.integers(5, 50),
        batch=st.integers(1, 4),
        processes=st.integers(1, 3),
        accumulation=st.integers(1, 2),
        resumed=st.integers(0, 6),
        seed=st.integers(0, 5),
    )
    @settings(max_examples=60, deadline=None)
    def test_a_resumed_run_and_another_number_of_processes_see_the_same(
        self, sizes, epoch, batch, processes, accumulation, resumed, seed
    ):
        weights = [1.0 + i for i in range(len(sizes))]

        def steps(batch, processes, accumulation, first):
            parts = [
                list(StepSampler(sizes, weights, epoch, batch, processes, p, accumulation, first, 8, seed))
                for p in range(processes)
            ]
            flat = [i for turn in zip(*parts, strict=True) for part in turn for i in part]
            size = batch * processes * accumulation
            return [flat[i : i + size] for i in range(0, len(flat), size)]

        whole = steps(batch, processes, accumulation, 0)
        assert len(whole) == 8
        assert steps(batch, processes, accumulation, resumed) == whole[resumed:]
        assert steps(batch * processes * accumulation, 1, 1, 0) == whole
        assert all(0 <= i < sum(sizes) for step in whole for i in step)

    def test_an_epoch_shows_every_clip_once_where_there_is_one_set(self):
        (one,) = [list(StepSampler([12], [1.0], 12, 4, 1, 0, 1, 0, 6, 0))]
        flat = [i for batch in one for i in batch]
        assert sorted(flat[:12]) == sorted(flat[12:]) == list(range(12))
        assert flat[:12] != flat[12:]

    def test_weights_are_shares(self):
        sampler = StepSampler([10, 1000], [3.0, 1.0], 4000, 100, 1, 0, 1, 0, 40, 0)
        flat = [i for batch in sampler for i in batch]
        assert sum(i < 10 for i in flat) / len(flat) == pytest.approx(0.75, abs=0.03)

    def test_chance_belongs_to_the_place_in_the_batch(self):
        arguments = (SIZE, 1000, 4.0, 0.2, 0.3, 0.4)
        whole = draw_noise(3, 7, range(6), *arguments)
        part = draw_noise(3, 7, range(2, 4), *arguments)
        for name, value in vars(part).items():
            assert torch.equal(value, vars(whole)[name][2:4]), name
        assert not torch.equal(draw_noise(3, 8, range(6), *arguments).noise, whole.noise)

    @pytest.mark.parametrize("shift", [0.5, 1.0, 4.0])
    def test_shifted_timesteps(self, shift):
        """With shift s, a timestep is in the upper half where u > 1 / (1 + s): a share of s / (1 + s)."""
        drawn = [draw_noise(0, step, range(50), (1, 1), 1000, shift, 0.0, 0.0, 0.0) for step in range(80)]
        timesteps = torch.cat([d.timesteps for d in drawn])
        assert timesteps.min() >= 0 and timesteps.max() <= 999 and timesteps.dtype == torch.int64
        assert (timesteps >= 500).float().mean() == pytest.approx(shift / (1 + shift), abs=0.03)
        quarter = (timesteps < 250).float().mean()  # u < 1 / (1 + 3 s)
        assert quarter == pytest.approx(1 / (1 + 3 * shift), abs=0.03)

    def test_shares_of_dropped_modalities(self):
        drawn = [draw_noise(0, step, range(50), (1, 1), 1000, 1.0, 0.2, 0.3, 0.4) for step in range(40)]
        video, audio, aligned = (
            torch.cat([getattr(d, name) for d in drawn]) for name in ("keep_video", "keep_audio", "self_aligned")
        )
        assert (~video).float().mean() == pytest.approx(0.2, abs=0.03)
        assert (~audio).float().mean() == pytest.approx(0.3, abs=0.03)
        assert aligned.float().mean() == pytest.approx(0.4, abs=0.04)
        assert (video | audio).all()


class TestViews:
    def batch(self, size=(60, 80)):
        """Two frames of a bright spot on grey, which is looked at and fixated."""
        frames = torch.full((8, 2, 3, *size), 64, dtype=torch.uint8)
        saliency, fixations = torch.zeros(8, 1, *size), torch.zeros(8, *size, dtype=torch.bool)
        for i in range(8):
            row, column = 24 + i, 50 - 3 * i
            frames[i, :, :, row - 2 : row + 3, column - 2 : column + 3] = 255
            saliency[i, :, row - 2 : row + 3, column - 2 : column + 3] = 0.25
            saliency[i, :, row, column] = 1
            fixations[i, row, column] = True
        return {"frames": frames, "saliency": saliency, "fixations": fixations, "has_audio": torch.ones(8)}

    def test_picture_map_and_fixations_move_together(self):
        batch, mirrored, moved = self.batch(), set(), 0
        for step in range(10):
            areas, lights = draw_views(0, step, range(8))
            mirrored |= set((areas[:, 0, 0] < 0).tolist())
            assert (areas[:, 0, 0].abs() <= 1).all() and (areas[:, 0, 0].abs() >= 0.65 * 0.86).all()
            seen = change_view(batch, areas, torch.ones_like(lights))
            assert seen["frames"].min() >= 0 and seen["frames"].max() <= 255
            for frames, saliency, fixations in zip(seen["frames"], seen["saliency"], seen["fixations"], strict=True):
                ((row, column),) = fixations.nonzero().tolist()
                peak = divmod(int(saliency.argmax()), 80)
                assert peak == pytest.approx((row, column), abs=1.01) and saliency.max() == 1
                assert frames[1, 0, row, column] > 150 and torch.equal(frames[0], frames[1])
                moved += 1
        assert mirrored == {True, False} and moved == 80

    def test_a_crop_that_misses_what_was_looked_at_is_not_taken(self):
        batch = self.batch()
        corner = torch.tensor([[[0.3, 0, -0.7], [0, 0.3, -0.7]]]).repeat(8, 1, 1)
        assert not batch["fixations"][:, :18, :24].any()
        seen = change_view(batch, corner, torch.ones(8, 4))
        torch.testing.assert_close(seen["saliency"], batch["saliency"])
        assert torch.equal(seen["fixations"], batch["fixations"])

    def test_light_changes_the_picture_only(self):
        batch = self.batch()
        whole = torch.tensor([[[1.0, 0, 0], [0, 1.0, 0]]]).repeat(8, 1, 1)
        same = change_view(batch, whole, torch.ones(8, 4))
        torch.testing.assert_close(same["frames"], batch["frames"].float(), atol=1e-2, rtol=0)
        darker = change_view(batch, whole, torch.tensor([[0.5, 1.0, 1.0, 1.0]]).repeat(8, 1))
        torch.testing.assert_close(darker["frames"], same["frames"] / 2, atol=1e-2, rtol=0)
        for name in ("saliency", "fixations"):
            assert torch.equal(darker[name], same[name])
            torch.testing.assert_close(same[name], batch[name])

    def test_chance_belongs_to_the_place_in_the_batch(self):
        whole, part = draw_views(3, 7, range(6)), draw_views(3, 7, range(2, 4))
        assert all(torch.equal(a[2:4], b) for a, b in zip(whole, part, strict=True))


class TestOwnEstimates:
    """Self-aligned denoising: the noisy map is made of what the network says of pure noise."""

    def losses(self, **settings):
        config = build_config({"output": "x", "data": [{"name": "synthetic"}], "self_aligned": 1.0, **settings})
        pipe = tiny_pipeline(num_frames=2)
        module, scheduler = DiffSalTraining(pipe, config, create_scheduler()).train(), create_scheduler()
        g = torch.Generator().manual_seed(0)
        saliency = torch.rand(2, 1, 64, 96, generator=g)
        batch = {
            "frames": torch.randint(0, 256, (2, 2, 3, 64, 96), generator=g, dtype=torch.uint8),
            "log_mel": torch.rand(2, 1, 9, *pipe.processor.config.audio_size, generator=g),
            "has_audio": torch.tensor([True, True]),
            "saliency": saliency,
            "fixations": saliency[:, 0] > 0.9,
        }
        chance = draw_noise(0, 0, range(2), (64, 96), 1000, 1.0, 0.0, 0.0, 1.0)
        losses = module(batch, chance)

        # The same, written out.
        frames = module.processor.normalize(batch["frames"].flatten(0, 1)).unflatten(0, (2, 2)).transpose(1, 2)
        features = pipe.video_encoder(frames).features, pipe.audio_encoder(batch["log_mel"]).features[0]
        first = pipe.unet(chance.start_noise, 999, *features).sample
        kept = first if config.first_estimate > 0 else first.detach()
        noisy = scheduler.add_noise(kept, chance.noise, chance.timesteps)
        second = pipe.unet(noisy, chance.timesteps, *features).sample
        one, two = (F.mse_loss((s + 1) / 2, saliency, reduction="none").mean(dim=(1, 2, 3)) for s in (first, second))
        return pipe.unet, losses, two + config.first_estimate * one

    @pytest.mark.parametrize("weight", [0.0, 0.5])
    def test_loss_and_gradient(self, weight):
        unet, losses, expected = self.losses(first_estimate=weight)
        torch.testing.assert_close(losses, expected)
        parameters = list(unet.noise_encoder.parameters())
        ours, theirs = (torch.autograd.grad(x.sum(), parameters, retain_graph=True) for x in (losses, expected))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)

    def test_the_first_estimate_is_weighed_only_where_it_is_made(self):
        for value in (-1.0, math.nan, math.inf):
            with pytest.raises(InputError, match=f"`first_estimate` must be a number of at least 0, got {value}"):
                build_config(
                    {"output": "x", "data": [{"name": "synthetic"}], "first_estimate": value, "self_aligned": 1.0}
                )
        with pytest.raises(InputError, match="`first_estimate` needs `self_aligned` above 0"):
            build_config({"output": "x", "data": [{"name": "synthetic"}], "first_estimate": 1.0})


class TestConfig:
    @pytest.mark.parametrize("name", list_configs())
    def test_those_that_come_with_the_package_load(self, name):
        config = load_config(name)
        assert config == load_config(CONFIGS / f"{name}.yaml")
        if name.startswith("stage"):
            assert (config.batch_size, config.epochs, config.learning_rate) == (20, 5, 1e-4)  # paper, section 5.1
            assert config.loss == {"mse": 1.0} and config.scheduler == "ddim"

    def test_overrides(self):
        config = load_config(
            "light", ["learning_rate=3e-4", "data.0.root=/data", "model.unet.attention=sca", "steps=null"]
        )
        assert config.learning_rate == 3e-4 and config.data[0].root == "/data" and config.steps is None
        assert config.model.unet["attention"] == "sca" and config.model.unet["head_channels"] == 64

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("learnig_rate=1", "there is no key `learnig_rate`, did you mean learning_rate"),
            ("model.vidoe=x", "there is no key `model.vidoe`, did you mean video"),
            ("data.0.nam=x", "there is no key `data.0.nam`"),
            ("data.5.name=x", "there is nothing at '5'"),
            ("steps=many", "`steps` must be int or null, got 'many'"),
            ("batch_size=2.5", "`batch_size` must be int, got 2.5"),
            ("strict=1", "`strict` must be bool, got 1"),
            ("model.frame_size=64", "`model.frame_size` must be list or null, got 64"),
            ("model.frame_size=[64, wide]", "`model.frame_size.1` must be int, got 'wide'"),
            ("loss=mse", "`loss` must be a mapping, got 'mse'"),
            ("learning_rate", "an override is KEY=VALUE"),
            ("loss={mse", "is no YAML value"),
        ],
    )
    def test_wrong_overrides(self, override, message):
        with pytest.raises(InputError) as raised:
            load_config("light", [override])
        assert message in str(raised.value) and "\n" not in str(raised.value)

    def test_wrong_files(self, tmp_path):
        with pytest.raises(InputError, match="there is no config 'heavy'; there are light"):
            load_config("heavy")
        (tmp_path / "a.yaml").write_text("- 1\n")
        (tmp_path / "b.yaml").write_text("a: [\n")
        with pytest.raises(InputError, match="a config is a mapping"):
            load_config(tmp_path / "a.yaml")
        for file in ("b.yaml", "c.yaml"):
            with pytest.raises(InputError, match=f"{file}: cannot be read"):
                load_config(tmp_path / file)
        with pytest.raises(InputError, match="`data` is missing"):
            build_config({"output": "x"})
        assert math.isclose(build_config({"output": "x", "data": [{"name": "synthetic"}]}).data[0].weight, 1.0)
