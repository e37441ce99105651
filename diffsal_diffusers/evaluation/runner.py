"""Evaluation of a data set video by video: resumable, and split over processes."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from diffusers.utils import logging
from PIL import Image
from tqdm.auto import tqdm

from ..data import Recording, open_recording
from ..errors import InputError
from ..media.writers import complete_path
from .predictors import Predictor
from .protocol import HUMANS, PredictionError, VideoScorer, score_humans

logger = logging.get_logger(__name__)

EXAMPLE_HEIGHT = 180  # pixels of a picture on the page of examples


class Evaluation:
    """Scores predictors on videos and keeps what is done in a folder, one file and one picture a video.

    A file is written when its video is finished, so an interrupted evaluation goes on where it stopped; a video with
    broken files is tried again. The processes of `accelerate launch` share the videos.

    Args:
        folder: where results go: `videos/FOLD/*.json`, and `examples/*.jpg`.
        metrics: names of metrics.
        settings: all that the scores depend on; a folder with results of other settings is refused.
        frame_step: every so many frames are scored, from the first one on.
        humans: also score half of the observers against the other half, where the data tell who looked.
        seed: of s-AUC's negatives.
        strict: raise for a broken file of the data set, instead of naming and skipping it.

    Raises:
        InputError: the folder holds results of other settings.
    """

    def __init__(
        self,
        folder: str | Path,
        metrics: Sequence[str],
        settings: Mapping[str, object],
        frame_step: int = 1,
        humans: bool = False,
        seed: int = 0,
        strict: bool = False,
    ):
        self.folder = Path(folder)
        self.metrics = metrics
        self.frame_step = frame_step
        self.humans = humans
        self.seed = seed
        self.strict = strict
        self.state = PartialState()
        self._claim_folder(json.loads(json.dumps(settings)))

    def _claim_folder(self, settings: dict) -> None:
        file = self.folder / "settings.json"
        if self.state.is_main_process:
            (self.folder / "examples").mkdir(parents=True, exist_ok=True)
            if not file.exists():
                write_json(file, settings)
        self.state.wait_for_everyone()
        found = read_json(file)
        for key in sorted(found.keys() | settings.keys()):
            if found.get(key) != settings.get(key):
                raise InputError(
                    f"{self.folder} holds an evaluation with {key} = {found.get(key)!r}, and this one has "
                    f"{settings.get(key)!r}; give another --output, or remove the folder"
                )

    def run(self, entries: Sequence[dict], predictors: Mapping[str, Predictor], fold: str = "all") -> list[dict]:
        """Scores the videos of a fold that have no complete result yet.

        Args:
            entries: rows of a data set, see [`~diffsal_diffusers.data.load_saliency_dataset`].
            predictors: by name.
            fold: name of the fold.

        Returns:
            the results of all videos in their order, in every process.

        Raises:
            PredictionError: a prediction is damaged or not a number.
            InputError: a file is broken and `strict` is set.
        """
        folder = self.folder / "videos" / fold
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"{file_name(entry['video_id'])}.json" for entry in entries]
        waiting = [i for i, file in enumerate(files) if not file.exists() or read_json(file)["skipped"]]
        self.state.wait_for_everyone()  # so that all have seen the same ones waiting
        if len(waiting) < len(files):
            logger.info(f"{len(files) - len(waiting)} of {len(files)} videos are done already")
        progress = tqdm(
            waiting[self.state.process_index :: self.state.num_processes], unit="video",
            desc="evaluating" if fold == "all" else f"fold {fold}", dynamic_ncols=True,
            disable=None if self.state.is_main_process else True,
        )  # fmt: skip
        for i in progress:
            progress.set_postfix_str(entries[i]["video_id"])
            write_json(files[i], self._score_video(entries[i], predictors))
        self.state.wait_for_everyone()
        return [read_json(file) for file in files]

    def _score_video(self, entry: dict, predictors: Mapping[str, Predictor]) -> dict:
        """One video's result: the number of scored frames, the mean scores by predictor, and what was skipped."""
        example, scored = True, []  # whether one is still to be kept; numbers of the frames
        result = {"video_id": entry["video_id"], "frames": 0, "scores": {}, "skipped": []}
        try:
            recording = open_recording(entry)
            frames = range(0, recording.num_frames, self.frame_step)
            scorer = VideoScorer(recording, list(predictors), self.metrics, self.seed)
            streams = {name: iter(predict(recording, frames)) for name, predict in predictors.items()}
            for index in frames:
                predictions = {name: next(stream, None) for name, stream in streams.items()}
                absent = [name for name, prediction in predictions.items() if prediction is None]
                if absent:
                    self._skip(result, f"frame {index}: no map from {', '.join(absent)}")
                    continue
                try:
                    density = recording.density(index)
                    if scorer.score(index, density, predictions):
                        scored.append(index)
                except PredictionError:
                    raise
                except InputError as error:
                    self._skip(result, str(error))
                    continue
                if example and index >= frames[len(frames) // 2]:
                    example = not self._keep_example(recording, index, density, predictions)
            result["frames"] = len(scored)
            if scored:
                result["scores"] = scorer.means()
                halves = recording.halves() if self.humans else None
                if halves is not None:
                    result["scores"][HUMANS] = score_humans(halves, scored, self.metrics, self.seed)
        except PredictionError as error:
            raise PredictionError(f"{entry['video_id']}: {error}") from error
        except InputError as error:  # of a picture or a sound: no map of this video can be trusted
            self._skip(result, f"the whole video: {error}")
            result["frames"], result["scores"] = 0, {}
        return result

    def _skip(self, result: dict, reason: str) -> None:
        if self.strict:
            raise InputError(f"{result['video_id']}: {reason}")
        result["skipped"].append(reason)

    def _keep_example(
        self, recording: Recording, index: int, density: torch.Tensor, predictions: Mapping[str, torch.Tensor]
    ) -> bool:
        """One picture: the frame, the truth and each prediction side by side; false where the frame is broken."""
        try:
            frame = Image.fromarray(recording.frame(index))
        except InputError:
            return False
        size = (max(round(EXAMPLE_HEIGHT * frame.width / frame.height), 1), EXAMPLE_HEIGHT)
        strip = Image.new("RGB", (size[0] * (2 + len(predictions)), EXAMPLE_HEIGHT))
        strip.paste(frame.resize(size), (0, 0))
        for place, saliency in enumerate([density, *predictions.values()], start=1):
            saliency = saliency.cpu().float()
            grey = (255 * saliency / saliency.amax().clamp(min=1e-12)).clamp(0, 255).numpy().astype(np.uint8)
            strip.paste(Image.fromarray(grey).resize(size), (place * size[0], 0))
        with complete_path(self.folder / "examples" / f"{file_name(recording.video_id)}.jpg") as part:
            strip.save(part, quality=90)
        return True


def file_name(video_id: str) -> str:
    """A name for a video's files: its own, as far as every file system takes it."""
    plain = "".join(c if c.isalnum() or c in "-_. " else "_" for c in video_id)
    return plain if plain == video_id else f"{plain}-{hashlib.sha1(video_id.encode()).hexdigest()[:8]}"


def fingerprint(path: Path) -> str:
    """What tells one state of a folder from another: names, sizes and times of its files."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            status = file.stat()
            digest.update(f"{file.relative_to(path)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def write_json(file: Path, content: object) -> None:
    """JSON, complete or not at all."""
    write_text(file, json.dumps(content, indent=2) + "\n")


def write_text(file: Path, text: str) -> None:
    """A text in UTF-8, complete or not at all."""
    with complete_path(file) as part:
        part.write_text(text, encoding="utf-8")


def read_json(file: Path) -> dict:
    """Reads what `write_json` wrote.

    Raises:
        InputError: it is missing or damaged.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read; remove it, and it is computed anew") from error


def skipped_lines(results: Iterable[Mapping]) -> list[str]:
    """What was skipped in all videos, in words."""
    return [f"{result['video_id']}: {reason}" for result in results for reason in result["skipped"]]
