"""Seconds of AUC-Judd over many maps: ours, and the loop over thresholds that the field's evaluation code has.

    python benchmarks/auc_judd.py
    python benchmarks/auc_judd.py --fixations 50 500

Both are timed on the same maps in one run, best of three, on the CPU: compare them within one run only. Smooth maps
are like what models predict: a few blobs with a little texture, fixations drawn from them. Noise is the worst case of
ours, whose search for a pixel's place among the thresholds the processor cannot foresee there.
"""

import argparse
import time

import numpy as np
import torch

from diffsal_diffusers.metrics import auc_judd


def make_maps(kind: str, count: int, height: int, width: int, fixations: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions and fixations, both `(count, height, width)`, float32 and boolean."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(count, height, width, generator=generator)
    chances = torch.ones(count, height * width)
    if kind == "smooth":
        maps *= 1e-3
        rows, columns, sigma = torch.arange(height), torch.arange(width), height / 10
        for _ in range(4):
            row = height * torch.rand(count, 1, generator=generator)
            column = width * torch.rand(count, 1, generator=generator)
            down = torch.exp(-((rows - row) ** 2) / (2 * sigma**2))  # (count, height)
            right = torch.exp(-((columns - column) ** 2) / (2 * sigma**2))  # (count, width)
            maps += down[:, :, None] * right[:, None, :]
        chances = maps.flatten(1)
    fixated = torch.zeros(count, height * width, dtype=torch.bool)
    fixated.scatter_(1, torch.multinomial(chances, fixations, generator=generator), True)
    return maps, fixated.view_as(maps)


def threshold_loop(maps: np.ndarray, fixations: np.ndarray) -> list[float]:
    """AUC-Judd as the field's code computes it: each threshold is compared with all pixels."""
    scores = []
    for values, fixated in zip(maps, fixations, strict=True):
        thresholds = np.sort(values[fixated])[::-1]
        n = len(thresholds)
        hits, false_alarms = np.zeros(n + 2), np.zeros(n + 2)
        hits[-1] = false_alarms[-1] = 1
        for i, threshold in enumerate(thresholds, 1):
            above = (values >= threshold).sum()
            hits[i] = i / n
            false_alarms[i] = (above - i) / (values.size - n)
        scores.append(np.trapezoid(hits, false_alarms))
    return scores


def seconds(function, *args) -> tuple[float, object]:
    """The least time of three calls, and the result."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        result = function(*args)
        times.append(time.perf_counter() - begin)
    return min(times), result


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=1000)
    parser.add_argument("--size", type=int, nargs=2, default=(240, 320), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--fixations", type=int, nargs="+", default=[50])
    args = parser.parse_args()
    print(f"{args.maps} maps of {args.size[0]}x{args.size[1]}, float32, {torch.get_num_threads()} threads")
    print(f"{'maps':8} {'fixations':>9} {'ours, s':>9} {'loop, s':>9} {'loop / ours':>12}")
    for fixations in args.fixations:
        for kind in ("smooth", "noise"):
            maps, fixated = make_maps(kind, args.maps, *args.size, fixations)
            ours, scores = seconds(auc_judd, maps, fixated)
            loop, expected = seconds(threshold_loop, maps.numpy(), fixated.numpy())
            assert np.allclose(scores.numpy(), expected, rtol=0, atol=1e-12)
            print(f"{kind:8} {fixations:9} {ours:9.2f} {loop:9.2f} {loop / ours:12.1f}", flush=True)


if __name__ == "__main__":
    main()
