"""What a map of the released network costs here, part by part, beside the cost of the authors' program.

    python benchmarks/released_cost.py

For one clip of 16 frames of 224x384 and 4 denoising steps, with random weights: operations (two for a multiply-add),
seconds (the best of three), and the share of this machine's rate of multiplying matrices, measured in the same run.
The release's seconds are its operations at the shares that were measured of its program: video encoder 49 %, audio
encoder 100 %, U-Net 78 %. The last lines compare our MViTv2-S with torchvision's blocks of the same weights.
"""

import argparse
import time

import torch
from model_cost import measure
from torchvision.models import get_model

from diffsal_diffusers.conversion import released_pipeline

STEPS = 4
RELEASE = {"video encoder": (255.6, 0.49), "audio encoder": (51.6, 1.0), "U-Net": (STEPS * 152.7, 0.78)}


def matrix_rate() -> float:
    """GFLOP a second of multiplying two matrices of 2048x2048."""
    a, b = torch.randn(2, 2048, 2048)
    seconds = []
    for _ in range(10):
        begin = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - begin)
    return 2 * 2048**3 / min(seconds) / 1e9


def print_costs(video_only: bool, rate: float) -> None:
    """The table of one of the two networks."""
    pipe = released_pipeline(video_only)
    config = pipe.processor.config
    height, width = config.frame_size
    frames = torch.randn(1, 3, config.num_frames, height, width)
    video, *video_cost = measure(lambda: pipe.video_encoder(frames).features)
    parts = {"video encoder": video_cost}
    audio = None
    if not video_only:
        slices = torch.randn(1, 1, config.audio_slices, *config.audio_size)
        audio, *parts["audio encoder"] = measure(lambda: pipe.audio_encoder(slices).features[0])

    def unet():
        sample = torch.randn(1, 1, height, width)
        conditions = pipe.unet.encode_conditions(height, width, video, audio)
        pipe.scheduler.set_timesteps(STEPS)
        for t in pipe.scheduler.timesteps:
            prediction = pipe.unet(sample, t, conditions=conditions).sample
            sample = pipe.scheduler.step(prediction, t, sample).prev_sample

    _, *parts["U-Net"] = measure(unet)
    print(f"\n{'video-only' if video_only else 'audio-visual'}, {STEPS} steps")
    print(f"{'part':16} {'GFLOP':>8} {'seconds':>8} {'of rate':>8} {'release: GFLOP':>16} {'seconds':>8}")
    totals = [0.0] * 4
    for name, (gflop, seconds) in parts.items():
        released, share = RELEASE[name]
        numbers = gflop, seconds, released, released / share / rate
        totals = [total + number for total, number in zip(totals, numbers, strict=True)]
        print_row(name, *numbers, rate)
    print_row("a map", *totals, rate)
    print(f"{'of the release':16} {totals[0] / totals[2]:8.1%} {totals[1] / totals[3]:8.1%}")


def print_row(name: str, gflop: float, seconds: float, released: float, released_seconds: float, rate: float) -> None:
    """A part's line."""
    share = gflop / seconds / rate
    print(f"{name:16} {gflop:8.1f} {seconds:8.2f} {share:8.0%} {released:16.1f} {released_seconds:8.2f}")


def compare_video_encoders() -> None:
    """Seconds of our way through MViTv2-S and of torchvision's, and the largest difference of their outputs."""
    encoder = released_pipeline(video_only=True).video_encoder
    frames = torch.randn(1, 3, 16, 224, 384)
    ends = dict(zip(encoder.stage_ends, encoder.norms, strict=True))

    published = get_model("mvit_v2_s", weights=None).eval()
    published.load_state_dict(encoder.state_dict(), strict=False)

    def by_torchvision():
        x = published.conv_proj(frames)
        size = tuple(x.shape[2:])
        x = published.pos_encoding(x.flatten(2).transpose(1, 2))
        for index, block in enumerate(published.blocks):
            x, size = block(x, size)
            if index in ends:
                x = ends[index](x)
        return x[:, 1:].transpose(1, 2).unflatten(2, size)

    theirs, _, their_seconds = measure(by_torchvision)
    ours, _, our_seconds = measure(lambda: encoder(frames).features[-1])
    difference = (ours - theirs).abs().max() / theirs.abs().max()
    share = our_seconds / their_seconds
    print(f"\nMViTv2-S: {our_seconds:.2f} s, torchvision's blocks {their_seconds:.2f} s: {share:.0%}")
    print(f"largest difference of their last features, of the largest feature: {difference:.1e}")


@torch.no_grad()
def main() -> None:
    """Prints the tables."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rate = matrix_rate()
    print(f"multiplying matrices: {rate:.0f} GFLOP/s on {torch.get_num_threads()} threads")
    for video_only in (False, True):
        print_costs(video_only, rate)
    compare_video_encoders()


if __name__ == "__main__":
    main()
