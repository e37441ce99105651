"""What is scored: a pipeline, maps that lie in a folder, and the baselines that a model must beat."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F

from ..data import Recording, gaussian_blur, open_recording
from ..data.files import VIDEO_SUFFIXES, file_names, numbered_images, read_map
from ..data.recordings import frame_times
from ..errors import InputError
from ..media.video import open_video
from ..pipelines import SaliencyPipeline
from ..pipelines.pipeline_saliency import Denoising
from .protocol import HUMANS, PredictionError, centre_prior

MODALITIES = ("av", "v", "a")
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
        modality: `"av"`, `"v"` (the sound is ignored) or `"a"` (the picture is); `None` for all that the pipeline has
            an encoder for.
        seed: of the noise, the same for every video.
        settings: further arguments of the pipeline's call. Maps are predicted at the pipeline's own stride, unless the
            step of the frames asked for is a multiple of it: then for these frames only.

    Raises:
        InputError: there is no such modality, or the pipeline cannot take the settings of the denoising.
    """

    def __init__(self, pipe: SaliencyPipeline, modality: str | None = None, seed: int = 0, **settings):
        able = ("a" if pipe.audio_encoder is not None else "") + ("v" if "video_encoder" in pipe.networks else "")
        modality = able if modality is None else modality
        if modality not in MODALITIES:
            raise InputError(f"`modality` must be one of {', '.join(MODALITIES)}, got {modality!r}")
        if not set(modality) <= set(able):
            raise InputError(f"the modality {modality!r} is more than this model takes, which is {able!r}")
        of_denoising = settings.keys() & {field.name for field in fields(Denoising)}
        pipe.check_denoising(Denoising(**{name: settings[name] for name in of_denoising}))
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
            # Sound may end before the picture: silence is predicted from, too, so that all frames are scored.
            duration = recording.num_frames / recording.fps
            media |= {"video": None, "fps": recording.fps, "duration": duration, "height": height, "width": width}
        stride = self.pipe.config.default_frame_stride
        maps = self.pipe.stream(
            **media,
            **{"frame_stride": stride if frames.step % stride else frames.step} | self.settings,
            generator=torch.Generator().manual_seed(self.seed),
            match_input_resolution=False,
            output_type="pt",
        )
        for index, (_, saliency) in enumerate(maps):
            if index in frames:
                yield saliency


class FolderPredictor:
    """Maps made elsewhere: `FOLDER/VIDEO/*.png` (or jpg), numbered from 0 or from 1, or a grey `FOLDER/VIDEO.mp4`.

    Args:
        folder: the folder.

    Raises:
        InputError: there is no such folder, nothing in it, or a video has two sources.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise InputError(f"{folder}: no such folder of predictions")
        self.sources: dict[str, Path] = {}
        for name in file_names(self.folder):
            path = self.folder / name
            if not path.is_dir() and path.suffix.lower() not in VIDEO_SUFFIXES:
                continue
            video_id = name if path.is_dir() else path.stem
            if video_id in self.sources:
                raise InputError(f"{self.sources[video_id]} and {name} are predictions of one video; one must go")
            self.sources[video_id] = path
        if not self.sources:
            raise InputError(f"{folder}: no predictions; folders VIDEO/*.png or files VIDEO.mp4 are expected in it")

    def problems(self, recording: Recording, frames: range) -> list[str]:
        """What is wrong with the predictions of a video, in words: missing ones, ones too many, unclear numbers."""
        video_id, source = recording.video_id, self.sources.get(recording.video_id)
        if source is None:
            return [f"{video_id}: no prediction"]
        if not source.is_dir():
            found = len(frame_times(source))
            if found == recording.num_frames:
                return []
            return [f"{video_id}: {found} frames in {source}, but {recording.num_frames} in the ground truth"]
        try:
            maps = self._maps(recording)
        except InputError as error:
            return [str(error)]
        absent = [index for index in frames if index not in maps]
        if not absent:
            return []
        return [f"{video_id}: {len(absent)} of {len(frames)} frames have no prediction, first {absent[0]}"]

    def _maps(self, recording: Recording) -> dict[int, Path]:
        """The images of a video by the number of their frame.

        Raises:
            PredictionError: they do not tell which frame each belongs to.
        """
        source, length = self.sources[recording.video_id], recording.num_frames
        found = numbered_images(source)
        if found is None:
            raise PredictionError(f"{source}: no numbered images")
        files = {number: source / (found.name % number) for number in range(found.first, found.last + 1)}
        files = {number: file for number, file in files.items() if file.is_file()}
        if found.first == 0 and found.last < length:
            return files
        if found.first > 0 and found.last == length:
            return {number - 1: file for number, file in files.items()}
        raise PredictionError(
            f"{source}: images are numbered {found.first} to {found.last}, but the video has {length} frames; they "
            f"must begin with 0, or be counted from 1 and end with {length}"
        )

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
        maps, size = self._maps(recording), None
        for index in frames:
            if index not in maps:
                yield None
                continue
            try:
                saliency = read_map(maps[index])
            except InputError as error:
                raise PredictionError(str(error)) from error
            if size is not None and saliency.shape != size:
                raise PredictionError(
                    f"{maps[index]}: {saliency.shape[0]}x{saliency.shape[1]} pixels, but earlier maps of the video "
                    f"have {size[0]}x{size[1]}; all maps of a video must be of one size"
                )
            size = saliency.shape
            yield saliency


def centre(recording: Recording, frames: range) -> Iterator[torch.Tensor]:
    """The centre prior: people look at the middle."""
    prior = centre_prior(MEAN_MAP_SIZE)
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
    """The mean of a training set's maps.

    Args:
        entries: the training videos.
    """

    def __init__(self, entries: Iterable[dict]):
        self.entries = entries

    def __call__(self, recording: Recording, frames: range) -> Iterator[torch.Tensor]:
        for _ in frames:
            yield self.average

    @cached_property
    def average(self) -> torch.Tensor:
        """The mean map, of some frames of each video; broken ones are left out."""
        total = torch.zeros(MEAN_MAP_SIZE)
        for entry in self.entries:
            try:
                recording = open_recording(entry)
            except InputError:
                continue
            step = max(math.ceil(recording.num_frames / MEAN_MAP_FRAMES), 1)
            for index in range(step // 2, recording.num_frames, step):
                try:
                    density = recording.density(index)
                except InputError:
                    continue
                if density.sum() > 0:
                    total += F.adaptive_avg_pool2d((density / density.sum())[None], MEAN_MAP_SIZE)[0]
        return total


BASELINES = {
    "centre": "centre Gaussian",
    "mean": "mean training map",
    "uniform": "uniform",
    "spectral_residual": "spectral residual",
    HUMANS: "half of the people for the other half",
}
