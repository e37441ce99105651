"""Swapping schedulers: what the network sees at each step, and where sampling ends."""

import diffusers
import pytest
import torch
from diffsal_diffusers.schedulers import SCHEDULERS, check_scheduler, create_scheduler, list_schedulers
from stand_ins import true_map_pipeline

from diffsal_diffusers import InputError

STEPS = (1, 2, 4, 7, 10, 50)


def test_the_schedule_is_the_papers():
    """The cosine schedule as it is published with the paper's code, T = 1000."""
    u = torch.linspace(0, 1001, 1001, dtype=torch.float64)
    a = torch.cos((u / 1001 + 0.008) / 1.008 * torch.pi / 2) ** 2
    betas = (1 - a[1:] / a[:-1]).clamp(0, 0.999)
    torch.testing.assert_close(create_scheduler().betas.double(), betas, atol=5e-8, rtol=0)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_network_sees_what_the_timestep_says(name, steps):
    """With a network that knows the true map S_0, its input at t is sqrt(a_t) S_0 + sqrt(1 - a_t) noise (eq. 1)."""
    pipe, truth = true_map_pipeline()
    pipe.scheduler = SCHEDULERS[name].from_config(pipe.scheduler.config)
    alphas = create_scheduler("ddim").alphas_cumprod
    pipe.denoise(pipe.unet.conditions(), [torch.Generator().manual_seed(3)], steps)

    assert len(pipe.unet.seen) == steps
    clean = 2 * truth - 1
    for sample, timestep in pipe.unet.seen:
        alpha = alphas[int(timestep)]
        share = (sample * clean).sum() / clean.square().sum()
        assert share == pytest.approx(alpha.sqrt().item(), abs=0.02)
        assert (sample - share * clean).std() == pytest.approx((1 - alpha).sqrt().item(), abs=0.02)
    assert int(pipe.unet.seen[0][1]) == 999


@pytest.mark.parametrize("steps", (1, 2, 4, 10, 50))
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_schedulers_state_ends_at_the_true_map(name, steps):
    pipe, truth = true_map_pipeline()
    pipe.scheduler = create_scheduler(name, pipe.scheduler.config)
    states = []

    def keep(pipe, step, timestep, tensors):
        states.append(tensors["sample"])

    pipe.denoise(
        pipe.unet.conditions(),
        [torch.Generator().manual_seed(0)],
        steps,
        callback=keep,
        callback_tensors=["sample"],
    )
    torch.testing.assert_close(states[-1], 2 * truth - 1, atol=1e-2, rtol=0)


@pytest.mark.parametrize(
    "name", ["HeunDiscreteScheduler", "PNDMScheduler", "DEISMultistepScheduler", "IPNDMScheduler"]
)
def test_other_schedulers_are_refused(name):
    scheduler = getattr(diffusers, name)()
    with pytest.raises(InputError, match=f"{name} cannot denoise saliency maps correctly; use one of DDIMScheduler"):
        check_scheduler(scheduler)


def test_wrong_settings_are_refused():
    with pytest.raises(InputError, match="`prediction_type` must be 'sample'"):
        check_scheduler(diffusers.DDIMScheduler())
    with pytest.raises(InputError, match="`algorithm_type` must be"):
        check_scheduler(
            diffusers.DPMSolverMultistepScheduler(
                prediction_type="sample",
                beta_schedule="squaredcos_cap_v2",
                algorithm_type="dpmsolver",
                final_sigmas_type="sigma_min",
            )
        )


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("ddim", {"beta_schedule": "linear"}),
        ("ddpm", {"trained_betas": [0.1] * 1000}),
        ("dpm++", {"use_karras_sigmas": True}),
        ("unipc", {"use_flow_sigmas": True}),
        ("euler", {"use_exponential_sigmas": True}),
    ],
)
def test_other_schedules_are_refused(name, option):
    scheduler = SCHEDULERS[name].from_config(create_scheduler().config, **option)
    with pytest.raises(InputError, match=f"the scheduler's `{next(iter(option))}` must be"):
        check_scheduler(scheduler)


def test_names():
    assert list_schedulers() == ["ddim", "ddpm", "dpm++", "unipc", "lcm", "euler"]
    with pytest.raises(InputError, match="there is no scheduler 'heun'; there are ddim, ddpm"):
        create_scheduler("heun")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_settings_of_the_schedule_survive_a_swap(name):
    config = create_scheduler(name, create_scheduler("ddim").config).config
    assert config.prediction_type == "sample"
    assert config.beta_schedule == "squaredcos_cap_v2"
