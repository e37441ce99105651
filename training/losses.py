"""The training objective of DiffSal (paper sections 3 and 4.3) and its relatives (Table 5)."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin

from ..errors import InputError
from ..metrics import cc, kl_divergence, nss

LOSSES = ("mse", "kl", "ce", "cc", "nss")


def saliency_losses(
    prediction: torch.Tensor, saliency: torch.Tensor, fixations: torch.Tensor | None, weights: Mapping[str, float]
) -> torch.Tensor:
    """The weighted sum of losses, one value a sample.

    Args:
        prediction: estimates of the clean maps, `(b, 1, h, w)` in [0, 1].
        saliency: true maps, `(b, 1, h, w)` in [0, 1].
        fixations: fixated pixels, `(b, h, w)`, boolean; only `nss` needs them.
        weights: of `mse` (equation 10), `kl`, `ce` (Table 5), and of `cc` and `nss`, which count negatively: more is
            better. Where one is not defined, as NSS where nobody looked, it is left out for that sample.

    Returns:
        `(b,)`.

    Raises:
        InputError: there is no such loss, or all weights are zero.
    """
    unknown = weights.keys() - set(LOSSES)
    if unknown:
        raise InputError(f"there is no loss {sorted(unknown)[0]!r}; there are {', '.join(LOSSES)}")
    if not any(weights.values()):
        raise InputError(f"at least one of the losses {', '.join(LOSSES)} needs a weight other than zero")
    total = prediction.new_zeros(len(prediction))
    flat = saliency.flatten(1)
    defined = {"kl": flat.any(dim=1), "cc": flat.amin(dim=1) < flat.amax(dim=1)}
    if fixations is not None:
        defined["nss"] = fixations.flatten(1).any(dim=1)
    for name, weight in weights.items():
        if weight == 0:
            continue
        if name == "mse":
            value = F.mse_loss(prediction, saliency, reduction="none").mean(dim=(1, 2, 3))
        elif name == "ce":
            # Written out, since autocast refuses the built-in one; clamped, since the logarithm has no slope at 0.
            inside = prediction.clamp(1e-6, 1 - 1e-6)
            value = -(saliency * inside.log() + (1 - saliency) * (1 - inside).log()).mean(dim=(1, 2, 3))
        elif name == "kl":
            value = kl_divergence(prediction[:, 0], saliency[:, 0])
        elif name == "cc":
            value = -cc(prediction[:, 0], saliency[:, 0])
        else:
            value = -nss(prediction[:, 0], fixations)
        value = value.to(total.dtype)
        if name in ("kl", "cc", "nss"):
            # Where nobody looked these are not defined; a prediction that is no number must show.
            value = torch.where(defined[name], value, 0.0)
        total = total + weight * value
    return total


def add_noise(
    scheduler: SchedulerMixin, saliency: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor, sample_range
) -> torch.Tensor:
    """The noisy maps S_t of equation 1, by the scheduler's own `add_noise`.

    Args:
        scheduler: any that diffusers trains with.
        saliency: maps in [0, 1], `(b, 1, h, w)`.
        noise: of their shape, standard normal.
        timesteps: `(b,)`, one a sample.
        sample_range: what 0 and 1 of a map are to the network.
    """
    low, high = sample_range
    return scheduler.add_noise(low + (high - low) * saliency, noise, timesteps)


def snr_weights(scheduler: SchedulerMixin, timesteps: torch.Tensor, gamma: float) -> torch.Tensor:
    """min(SNR, gamma), the Min-SNR weights of a network that predicts the clean map (arXiv 2303.09556), `(b,)`."""
    alphas = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    return (alphas / (1 - alphas)).clamp(max=gamma)
