"""Is prediction faster than the video? Maps per second, multiple of real time, peak memory and time to the first map.

    python benchmarks/realtime.py [--model MODEL]

Makes a video of 1280x720, h264 with sound, of the example's frames and predicts it with `diffsal predict` in a process
of its own, with default settings: decoding, encoding, denoising and writing the default files. Then it times the parts
by leaving the later ones out: reading alone, reading and predicting, all.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZE, SAMPLE_RATE = (1280, 720), 48_000
EXAMPLE = Path(__file__).parent.parent / "examples" / "big_buck_bunny.mp4"


def make_video(path: Path, seconds: float, rate: int) -> None:
    """The example's frames, larger and over again, with noise for a sound."""
    import av
    import numpy as np

    with av.open(str(EXAMPLE)) as source:
        frames = [frame.reformat(*SIZE, format="yuv420p") for frame in source.decode(video=0)]
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=rate, options={"preset": "veryfast"})
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for index in range(round(seconds * rate)):
            frame = av.VideoFrame.from_ndarray(frames[index % len(frames)].to_ndarray(), format="yuv420p")
            container.mux(video.encode(frame))
        for second in range(int(seconds)):
            samples = rng.normal(0, 0.05, (1, SAMPLE_RATE)).astype(np.float32)
            frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
            frame.rate, frame.pts = SAMPLE_RATE, second * SAMPLE_RATE
            container.mux(audio.encode(frame))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))


def predict(video: str, model: str, output: str) -> None:
    """`diffsal predict`; prints seconds from the start to the first map and of all maps, and the peak memory in MB."""
    from diffsal_diffusers.pipelines import DiffSalPipeline

    from diffsal_diffusers.cli import main

    stream, first, begin = DiffSalPipeline.stream, [], []

    def timed(self, *args, **kwargs):
        begin.append(time.time())
        for item in stream(self, *args, **kwargs):
            if not first:
                first.append(time.time())
            yield item

    DiffSalPipeline.stream = timed
    if main(["predict", video, "--model", model, "--output", output]):
        sys.exit("the prediction failed")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(first[0] - float(os.environ["BEGIN"]), time.time() - begin[0], peak)


def measure_parts(video: str, model: str) -> dict[str, float]:
    """Seconds of reading alone, and of reading and predicting."""
    from diffsal_diffusers import load_pipeline
    from diffsal_diffusers.media.video import open_video

    pipe = load_pipeline(model)
    pipe.set_progress_bar_config(disable=True)
    begin = time.perf_counter()
    with open_video(video) as source:
        for _ in source:
            pass
    read = time.perf_counter()
    for _ in pipe.stream(video):
        pass
    return {"reading": read - begin, "reading and predicting": time.perf_counter() - read}


def main() -> None:
    """Prints the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="a name or a folder; default: the command's own")
    parser.add_argument("--seconds", type=float, default=20, help="length of the video; default: %(default)s")
    parser.add_argument("--rate", type=int, default=25, help="its frames per second; default: %(default)s")
    parser.add_argument("--predict", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()

    from diffsal_diffusers.presets import DEFAULT_MODEL, load_pipeline

    model = args.model or DEFAULT_MODEL
    if args.predict:
        predict(args.predict[0], model, args.predict[1])
        return
    stride = load_pipeline(model).config.default_frame_stride
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder, "video.mp4")
        make_video(video, args.seconds, args.rate)
        command = [sys.executable, __file__, "--model", model, "--predict", str(video), folder]
        output = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | {"BEGIN": str(time.time())}
        ).stdout
        first, all_of_it, peak = (float(x) for x in output.splitlines()[-1].split())
        parts = measure_parts(str(video), model)
    frames = args.seconds * args.rate
    print(f"{model}: {args.seconds:g} s of {SIZE[0]}x{SIZE[1]} at {args.rate} fps, a map every {stride} frames")
    print(f"first map {first:.1f} s after the process's start; predicting and writing took {all_of_it:.1f} s")
    print(f"{frames / stride / all_of_it:.1f} maps/s predicted, {frames / all_of_it:.1f} frames/s written, "
          f"{args.seconds / all_of_it:.2f} times real time")  # fmt: skip
    print(f"peak memory {peak:.0f} MB")
    for name, seconds in parts.items():
        print(f"of which {name}: {seconds:.1f} s, {seconds / all_of_it:.0%}")


if __name__ == "__main__":
    main()
