"""Clips per second that training data loading gives, with 0, 1 and 2 workers.

    python benchmarks/clips.py
    python benchmarks/clips.py --dataset DIEM --root DIR

Without a data set, a small audio-visual one is made in a temporary folder: frames of 640x360 as JPEG, with sound, maps
and fixations. Its files are in the system's cache, so its numbers are those of decoding and resizing, not of a disk.
Clips are drawn in random order, at the default preprocessing; the time until the first batch, when workers start, does
not count.
"""

import argparse
import tempfile
import time
import wave
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.io import savemat
from torch.utils.data import DataLoader

from diffsal_diffusers import SaliencyProcessor
from diffsal_diffusers.data import SALIENCY_DATASETS, SaliencyClips, find_saliency_dataset, load_saliency_dataset

WIDTH, HEIGHT, FPS, RATE = 640, 360, 25, 44100


def make_tree(root: Path, videos: int = 3, frames: int = 60) -> None:
    """The layout of AVAD: noise that a camera pans over, tones, and a place where people look that moves about."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for video in (f"video_{number}" for number in range(videos)):
        pictures, sounds, annotations = (
            root / part / "AVAD" / video for part in ("video_frames", "video_audio", "annotations")
        )
        for folder in (pictures, sounds, annotations / "maps"):
            folder.mkdir(parents=True)
        coarse = Image.fromarray(rng.integers(0, 255, (60, 100, 3), np.uint8))
        scene = np.asarray(coarse.resize((WIDTH + frames, HEIGHT + frames), Image.Resampling.BICUBIC))
        for i in range(frames):
            Image.fromarray(scene[i : i + HEIGHT, i : i + WIDTH]).save(pictures / f"img_{i + 1:05d}.jpg", quality=90)
            row, column = HEIGHT // 2 + i, WIDTH // 2 - i
            density = 255 * np.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * 21**2))
            Image.fromarray(density.astype(np.uint8)).save(annotations / "maps" / f"eyeMap_{i + 1:05d}.jpg")
            fixations = np.zeros((HEIGHT, WIDTH), np.uint8)
            fixations[row, column] = 1
            savemat(annotations / f"fixMap_{i + 1:05d}.mat", {"eyeMap": fixations}, do_compression=True)
        tone = 0.3 * np.sin(2 * np.pi * 440 * np.arange(frames * RATE // FPS) / RATE)
        with wave.open(str(sounds / f"{video}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes((tone * 32767).astype("<i2").tobytes())
    (root / "fold_lists").mkdir()
    lines = [f"video_{number} {frames} {FPS}" for number in range(videos)]
    (root / "fold_lists" / "AVAD_list_train_1_fps.txt").write_text("\n".join(lines))


def clips_per_second(clips: SaliencyClips, num_workers: int, batches: int, batch_size: int) -> float:
    """The speed from the first batch on; workers prepare one batch each ahead, so that these few hardly count."""
    generator = torch.Generator().manual_seed(0)
    order = torch.randint(len(clips), ((1 + batches) * batch_size,), generator=generator).tolist()
    ahead = {"prefetch_factor": 1} if num_workers else {}
    loader = iter(DataLoader(clips, batch_size=batch_size, sampler=order, num_workers=num_workers, **ahead))
    next(loader)
    begin = time.perf_counter()
    for _ in loader:
        pass
    return batches * batch_size / (time.perf_counter() - begin)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", metavar="NAME", help=f"default: a generated one; {', '.join(SALIENCY_DATASETS)}")
    parser.add_argument("--root", type=Path, metavar="DIR", help="the data set's folder")
    parser.add_argument("--split", default="train", help="default: %(default)s")
    parser.add_argument("--fold", type=int, help="default: the first one")
    parser.add_argument("--batches", type=int, default=24, help="measured each time; default: %(default)s")
    parser.add_argument("--batch-size", type=int, default=4, help="default: %(default)s")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        name, root = args.dataset, args.root
        if name is None:
            name, root = "AVAD", Path(folder)
            make_tree(root)
        fold = find_saliency_dataset(name).folds[0] if args.fold is None else args.fold
        begin = time.perf_counter()
        entries = load_saliency_dataset(name, root, args.split, fold)
        listed = time.perf_counter() - begin
        clips = SaliencyClips(entries, SaliencyProcessor())
        what = "generated, 640x360 JPEG and WAV" if args.dataset is None else f"{name}, {args.split}"
        print(f"{what}: {len(entries)} videos listed in {listed:.2f} s, {len(clips)} clips")
        print(f"{'workers':>7} {'clips a second':>15}")
        for num_workers in (0, 1, 2):
            speed = clips_per_second(clips, num_workers, args.batches, args.batch_size)
            print(f"{num_workers:7} {speed:15.1f}", flush=True)
        clips.report_skipped()


if __name__ == "__main__":
    main()
