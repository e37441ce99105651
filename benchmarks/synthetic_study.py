"""The paper's ablations on synthetic scenes: what sound, attention, interaction, loss, steps and ensembles are worth.

Trains a small network for each cell of the tables (under an hour on two CPU cores for all), scores it on scenes
that it never saw, prints the tables and writes them with curves to docs/synthetic_study.md. A study that was
interrupted goes on where it stopped. The scenes are generated: nobody ever looked at them.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from diffsal_diffusers.training.config import load_config

ROOT = Path(__file__).parent.parent
METRICS = ("cc", "nss", "auc_judd", "sim")
FRAMES = range(0, 50, 12)  # of each scene
SEEDS = (0, 1, 2)
CELLS = {
    "full": {},
    "eca": {"model.unet.interaction": "none"},
    "mim": {"model.unet.attention": "none"},
    "baseline": {"model.unet.attention": "none", "model.unet.interaction": "none"},
    "bilinear": {"model.unet.interaction": "bilinear"},
    "addition": {"model.unet.interaction": "addition"},
    "concatenation": {"model.unet.interaction": "concatenation"},
    "kl": {"loss": "{kl: 1.0}"},
    "ce": {"loss": "{ce: 1.0}"},
}
MODALITIES = {
    "picture and sound": ("av", "synthetic"),
    "picture": ("v", "synthetic"),
    "sound": ("a", "synthetic"),
    "picture and another scene's sound": ("av", "synthetic-shuffled"),
}
STEPS = (1, 2, 4, 8)
ENSEMBLES = (1, 4, 8)


def score(predict, dataset: str, scenes: int) -> dict[str, float]:
    """The mean scores of a predictor on test scenes, over frames and then scenes."""
    from diffsal_diffusers.data import load_saliency_dataset, open_recording
    from diffsal_diffusers.evaluation import VideoScorer
    from diffsal_diffusers.evaluation.protocol import mean

    results = []
    for entry in load_saliency_dataset(dataset, split="test").select(range(scenes)):
        recording = open_recording(entry)
        scorer = VideoScorer(recording, ["model"], METRICS)
        for index, prediction in zip(FRAMES, predict(recording, FRAMES), strict=False):
            scorer.score(index, recording.density(index), {"model": prediction})
        results.append(scorer.means()["model"])
    return {metric: mean(result[metric] for result in results) for metric in METRICS}


def run_cell(arguments: tuple) -> None:
    """Trains and scores one cell, in a process of its own with one thread."""
    cell, seed, folder, steps, scenes, full_evaluation = arguments
    torch.set_num_threads(1)
    from diffsal_diffusers.schedulers import create_scheduler
    from diffsal_diffusers.training.train import train

    from diffsal_diffusers import load_pipeline
    from diffsal_diffusers.evaluation import PipelinePredictor

    done = folder / f"{cell}-{seed}.json"
    if done.exists():
        return
    output, begin = folder / f"{cell}-{seed}", time.time()
    overrides = [f"{key}={value}" for key, value in CELLS[cell].items()]
    config = load_config("study", [*overrides, f"output={output}", f"seed={seed}", f"steps={steps}"])
    started = any((output / "checkpoints").glob("step-*[0-9]"))
    checkpoint = train(config, resume="latest" if started else None)
    seconds = time.time() - begin

    pipe = load_pipeline(checkpoint)
    pipe.set_progress_bar_config(disable=True)
    result = {"seconds": seconds, "modalities": {}, "steps": {}, "ensembles": {}}
    for name, (modality, dataset) in MODALITIES.items():
        if full_evaluation or name == "picture and sound":
            result["modalities"][name] = score(PipelinePredictor(pipe, modality), dataset, scenes)
    if full_evaluation:
        schedules = {
            "trailing": pipe.scheduler.config,
            "leading": {**pipe.scheduler.config, "timestep_spacing": "leading"},
        }
        for spacing, schedule in schedules.items():
            pipe.scheduler = create_scheduler("ddim", schedule)
            for number in STEPS:
                predict = PipelinePredictor(pipe, num_inference_steps=number)
                result["steps"][f"{spacing} {number}"] = score(predict, "synthetic", scenes)
        pipe.scheduler = create_scheduler("ddim", schedules["trailing"])
        for number in ENSEMBLES:
            predict = PipelinePredictor(pipe, num_inference_steps=4, ensemble_size=number)
            result["ensembles"][f"4 steps, {number}"] = score(predict, "synthetic", scenes)
    result["losses"] = read_losses(output)
    done.write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"{cell}, seed {seed}: CC {result['modalities']['picture and sound']['cc']:.3f}, {seconds:.0f} s", flush=True
    )


def read_losses(output: Path) -> list[tuple[int, float]]:
    """The logged losses of a run by step."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses = {}
    for file in sorted((output / "logs" / "training").glob("events*"), key=lambda file: file.stat().st_mtime):
        events = EventAccumulator(str(file))
        events.Reload()
        losses |= {event.step: event.value for event in events.Scalars("loss")}
    return sorted(losses.items())


def score_baselines(scenes: int) -> dict[str, dict[str, float]]:
    """The centre prior and the mean of training maps."""
    from diffsal_diffusers.data import load_saliency_dataset
    from diffsal_diffusers.evaluation import MeanMap
    from diffsal_diffusers.evaluation.predictors import centre

    average = MeanMap(load_saliency_dataset("synthetic", split="train").select(range(200)))
    return {name: score(p, "synthetic", scenes) for name, p in (("centre prior", centre), ("mean map", average))}


def spread(values: list[float]) -> str:
    """The mean, and over several seeds the standard deviation."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def table(title: str, rows: dict[str, list[dict[str, float]]]) -> str:
    """A table in Markdown; each row has the scores of one or several seeds."""
    lines = [f"| {title} | seeds | CC | NSS | AUC-J | SIM |", "|---|---:|---:|---:|---:|---:|"]
    for name, scores in rows.items():
        cells = (spread([one[metric] for one in scores]) for metric in METRICS)
        lines.append(f"| {name} | {len(scores)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def report(results: dict[str, list[dict]], baselines: dict[str, dict[str, float]]) -> dict[str, str]:
    """The tables by title."""
    full = results["full"]
    modality = {name: [one["modalities"][name] for one in full] for name in MODALITIES}
    modality |= {name: [scores] for name, scores in baselines.items()}

    def cells(names: dict[str, str]) -> dict[str, list[dict[str, float]]]:
        return {
            title: [one["modalities"]["picture and sound"] for one in results[cell]] for cell, title in names.items()
        }

    return {
        "1. One network, three modalities (Table 2)": table("input", modality),
        "2a. Components (Table 1)": table(
            "network", cells({"baseline": "pure convolution", "eca": "ECA", "mim": "MIM", "full": "ECA and MIM"})
        ),
        "2b. Interaction of sound and picture (Table 3)": table(
            "interaction",
            cells({"bilinear": "bilinear", "addition": "addition", "concatenation": "concatenation", "full": "MIM"}),
        ),
        "2c. Loss (Table 5)": table("loss", cells({"full": "MSE", "kl": "KL", "ce": "CE"})),
        "3a. Denoising steps and their spacing (Figure 4)": table(
            "DDIM", {name: [one["steps"][name] for one in full] for name in full[0]["steps"]}
        ),
        "3b. Ensembles": table(
            "maps averaged", {n: [one["ensembles"][n] for one in full] for n in full[0]["ensembles"]}
        ),
    }


def draw_curves(results: dict[str, list[dict]], file: Path) -> None:
    """Two panels: the loss over training, and CC over denoising steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6))
    for cell, runs in results.items():
        if cell in ("full", "baseline", "eca", "mim"):
            steps, losses = zip(*runs[0]["losses"], strict=True)
            left.plot(steps, losses, label=cell, linewidth=1)
    left.set(yscale="log", xlabel="training step", ylabel="MSE", title="training loss, seed 0")
    left.legend()
    for spacing in ("trailing", "leading"):
        values = [[one["steps"][f"{spacing} {n}"]["cc"] for one in results["full"]] for n in STEPS]
        errors = [statistics.stdev(v) if len(v) > 1 else 0 for v in values]
        right.errorbar(STEPS, [statistics.mean(v) for v in values], errors, label=spacing, marker="o", capsize=3)
    right.set(
        xscale="log", xticks=STEPS, xticklabels=STEPS, xlabel="denoising steps", ylabel="CC", title="CC over steps"
    )
    right.minorticks_off()
    right.legend()
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})


def check_settings(folder: Path, settings: dict) -> None:
    """Refuses a folder of results of other settings, which would be shown as those of these."""
    settings["config"] = asdict(load_config("study"))
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "settings.json"
    if file.exists():
        if json.loads(file.read_text()) != settings:
            sys.exit(f"{folder} holds results of other settings; give another --folder, or delete it")
    elif any(folder.glob("*.json")):
        sys.exit(f"{folder} holds results of unknown settings; give another --folder, or delete it")
    else:
        file.write_text(json.dumps(settings, indent=2) + "\n")


def main() -> None:
    """Runs what is not done yet, then prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/synthetic_study"), help="of the runs")
    parser.add_argument("--steps", type=int, default=1000, help="training steps of each run (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=30, help="test scenes (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="seeds of the full model (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time (default: %(default)s)")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the page goes (default: docs)")
    args = parser.parse_args()
    check_settings(args.folder, {"steps": args.steps, "scenes": args.scenes, "cells": CELLS})
    seeds = {cell: range(args.seeds if cell == "full" else 1) for cell in CELLS}
    jobs = [(cell, s, args.folder, args.steps, args.scenes, cell == "full") for cell in CELLS for s in seeds[cell]]
    os.environ["OMP_NUM_THREADS"] = "1"
    with multiprocessing.get_context("spawn").Pool(args.jobs, maxtasksperchild=1) as pool:
        for _ in pool.imap_unordered(run_cell, jobs, chunksize=1):
            pass
    results = {
        cell: [json.loads((args.folder / f"{cell}-{s}.json").read_text()) for s in seeds[cell]] for cell in CELLS
    }
    tables = report(results, score_baselines(args.scenes))
    minutes = sum(run["seconds"] for runs in results.values() for run in runs) / 60
    command = (
        f"python benchmarks/{Path(__file__).name} --steps {args.steps} --scenes {args.scenes} --seeds {args.seeds}"
    )
    page = [
        "# The paper's ablations on synthetic scenes", "",
        "The scenes are generated (`diffsal_diffusers/data/synthetic.py`): nobody ever looked at them, and what holds",
        "here need not hold for people. Every run trains `training/configs/study.yaml`, a small network, from random",
        f"weights for {args.steps} steps of 8 clips; scores are means over {args.scenes} scenes not trained",
        f"on, {len(FRAMES)} frames each, with one denoising step unless a table says otherwise. ± is the standard",
        f"deviation over seeds 0 to {args.seeds - 1}; cells with one seed have seed 0. Training took {minutes:.0f}",
        f"minutes of one core in all. Made by `{command}`.", "",
        "![training loss and CC over denoising steps](synthetic_study.svg)", "",
    ]  # fmt: skip
    for title, text in tables.items():
        print(f"\n{title}\n{text}")
        page += [f"## {title}", "", text, ""]
    args.docs.mkdir(parents=True, exist_ok=True)
    draw_curves(results, args.docs / "synthetic_study.svg")
    reading = args.docs / "synthetic_study_reading.md"
    if reading.exists() and (args.steps, args.scenes, args.seeds) == (1000, 30, 3):  # what it was written about
        page += [reading.read_text()]
    (args.docs / "synthetic_study.md").write_text("\n".join(page).rstrip() + "\n")
    print(f"\n{args.docs / 'synthetic_study.md'}", file=sys.stderr)


if __name__ == "__main__":
    main()
