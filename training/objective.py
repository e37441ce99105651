"""The training objective of DiffSal (paper sections 3 and 4.3)."""

import torch
import torch.nn.functional as F
from accelerate.utils import extract_model_from_parallel
from diffusers import SchedulerMixin

from ..models import SaliencyUNet


def denoising_loss(
    unet: SaliencyUNet,
    scheduler: SchedulerMixin,
    saliency: torch.Tensor,
    video_features: list[torch.Tensor] | None = None,
    audio_features: torch.Tensor | None = None,
    video_mask: torch.Tensor | None = None,
    audio_mask: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """The mean square error of the clean map predicted from a noisy one, equation 10, one random timestep a sample.

    Args:
        unet: the network, also as `accelerator.prepare` wraps it.
        scheduler: its `add_noise` makes the noisy map S_t of equation 1.
        saliency: true maps S_0, `(b, 1, height, width)` in [0, 1].
        video_features, audio_features, video_mask, audio_mask: see [`SaliencyUNet.encode_conditions`]; the masks drop
            a modality sample by sample, which trains the null conditions.
        generator: of the timesteps and the noise, on the device of `saliency`.

    Returns:
        the loss, a scalar, in units of the map's [0, 1] range.
    """
    low, high = extract_model_from_parallel(unet).config.sample_range
    clean = low + (high - low) * saliency
    timesteps = torch.randint(
        scheduler.config.num_train_timesteps, clean.shape[:1], generator=generator, device=clean.device
    )
    noise = torch.randn(clean.shape, generator=generator, device=clean.device, dtype=clean.dtype)
    noisy = scheduler.add_noise(clean, noise, timesteps)
    prediction = unet(noisy, timesteps, video_features, audio_features, video_mask, audio_mask).sample
    return F.mse_loss(prediction, clean) / (high - low) ** 2
