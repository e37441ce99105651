"""What a saliency map costs with each model: parameters, operations, seconds and memory, SalFoM beside DiffSal.

    python benchmarks/map_cost.py

Every model predicts the first and the last frame of a clip of its length, of random pixels at its own size, with
random sound where it listens and with its own number of denoising steps, in a process of its own. Operations are two
for a multiply-add. Seconds are the best of three, half of them for each map; compare them within one run only. Memory
is the most that the process had, libraries and weights with it.
"""

import argparse
import resource
import subprocess
import sys
import time

import numpy as np
import torch

from diffsal_diffusers import InputError, load_pipeline
from diffsal_diffusers.cli.info import count_operations
from diffsal_diffusers.modeling import count_parameters

MODELS = ("untrained-salfom", "untrained-paper", "tiny")
MAPS = 2


def print_cost(model: str) -> None:
    """A model's line, to be printed by a process of its own."""
    try:
        pipe = load_pipeline(model)
    except InputError as error:
        sys.exit(str(error))
    pipe.set_progress_bar_config(disable=True)
    config = pipe.processor.config
    rng = np.random.default_rng(0)
    length = (config.num_frames - 1) * config.frame_interval + 1
    video = rng.integers(0, 256, (length, *config.frame_size, 3), np.uint8)
    audio = False if pipe.audio_encoder is None else (rng.standard_normal(16000).astype(np.float32) / 10, 16000)
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        maps = pipe(video, audio, frame_stride=length - 1, generator=torch.Generator().manual_seed(0), batch_size=1)
        seconds.append((time.perf_counter() - begin) / MAPS)
        assert maps.saliency.shape == video.shape[:3]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    parameters = count_parameters(*pipe.networks.values())
    steps = pipe.config.get("default_num_inference_steps", 0)
    clip, step = count_operations(pipe)
    size = f"{config.num_frames}x{config.frame_size[0]}x{config.frame_size[1]}"
    numbers = parameters / 1e6, clip + steps * step, min(seconds), peak / 1e9
    print("{:18} {:>12} {:>6} {:13.2f} {:10.1f} {:9.2f} {:9.2f}".format(model, size, steps or "-", *numbers))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="NAME_OR_FOLDER", help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print_cost(args.measure)
        return
    print(f"on {torch.get_num_threads()} threads, float32")
    print(f"{'model':18} {'clip':>12} {'steps':>6} {'M parameters':>13} {'GFLOP':>10} {'seconds':>9} {'peak, GB':>9}")
    for model in args.models or MODELS:
        sys.stdout.flush()
        if subprocess.run([sys.executable, __file__, "--measure", model]).returncode:
            sys.exit(1)


if __name__ == "__main__":
    main()
