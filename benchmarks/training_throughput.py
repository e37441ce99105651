"""Clips per second of training, the share of time that it waits for data, and peak memory.

Trains the light config for some steps with and without gradient checkpointing and mixed precision, each in a process
of its own, and prints a table; ratios are to the first row.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

SETTINGS = {
    "float32": [],
    "float32, checkpointing": ["gradient_checkpointing=true"],
    "bfloat16": ["mixed_precision=bf16"],
    "bfloat16, checkpointing": ["mixed_precision=bf16", "gradient_checkpointing=true"],
    "float32, no data workers": ["workers=0"],
}


def measure(config: str, overrides: list[str]) -> None:
    """Trains, and prints clips per second, the share of time waiting for data and the peak memory in MB."""
    import torch
    from diffsal_diffusers.training.config import load_config
    from diffsal_diffusers.training.train import train
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with tempfile.TemporaryDirectory() as folder:
        train(load_config(config, [f"output={folder}", *overrides]))
        events = EventAccumulator(str(next(Path(folder, "logs", "training").glob("events*"))))
        events.Reload()
        speed, waiting = (events.Scalars(name)[-1].value for name in ("clips_per_second", WAITING))
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(speed, waiting, peak)


WAITING = "share_of_time_waiting_for_data"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="light", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=20, help="steps of each run; default: %(default)s")
    parser.add_argument("--measure", nargs="*", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings in place of the config's")
    args = parser.parse_args()
    common = [f"steps={args.steps}", "validation.data=null", "log_every=1", f"checkpoint_every={args.steps}"]
    if args.measure is not None:
        measure(args.config, [*common, *args.measure])
        return
    print(f"{'setting':26} {'clips/s':>8} {'ratio':>6} {'waiting':>8} {'peak, MB':>9} {'ratio':>6}")
    first = None
    for name, overrides in SETTINGS.items():
        command = [sys.executable, __file__, "--config", args.config, "--steps", str(args.steps)]
        command += ["--measure", *args.overrides, *overrides]
        output = subprocess.run(
            command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ).stdout
        speed, waiting, peak = (float(x) for x in output.split())
        first = first or (speed, peak)
        print(
            f"{name:26} {speed:8.2f} {speed / first[0]:6.2f} {waiting:8.1%} {peak:9.0f} {peak / first[1]:6.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
