"""Validation: the field's metrics on videos of the validation set, and pictures of what the network sees."""

from itertools import islice

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.utils import logging
from PIL import Image

from ..data import Recording, load_saliency_dataset, open_recording
from ..errors import InputError
from ..evaluation import PipelinePredictor, VideoScorer
from ..evaluation.protocol import PredictionError, mean
from ..pipelines import DiffSalPipeline, SaliencyPipeline
from .config import TrainingConfig

logger = logging.get_logger(__name__)

PICTURE_HEIGHT = 120  # pixels


def load_validation(config: TrainingConfig) -> list[dict]:
    """The videos to validate on; none where the config names none.

    Raises:
        InputError: there is no such data set, or there are no videos in it.
    """
    data = config.validation.data
    if data is None:
        return []
    entries = list(load_saliency_dataset(data.name, data.root, split=data.split, fold=data.fold))[: data.limit]
    if not entries:
        raise InputError(f"`validation.data` has no videos: {data.name}, split {data.split}")
    return entries


def validate(
    accelerator: Accelerator,
    pipe: SaliencyPipeline,
    config: TrainingConfig,
    entries: list[dict],
    step: int,
) -> dict[str, float]:
    """Scores the pipeline, which every process must have whole; logs the scores and some pictures.

    Returns:
        the mean over videos of each metric, the same in every process.

    Raises:
        InputError: a file is broken, where the config says `strict`; else its video is named and left out.
    """
    pipe.set_progress_bar_config(disable=True)
    predict = PipelinePredictor(pipe, seed=config.seed, batch_size=4)
    results = []
    for place in range(accelerator.process_index, len(entries), accelerator.num_processes):
        try:
            recording = open_recording(entries[place])
            frames = range(0, recording.num_frames, config.validation.frame_step)
            scorer = VideoScorer(recording, ["model"], config.validation.metrics, config.seed)
            for index, prediction in zip(frames, predict(recording, frames), strict=False):
                scorer.score(index, recording.density(index), {"model": prediction})
        except PredictionError:
            raise
        except InputError as error:
            if config.strict:
                raise
            logger.warning(f"{entries[place]['video_id']} is left out of the validation: {error}")
            continue
        results.append((place, scorer.means()["model"]))
    trackers = [tracker for tracker in accelerator.trackers if hasattr(tracker, "log_images")]
    if accelerator.is_main_process and trackers:
        pictures = {}
        for entry in entries[: config.validation.num_pictures]:
            try:
                recording = open_recording(entry)
                pictures[recording.video_id] = step_pictures(pipe, recording, config.seed)[None]
            except InputError:  # named above
                continue
        for tracker in trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            tracker.log_images(pictures, step=step, **layout)
    results = [scores for _, scores in sorted(gather_object(results), key=lambda item: item[0])]
    scores = {metric: mean(result[metric] for result in results) for metric in config.validation.metrics}
    accelerator.log({f"validation/{metric}": value for metric, value in scores.items()}, step=step)
    return scores


def step_pictures(pipe: SaliencyPipeline, recording: Recording, seed: int) -> np.ndarray:
    """A strip: the middle frame, its ground truth, and the estimate after each denoising step or, of a network that
    predicts in one pass, the map, `(h, w, 3)` uint8."""
    index = recording.num_frames // 2
    estimates, watching = [], {}
    if isinstance(pipe, DiffSalPipeline):
        low, high = pipe.unet.config.sample_range

        def keep(pipe, step, timestep, tensors):
            estimates.append((tensors["prediction"][0, 0] - low) / (high - low))

        watching = {"callback_on_step_end": keep, "callback_on_step_end_tensor_inputs": ["prediction"]}
    media = recording.media()
    if pipe.audio_encoder is None:
        media["audio"] = False
    maps = pipe.stream(
        **media,
        frame_stride=max(index, 1),
        batch_size=1,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
        **watching,
    )
    _, saliency = next(islice(maps, index, None))
    if isinstance(pipe, DiffSalPipeline):
        estimates = estimates[-pipe.config.default_num_inference_steps :]  # those of the frame's own clip
    else:
        estimates = [saliency]
    frame = recording.frame(index)
    size = (max(round(PICTURE_HEIGHT * frame.shape[1] / frame.shape[0]), 1), PICTURE_HEIGHT)
    strip = [np.asarray(Image.fromarray(frame).resize(size))]
    density = recording.density(index)
    for saliency in [
        density / density.amax().clamp(min=1e-12),
        *estimates,
    ]:
        grey = (255 * saliency.float().clamp(0, 1)).byte().cpu().numpy()
        strip.append(np.repeat(np.asarray(Image.fromarray(grey).resize(size))[..., None], 3, axis=2))
    return np.concatenate(strip, axis=1)
