"""Which clips a training step sees, and what chance does to each: functions of the step alone.

A run that is killed and resumed, or runs on another number of processes, sees the same clips, noise and timesteps: all
that is random is drawn from (seed, step, place in the step's batch).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.utils.data import Sampler


class StepSampler(Sampler[list[int]]):
    """Batches of indices into a `ConcatDataset`, from some step on.

    An epoch is a fixed random order of clips: of each data set as many as its weight asks for, all of them once before
    any comes twice.

    Args:
        sizes: clips of each data set.
        weights: of each data set: its share of an epoch's clips.
        epoch_clips: clips of an epoch.
        batch_size: clips of a process's batch.
        num_processes, process: how many processes share a step, and which one this is.
        accumulation: batches of a process in one step.
        first_step, last_step: steps to give batches for.
        seed: of the order.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        weights: Sequence[float],
        epoch_clips: int,
        batch_size: int,
        num_processes: int,
        process: int,
        accumulation: int,
        first_step: int,
        last_step: int,
        seed: int,
    ):
        self.sizes, self.weights, self.epoch_clips = list(sizes), list(weights), epoch_clips
        self.batch_size, self.num_processes, self.process = batch_size, num_processes, process
        self.accumulation, self.first_step, self.last_step, self.seed = accumulation, first_step, last_step, seed

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        step_clips = self.batch_size * self.num_processes * self.accumulation
        order, epoch = [], -1
        for step in range(self.first_step, self.last_step):
            places = range(step * step_clips, (step + 1) * step_clips)
            indices = []
            for place in places:
                if place // self.epoch_clips != epoch:
                    epoch = place // self.epoch_clips
                    order = self._order(epoch)
                indices.append(order[place % self.epoch_clips])
            for part in range(self.accumulation):
                begin = (part * self.num_processes + self.process) * self.batch_size
                yield indices[begin : begin + self.batch_size]

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        weights = torch.tensor(self.weights, dtype=torch.float64)
        chosen = torch.multinomial(weights, self.epoch_clips, replacement=True, generator=generator)
        order = torch.empty(self.epoch_clips, dtype=torch.long)
        offset = 0
        for i, size in enumerate(self.sizes):
            wanted = int((chosen == i).sum())
            rounds = -(-wanted // size)
            drawn = [torch.randperm(size, generator=generator) for _ in range(rounds)]
            if drawn:
                order[chosen == i] = offset + torch.cat(drawn)[:wanted]
            offset += size
        return order.tolist()


@dataclass
class StepNoise:
    """What chance does to the samples of one batch.

    Args:
        noise: `(b, 1, h, w)`, standard normal.
        timesteps: `(b,)`, from 0 to T - 1.
        keep_video, keep_audio: `(b,)`, boolean: whether the sample keeps the modality.
        self_aligned: `(b,)`, boolean: whether its noisy map is made of the network's own estimate.
        start_noise: `(b, 1, h, w)`, the pure noise that this estimate starts from.
    """

    noise: torch.Tensor
    timesteps: torch.Tensor
    keep_video: torch.Tensor
    keep_audio: torch.Tensor
    self_aligned: torch.Tensor
    start_noise: torch.Tensor

    def to(self, device: torch.device) -> "StepNoise":
        """All on a device."""
        return StepNoise(**{name: value.to(device, non_blocking=True) for name, value in vars(self).items()})


def draw_noise(
    seed: int,
    step: int,
    places: range,
    size: tuple[int, int],
    num_timesteps: int,
    timestep_shift: float,
    drop_video: float,
    drop_audio: float,
    self_aligned: float,
) -> StepNoise:
    """The noise of some samples of a step.

    Args:
        seed: of the run.
        step: number of the step.
        places: places of the samples in the whole step's batch.
        size: height and width of the maps.
        num_timesteps: T.
        timestep_shift: s, of timesteps T s u / (1 + (s - 1) u) with u uniform in [0, 1) (arXiv 2403.03206, eq. 23).
        drop_video, drop_audio, self_aligned: shares, see `TrainingConfig`.
    """
    drawn = []
    for place in places:
        generator = torch.Generator().manual_seed((seed * 1_000_003 + step) * 65_537 + place)
        chance, uniform = torch.rand(2, generator=generator), torch.rand((), generator=generator)
        time = timestep_shift * uniform / (1 + (timestep_shift - 1) * uniform)
        drawn.append(
            (
                torch.randn(1, *size, generator=generator),
                (num_timesteps * time).long().clamp(max=num_timesteps - 1),
                chance[0] >= drop_video,
                # Of a sample that loses one modality the other is kept: nothing can be learned from neither.
                (chance[0] < drop_video) | (chance[0] >= drop_video + drop_audio),
                chance[1] < self_aligned,
                torch.randn(1, *size, generator=generator),
            )
        )
    return StepNoise(*(torch.stack(values) for values in zip(*drawn, strict=True)))


def draw_views(seed: int, step: int, places: range) -> tuple[torch.Tensor, torch.Tensor]:
    """How some samples of a step are looked at, where `augment` is set: mirrored, cropped, in another light.

    Returns:
        the parts of the picture that are seen, `(b, 2, 3)`, as `torch.nn.functional.affine_grid` takes them; and
        brightness, contrast, saturation and gamma, `(b, 4)`, 1 for no change.
    """
    areas, lights = [], []
    for place in places:
        generator = torch.Generator().manual_seed(((seed * 1_000_003 + step) * 65_537 + place) ^ 0x5EED)
        mirror, size, aspect, x, y = torch.rand(5, generator=generator).tolist()
        size, aspect = 0.65 + 0.35 * size, (4 / 3) ** (aspect - 0.5)  # of the sides; wider than high where above 1
        width, height = min(size * aspect, 1.0), min(size / aspect, 1.0)
        areas.append(
            [[width if mirror < 0.5 else -width, 0.0, (1 - width) * (2 * x - 1)],
             [0.0, height, (1 - height) * (2 * y - 1)]]
        )  # fmt: skip
        lights.append((torch.randn(4, generator=generator) * torch.tensor([0.25, 0.2, 0.35, 0.25])).exp())
    return torch.tensor(areas), torch.stack(lights)


def change_view(batch: dict[str, torch.Tensor], areas: torch.Tensor, lights: torch.Tensor) -> dict[str, torch.Tensor]:
    """A batch of clips with its pictures, maps and fixations as `draw_views` says.

    A sample that would be left with less than half of its map's maximum keeps its whole picture.

    Args:
        batch: see `DiffSalTraining.forward`; `frames` come back as float in [0, 255].
        areas, lights: from `draw_views`.
    """
    frames, saliency, fixations = batch["frames"], batch["saliency"], batch["fixations"]
    grid = F.affine_grid(areas, list(saliency.shape), align_corners=False)  # b h w 2
    left = F.grid_sample(saliency, grid, align_corners=False).amax(dim=(1, 2, 3))
    whole = F.pad(torch.stack([areas[:, 0, 0].sign(), torch.ones_like(left)], dim=1).diag_embed(), (0, 1))  # b 2 3
    areas = torch.where((left < 0.5 * saliency.amax(dim=(1, 2, 3))).view(-1, 1, 1), whole, areas)
    grid = F.affine_grid(areas, list(saliency.shape), align_corners=False)

    frames = F.grid_sample(frames.flatten(1, 2).float(), grid, padding_mode="border", align_corners=False)
    frames = frames.unflatten(1, batch["frames"].shape[1:3]) / 255  # b t 3 h w
    brightness, contrast, saturation, gamma = lights.view(-1, 4, 1, 1, 1, 1).unbind(1)
    frames = torch.lerp(frames.mean(dim=2, keepdim=True), frames, saturation)
    middle = frames.mean(dim=(1, 2, 3, 4), keepdim=True)
    frames = (brightness * torch.lerp(middle, frames, contrast)).clamp(0, 1) ** gamma

    saliency = F.grid_sample(saliency, grid, padding_mode="zeros", align_corners=False)
    largest = saliency.amax(dim=(2, 3), keepdim=True)
    saliency = torch.where(largest > 0, saliency / largest.clamp(min=1e-12), 0.0)

    seen = torch.zeros_like(fixations)
    height, width = fixations.shape[1:]
    for one, points, area in zip(seen, fixations, areas, strict=True):
        y, x = points.nonzero(as_tuple=True)
        x = ((2 * x + 1) / width - 1 - area[0, 2]) / area[0, 0]
        y = ((2 * y + 1) / height - 1 - area[1, 2]) / area[1, 1]
        column, row = ((x + 1) / 2 * width).floor().long(), ((y + 1) / 2 * height).floor().long()
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        one[row[inside], column[inside]] = True
    return batch | {"frames": 255 * frames, "saliency": saliency, "fixations": seen}
