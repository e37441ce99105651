"""Is it the refinement that pays? diffsal-tiny's recipe against regression, the same network made to tell the map at
once, on the same data from several seeds.

    python benchmarks/refinement.py --root OSIE --pretrained efficientnet-lite0-57934424.pth --output runs/refinement

Trains both kinds from each seed, in short: one stage, smaller frames (96x160), a frozen video encoder. `--kind` trains
one kind only, so that two processes can share the work, and what is finished is not trained again. Then prints the
tables of `benchmarks/denoising.py`, over the seeds.

Regression is training at the last timestep only, where the noisy map is pure noise and tells nothing of the true one,
and prediction in one step. Both kinds see the same clips; refinement computes two passes for each, regression one.
"""

import argparse
import json
from pathlib import Path

import denoising
from diffsal_diffusers.training.config import load_config
from diffsal_diffusers.training.train import train

KINDS = {
    "refinement": [],
    "regression": ["self_aligned=0", "first_estimate=0", "timestep_shift=1e9"],
}


def train_one(kind: str, seed: int, args: argparse.Namespace) -> Path:
    """Trains a run, unless it is finished.

    Returns:
        its last checkpoint.
    """
    folder = args.output / f"{kind}-{args.steps}-{seed}"
    last = folder / "checkpoints" / f"step-{args.steps:08d}"
    if not last.exists():
        data = [{"name": "OSIE", "root": str(args.root), "weight": 3.0}, {"name": "synthetic"}]
        overrides = [
            f"output={folder}", f"seed={seed}", f"steps={args.steps}", f"model.pretrained={args.pretrained}",
            f"data={json.dumps(data)}", "model.frame_size=[96, 160]",
            "lr_schedule=cosine", f"checkpoint_every={args.steps}", "tracker=none", *KINDS[kind],
        ]  # fmt: skip
        train(load_config("tiny_sound", overrides))
    return last


def main() -> None:
    """Trains, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="OSIE's folder")
    parser.add_argument("--pretrained", type=Path, required=True, help="the weights of EfficientNet-Lite0")
    parser.add_argument("--output", type=Path, default=Path("runs/refinement"), help="default: %(default)s")
    parser.add_argument("--kind", choices=KINDS, help="train this kind only, and print nothing")
    parser.add_argument("--seeds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=800, help="of training; default: %(default)s")
    args = parser.parse_args()

    runs = {
        kind: [train_one(kind, seed, args) for seed in range(args.seeds)]
        for kind in KINDS
        if args.kind in (None, kind)
    }
    if args.kind is None:
        for kind, models in runs.items():
            print(f"\n{kind}, {args.steps} training steps")
            only = ["--steps", "1", "--ensembles"] if kind == "regression" else []
            denoising.main([*map(str, models), "--root", str(args.root), "--seeds", "1", *only])


if __name__ == "__main__":
    main()
