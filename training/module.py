"""The networks as one module with a loss: what `accelerate` prepares and a training step calls."""

import torch
from diffusers import SchedulerMixin
from torch import nn

from ..encoders import AudioEncoder, VideoEncoder
from ..models import SaliencyUNet
from ..pipelines import DiffSalPipeline, SalFoMPipeline, SaliencyPipeline
from .config import TrainingConfig
from .data import StepNoise, draw_noise
from .losses import add_noise, saliency_losses, snr_weights


class SaliencyTraining(nn.Module):
    """Base class: from a batch of clips to their losses.

    Args:
        pipe: the pipeline whose networks are trained.
        config: the run's settings.
    """

    def __init__(self, pipe: SaliencyPipeline, config: TrainingConfig):
        super().__init__()
        self.networks = pipe.networks
        self.processor = pipe.processor
        self.config = config

    def train(self, mode: bool = True) -> "SaliencyTraining":
        """Sets the mode. Frozen networks stay as they predict, and batch normalisations keep their statistics.

        With a batch's own statistics, a sample's gradient would depend on the others, and on how the batch is split
        over processes.
        """
        super().train(mode)
        for network in self.networks.values():
            if not any(p.requires_grad for p in network.parameters()):
                network.eval()
        for part in self.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()
        return self

    def clips(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames `(b, t, 3, h, w)`, uint8, as a network takes them, `(b, 3, t, h, w)`."""
        return self.processor.normalize(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]).transpose(1, 2)

    def draw_chance(self, step: int, places: range, size: tuple[int, int]) -> StepNoise | None:
        """What chance does to the samples at some places of a step, whose maps are of a size; `None` for nothing."""
        raise NotImplementedError


class SalFoMTraining(SaliencyTraining):
    """SalFoM's: one map, compared with where people looked."""

    def __init__(self, pipe: SalFoMPipeline, config: TrainingConfig):
        super().__init__(pipe, config)
        self.salfom = pipe.salfom

    def draw_chance(self, step: int, places: range, size: tuple[int, int]) -> None:
        return None

    def forward(self, batch: dict[str, torch.Tensor], chance: None = None) -> torch.Tensor:
        """The loss of each sample, `(b,)`; see [`DiffSalTraining`] for the batch."""
        prediction = self.salfom(self.clips(batch["frames"])).saliency.float()
        return saliency_losses(prediction, batch["saliency"], batch["fixations"], self.config.loss)


class DiffSalTraining(SaliencyTraining):
    """DiffSal's: noisy maps, compared with the clean ones when the network has denoised them.

    Args:
        pipe: the pipeline whose networks are trained.
        config: the run's settings.
        scheduler: the noise schedule.
    """

    def __init__(self, pipe: DiffSalPipeline, config: TrainingConfig, scheduler: SchedulerMixin):
        super().__init__(pipe, config)
        self.unet: SaliencyUNet = pipe.unet
        self.video_encoder: VideoEncoder | None = pipe.video_encoder
        self.audio_encoder: AudioEncoder | None = pipe.audio_encoder
        self.scheduler = scheduler

    def draw_chance(self, step: int, places: range, size: tuple[int, int]) -> StepNoise:
        config = self.config
        return draw_noise(
            config.seed, step, places, size,
            self.scheduler.config.num_train_timesteps, config.timestep_shift, config.drop_video, config.drop_audio,
            config.self_aligned,
        )  # fmt: skip

    def forward(self, batch: dict[str, torch.Tensor], chance: StepNoise) -> torch.Tensor:
        """
        Args:
            batch: `frames` `(b, t, 3, h, w)` uint8, `log_mel` `(b, 1, s, h', w')`, `has_audio` `(b,)`, `saliency`
                `(b, 1, h, w)` in [0, 1], `fixations` `(b, h, w)`, see `SaliencyClips`.
            chance: noise and timesteps of the samples.

        Returns:
            the loss of each sample, `(b,)`.
        """
        # 1. Encode picture and sound.
        video = audio = None
        if self.video_encoder is not None:
            video = self.video_encoder(self.clips(batch["frames"])).features
        keep_video, keep_audio = chance.keep_video, batch["has_audio"] & chance.keep_audio
        if self.audio_encoder is not None:
            audio = self.audio_encoder(batch["log_mel"]).features[0]
        height, width = batch["saliency"].shape[2:]
        conditions = self.unet.encode_conditions(height, width, video, audio, keep_video, keep_audio)

        # 2. Make the noisy maps S_t (eq. 1), some of them of the network's own estimate.
        saliency = batch["saliency"]
        start, first_losses = saliency, 0.0
        if self.config.self_aligned > 0:
            # Where the network's own sampling begins: what it says of pure noise.
            last = self.scheduler.config.num_train_timesteps - 1
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.first_estimate > 0):
                estimate = self._predict(chance.start_noise, last, conditions)
            if self.config.first_estimate > 0:
                losses = saliency_losses(estimate, saliency, batch["fixations"], self.config.loss)
                first_losses = self.config.first_estimate * losses
            start = torch.where(chance.self_aligned.view(-1, 1, 1, 1), estimate, saliency)
        noisy = add_noise(self.scheduler, start, chance.noise, chance.timesteps, self.unet.config.sample_range)

        # 3. Predict the clean maps, and compare.
        prediction = self._predict(noisy, chance.timesteps, conditions)
        losses = saliency_losses(prediction, saliency, batch["fixations"], self.config.loss)
        if self.config.snr_gamma is not None:
            losses = losses * snr_weights(self.scheduler, chance.timesteps, self.config.snr_gamma)
        return losses + first_losses

    def _predict(self, noisy: torch.Tensor, timesteps: torch.Tensor | int, conditions) -> torch.Tensor:
        """The network's estimates of the clean maps, in [0, 1]."""
        low, high = self.unet.config.sample_range
        prediction = self.unet(noisy, timesteps, conditions=conditions).sample
        return (prediction.float() - low) / (high - low)
