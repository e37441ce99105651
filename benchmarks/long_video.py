"""Peak memory of a prediction over videos of 20 s, 60 s and 300 s: it must not grow with the length.

    python benchmarks/long_video.py

Generates the videos, predicts each in a process of its own with the light model, and prints the peak resident memory
and its ratio to the shortest video's. Every 8th frame is predicted to keep the run short; all are read and encoded.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from diffsal_diffusers import load_pipeline

SIZE, FRAME_RATE, SAMPLE_RATE = (320, 240), 15, 44_100


def generate_video(path: Path, seconds: int) -> None:
    """A square on noise that wanders, with a tone that wanders along."""
    rng = np.random.default_rng(0)
    width, height = SIZE
    texture = rng.integers(60, 120, (height, width, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=FRAME_RATE, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for second in range(seconds):
            for i in range(FRAME_RATE):
                t = second + i / FRAME_RATE
                pixels = texture.copy()
                x, y = int(140 + 120 * np.sin(t / 3)), int(100 + 80 * np.cos(t / 5))
                pixels[y : y + 40, x : x + 40] = 230
                container.mux(video.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            times = second + np.arange(SAMPLE_RATE) / SAMPLE_RATE
            tone = (0.3 * np.sin(2 * np.pi * (300 + 100 * np.sin(second)) * times)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
            frame.rate, frame.pts = SAMPLE_RATE, second * SAMPLE_RATE
            container.mux(audio.encode(frame))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def predict(path: str) -> None:
    """Predicts one video and prints maps, seconds and peak memory in MB."""
    pipe = load_pipeline("untrained-light")
    pipe.set_progress_bar_config(disable=True)
    begin = time.perf_counter()
    maps = sum(1 for _ in pipe.stream(path, num_inference_steps=1, frame_stride=8))
    seconds = time.perf_counter() - begin
    print(maps, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, nargs="+", default=[20, 60, 300], help="lengths of the videos")
    parser.add_argument("--predict", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.predict:
        predict(args.predict)
        return
    print(f"{'video, s':>8} {'maps':>6} {'maps/s':>7} {'peak, MB':>9} {'ratio':>6}")
    first = None
    with tempfile.TemporaryDirectory() as folder:
        for seconds in args.seconds:
            path = Path(folder, f"{seconds}.mp4")
            generate_video(path, seconds)
            command = [sys.executable, __file__, "--predict", str(path)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            maps, taken, peak = (float(x) for x in output.split())
            first = first or peak
            print(f"{seconds:8} {maps:6.0f} {maps / taken:7.1f} {peak:9.0f} {peak / first:6.2f}", flush=True)
            if peak > 1.10 * first:
                sys.exit(f"memory grows with the length: {peak:.0f} MB at {seconds} s, {first:.0f} MB at first")


if __name__ == "__main__":
    main()
