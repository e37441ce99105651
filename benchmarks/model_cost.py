"""Parameters, operations and seconds of each part, for the paper's network and `tiny`; memory of ECA against SCA.

    python benchmarks/model_cost.py

Seconds are the best of three on this machine: compare them within one run only. Memory is what one Saliency-UNet step
of the paper's config adds to the resident set of a process of its own, by torch's fused attention, which never holds
the matrix of attention scores; the size of that matrix, which an attention without such a kernel holds, is beside it.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffsal_diffusers import SaliencyUNet, load_pipeline
from diffsal_diffusers.modeling import count_parameters

HEIGHT, WIDTH = 224, 384


def measure(function):
    """Its result, its GFLOP (two operations for a multiply-add) and its seconds."""
    # The counter misses the CPU's fused attention; it sees attention written out as products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = function()
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begin)
    return result, counter.get_total_flops() / 1e9, min(seconds)


def parameters(module: torch.nn.Module) -> float:
    """Millions of parameters."""
    return count_parameters(module) / 1e6


@torch.no_grad()
def print_cost(model: str) -> None:
    """The table of one model."""
    pipe = load_pipeline(model)
    config = pipe.processor.config
    frames = torch.randn(1, 3, config.num_frames, HEIGHT, WIDTH)
    slices = torch.randn(1, 1, config.audio_slices, *config.audio_size)
    noise = torch.randn(1, 1, HEIGHT, WIDTH)
    video, *video_cost = measure(lambda: pipe.video_encoder(frames).features)
    audio, *audio_cost = measure(lambda: pipe.audio_encoder(slices).features[0])
    conditions, *conditions_cost = measure(lambda: pipe.unet.encode_conditions(HEIGHT, WIDTH, video, audio))
    _, *step_cost = measure(lambda: pipe.unet(noise, 500, conditions=conditions))
    rows = [
        ("video encoder", parameters(pipe.video_encoder), *video_cost),
        ("audio encoder", parameters(pipe.audio_encoder), *audio_cost),
        ("U-Net, once a clip", 0.0, *conditions_cost),
        ("U-Net, one step", parameters(pipe.unet), *step_cost),
    ]
    print(f"\n{model}: one clip of {config.num_frames} frames of {HEIGHT}x{WIDTH}, batch 1, float32")
    print(f"{'part':20} {'M parameters':>12} {'GFLOP':>9} {'seconds':>9}")
    for name, *numbers in rows:
        print("{:20} {:12.2f} {:9.2f} {:9.3f}".format(name, *numbers))
    print(f"{'all parameters':20} {sum(row[1] for row in rows):12.2f}")


def resident(field: str) -> int:
    """Bytes of this process in memory: now (`VmRSS`) or at most (`VmHWM`); Linux tells."""
    return int(re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


@torch.no_grad()
def print_step_memory(attention: str) -> None:
    """Parameters and memory of one step, to be run in a process of its own."""
    unet = SaliencyUNet(attention=attention).eval()
    video = [
        torch.randn(1, c, 8, HEIGHT // stride, WIDTH // stride)
        for c, stride in zip(unet.config.video_channels, (4, 8, 16, 32), strict=True)
    ]
    conditions = unet.encode_conditions(HEIGHT, WIDTH, video, torch.randn(1, 512, 9, 7, 12))
    noise = torch.randn(1, 1, HEIGHT, WIDTH)
    scores = 0

    def note_scores(module, args):
        nonlocal scores
        x, key = args
        queries = x.shape[2:].numel()
        keys = queries if attention == "sca" else module.compress_k(key).shape[1]
        scores = max(scores, 4 * module.num_heads * queries * keys)

    for stage in unet.stages:
        stage.attention.register_forward_pre_hook(note_scores)
    unet(noise, 500, conditions=conditions)  # so that what libraries allocate once is not counted
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resident("VmRSS")
    begin = time.perf_counter()
    unet(noise, 500, conditions=conditions)
    seconds = time.perf_counter() - begin
    added = resident("VmHWM") - before
    print(f"{attention.upper():10} {parameters(unet):12.2f} {seconds:9.2f} {added / 1e9:15.2f} {scores / 1e9:18.3f}")


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--step-memory", choices=["eca", "sca"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step_memory:
        print_step_memory(args.step_memory)
        return
    for model in ("untrained-paper", "tiny"):
        print_cost(model)
    print("\none U-Net step of the paper's config (paper, Table 4: ECA 1.20 G, SCA 5.32 G, of the whole model)")
    print(f"{'attention':10} {'M parameters':>12} {'seconds':>9} {'added peak, GB':>15} {'score matrix, GB':>18}")
    for attention in ("eca", "sca"):
        sys.stdout.flush()
        # Tensors' memory goes back to the system at once, so that each step's own is seen.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
        subprocess.run([sys.executable, __file__, "--step-memory", attention], check=True, env=environment)


if __name__ == "__main__":
    main()
