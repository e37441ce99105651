"""What is scored: a pipeline, maps that lie in a folder, and the baselines that a model must beat."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError

from ..data import Recording, gaussian_blur, open_recording
from ..errors import InputError
from ..media.video import open_video
from ..pipelines import DiffSalPipeline
from .protocol import centre_prior

MODALITIES = ("av", "v", "a")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".avi", ".mov")
MEAN_MAP_SIZE = (96, 160)
MEAN_MAP_FRAMES = 4  # of each training video
RESIDUAL_WIDTH = 64  # pixels, spectral residual's own


class Predictor(Protocol):
    """Anything that gives maps for some frames of a recording."""

    def __call__(self, recording: Recording, frames: range) -> Iterator[torch.Tensor]:
        """One map `(h, w)` of any size, 0 or more, for each of the frames, in order."""


class PipelinePredictor:
    """A pipeline's maps.

    Args:
        pipe: the pipeline.
        modality: `"av"`, `"v"` (the sound is ignored) or `"a"` (the picture is).
        seed: of the noise, the same for every video.
        settings: further arguments of the pipeline's call.
    """

    def __init__(self, pipe: DiffSalPipeline, modality: str = "av", seed: int = 0, **settings):
        if modality not in MODALITIES:
            raise InputError(f"`modality` must be one of {', '.join(MODALITIES)}, got {modality!r}")
        self.pipe, self.modality, self.seed, self.settings = pipe, modality, seed, settings

    def __call__(self, recording: Recording, frames: range) -> Iterator[torch.Tensor]:
        media = recording.media()
        if self.modality == "v":
            media["audio"] = False
        elif self.modality == "a":
            if media["audio"] is False:
                raise InputError(f"{recording.video_id}: there is no sound to predict from")
            if media["audio"] is None:
                media["audio"] = media["video"]
            height, width = self.pipe.processor.config.frame_size
            media |= {"video": None, "fps": recording.fps, "height": height, "width": width}
        maps = self.pipe.stream(
            **media,
            frame_stride=frames.step,
            generator=torch.Generator().manual_seed(self.seed),
            match_input_resolution=False,
            output_type="pt",
            **self.settings,
        )
        for index, (_, saliency) in enumerate(maps):
            if index in frames:
                yield saliency


class FolderPredictor:
    """Maps made elsewhere: `FOLDER/VIDEO/*.png` (or jpg), numbered from 0 or from 1, or a grey `FOLDER/VIDEO.mp4`.

    Args:
        folder: the folder.

    Raises:
        InputError: there is no such folder, or nothing in it.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{folder}: no such folder of predictions")
        self.sources = {
            path.name if path.is_dir() else path.stem: path
            for path in sorted(self.folder.iterdir())
            if path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES
        }
        if not self.sources:
            raise InputError(f"{folder}: no predictions; folders VIDEO/*.png or files VIDEO.mp4 are expected in it")

    def maps_of(self, video_id: str) -> dict[int, Path]:
        """The images of a video by the number of the frame."""
        files = {}
        for path in self.sources[video_id].iterdir():
            number = re.search(r"(\d+)$", path.stem)
            if path.suffix.lower() in IMAGE_SUFFIXES and number:
                files[int(number[1])] = path
        first = 0 if 0 in files else 1
        return {number - first: path for number, path in files.items()}

    def missing(self, recording: Recording, frames: range) -> list[str]:
        """What the folder lacks of a video, in words."""
        source = self.sources.get(recording.video_id)
        if source is None:
            return [f"{recording.video_id}: no prediction"]
        if not source.is_dir():
            return []
        absent = [index for index in frames if index not in self.maps_of(recording.video_id)]
        if not absent:
            return []
        return [f"{recording.video_id}: {len(absent)} of {len(frames)} frames have no prediction, first {absent[0]}"]

    def __call__(self, recording: Recording, frames: range) -> Iterator[torch.Tensor | None]:
        source = self.sources.get(recording.video_id)
        if source is None:
            return
        if not source.is_dir():
            with open_video(source) as video:
                for index, frame in enumerate(video):
                    if index in frames:
                        yield torch.from_numpy(frame.pixels[..., 0].astype(np.float32) / 255)
            return
        maps, size = self.maps_of(recording.video_id), None
        for index in frames:
            if index not in maps:
                yield None
                continue
            saliency = read_map(maps[index])
            if size is not None and saliency.shape != size:
                raise InputError(
                    f"{maps[index]}: {saliency.shape[0]}x{saliency.shape[1]} pixels, but earlier maps of the video "
                    f"have {size[0]}x{size[1]}; all maps of a video must be of one size"
                )
            size = saliency.shape
            yield saliency


def read_map(path: Path) -> torch.Tensor:
    """A grey image of 8 or 16 bits as `(h, w)` in [0, 1].

    Raises:
        InputError: it is damaged, or no image.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image if image.mode.startswith("I") else image.convert("L"))
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise InputError(f"{path}: cannot be read as a grey image of 8 or 16 bits") from error
    return torch.from_numpy(pixels.astype(np.float32) / (255 if pixels.dtype == np.uint8 else 65535))


def centre(recording: Recording, frames: range) -> Iterator[torch.Tensor]:
    """The centre prior: people look at the middle."""
    prior = centre_prior(recording.density(frames[0]).shape)
    for _ in frames:
        yield prior


def uniform(recording: Recording, frames: range) -> Iterator[torch.Tensor]:
    """The same everywhere: chance."""
    for _ in frames:
        yield torch.ones(MEAN_MAP_SIZE)


def spectral_residual(recording: Recording, frames: range) -> Iterator[torch.Tensor]:
    """Spectral residual (Hou and Zhang 2007): what the amplitude spectrum of a picture has beyond its smooth trend."""
    for index in frames:
        grey = torch.from_numpy(recording.frame(index)).float().mean(dim=2)[None, None]
        height = max(round(RESIDUAL_WIDTH * grey.shape[2] / grey.shape[3]), 8)
        grey = F.interpolate(grey, size=(height, RESIDUAL_WIDTH), mode="bilinear", antialias=True)[0, 0]
        spectrum = torch.fft.fft2(grey)
        amplitude = (spectrum.abs() + 1e-9).log()
        trend = F.avg_pool2d(F.pad(amplitude[None, None], (1, 1, 1, 1), mode="circular"), 3, stride=1)[0, 0]
        saliency = torch.fft.ifft2(torch.polar((amplitude - trend).exp(), spectrum.angle())).abs().square()
        yield gaussian_blur(saliency, 2.5, "reflect")


class MeanMap:
    """The mean of the training set's maps: of the fold that the video is tested in, so that no video tells of itself.

    Args:
        training: the training videos' entries, by fold.
        folds: the fold of each video that is scored.
    """

    def __init__(self, training: Mapping[int | None, Sequence[dict]], folds: Mapping[str, int | None]):
        self.training = training
        self.folds = folds
        self._maps: dict[int | None, torch.Tensor] = {}

    def __call__(self, recording: Recording, frames: range) -> Iterator[torch.Tensor]:
        fold = self.folds[recording.video_id]
        if fold not in self._maps:
            self._maps[fold] = self._average(self.training[fold])
        for _ in frames:
            yield self._maps[fold]

    @staticmethod
    def _average(entries: Sequence[dict]) -> torch.Tensor:
        total = torch.zeros(MEAN_MAP_SIZE)
        for entry in entries:
            recording = open_recording(entry)
            step = max(math.ceil(recording.num_frames / MEAN_MAP_FRAMES), 1)
            for index in range(step // 2, recording.num_frames, step):
                try:
                    density = recording.density(index)
                except InputError:  # the data sets' readers tell of broken files; a mean does without
                    continue
                if density.sum() > 0:
                    total += F.adaptive_avg_pool2d((density / density.sum())[None], MEAN_MAP_SIZE)[0]
        return total


BASELINES = {
    "centre": "centre Gaussian",
    "mean": "mean training map",
    "uniform": "uniform",
    "spectral_residual": "spectral residual",
}
