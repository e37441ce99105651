"""Noise schedules and samplers: which of diffusers' schedulers may denoise saliency maps, and DiffSal's settings.

The network predicts the clean map (`prediction_type="sample"`) under a cosine schedule. Many of diffusers' schedulers
take such a network in silence and then show it inputs that are not what the timestep says; the ones listed here were
checked, at each step, against the mean and the variance that the timestep asks for.
"""

from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    SchedulerMixin,
    UniPCMultistepScheduler,
)

from ..errors import InputError

__all__ = ["SCHEDULERS", "check_num_steps", "check_scheduler", "create_scheduler", "list_schedulers"]

SCHEDULERS = {
    "ddim": DDIMScheduler,
    "ddpm": DDPMScheduler,
    "dpm++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "lcm": LCMScheduler,
    "euler": EulerDiscreteScheduler,
}

# Trailing spacing starts at the end of the schedule, where the map is noise alone; starting earlier from pure noise
# is the known flaw of dense prediction by diffusion (arXiv 2409.11355).
DIFFSAL_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "sample",
    "timestep_spacing": "trailing",
    "clip_sample": False,
}

# Options of diffusers' schedulers that put another schedule in the place of the training's.
OTHER_SCHEDULES = (
    "trained_betas",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "use_flow_sigmas",
    "use_lu_lambdas",
)


def list_schedulers() -> list[str]:
    """Names of the schedulers that [`create_scheduler`] makes."""
    return list(SCHEDULERS)


def create_scheduler(name: str = "ddim", config: dict | None = None) -> SchedulerMixin:
    """A scheduler of diffusers with DiffSal's schedule: 1000 steps, cosine, clean-map prediction, trailing spacing.

    Args:
        name: one of [`list_schedulers`].
        config: settings to use instead of DiffSal's, such as another scheduler's `config`.

    Raises:
        InputError: there is no scheduler of that name.
    """
    if name not in SCHEDULERS:
        raise InputError(f"there is no scheduler {name!r}; there are {', '.join(SCHEDULERS)}")
    return SCHEDULERS[name].from_config(DIFFSAL_SCHEDULE if config is None else config)


def check_scheduler(scheduler: SchedulerMixin) -> None:
    """Refuses a scheduler that would go wrong, most of them in silence.

    Raises:
        InputError: its class is not among the checked ones, or its settings are not for clean-map prediction.
    """
    if type(scheduler) not in SCHEDULERS.values():
        names = ", ".join(cls.__name__ for cls in SCHEDULERS.values())
        raise InputError(f"{type(scheduler).__name__} cannot denoise saliency maps correctly; use one of {names}")
    if scheduler.config.prediction_type != "sample":
        raise InputError(
            f"the scheduler's `prediction_type` must be 'sample', since the network predicts the clean map; "
            f"got {scheduler.config.prediction_type!r}"
        )
    if scheduler.config.beta_schedule != DIFFSAL_SCHEDULE["beta_schedule"]:
        raise InputError(
            f"the scheduler's `beta_schedule` must be {DIFFSAL_SCHEDULE['beta_schedule']!r}, the one of the network's "
            f"training; got {scheduler.config.beta_schedule!r}"
        )
    for option in OTHER_SCHEDULES:
        if scheduler.config.get(option):
            raise InputError(
                f"the scheduler's `{option}` must be off: it replaces the schedule that the network is trained with"
            )
    if "algorithm_type" in scheduler.config and not scheduler.config.algorithm_type.endswith("dpmsolver++"):
        raise InputError(
            f"the scheduler's `algorithm_type` must be 'dpmsolver++' or 'sde-dpmsolver++' for a network that predicts "
            f"the clean map; got {scheduler.config.algorithm_type!r}"
        )


def check_num_steps(scheduler: SchedulerMixin, num_inference_steps: int) -> None:
    """Refuses a number of denoising steps that a scheduler cannot take.

    Raises:
        InputError: it cannot, for the scheduler's own reason.
    """
    try:
        scheduler.set_timesteps(num_inference_steps)
    except (ValueError, IndexError) as error:
        raise InputError(f"{type(scheduler).__name__} cannot take {num_inference_steps} steps: {error}") from error
