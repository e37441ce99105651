"""What denoising steps and ensembles are worth: scores by number of steps, with their spread over models and seeds.

    python benchmarks/denoising.py --root OSIE                                  # the model that ships, three seeds
    python benchmarks/denoising.py --root OSIE --seeds 1 runs/a0 runs/a1 runs/a2  # one recipe trained from three seeds

Prints a table: means over the models given and over the seeds of the noise, and the standard deviation of these runs.
Below it, how much better each row is than the first one, in the same model with the same seed: the mean and the
smallest of these differences.
"""

import argparse
import statistics
from pathlib import Path

from tqdm.auto import tqdm

from diffsal_diffusers import DiffSalPipeline, load_pipeline
from diffsal_diffusers.data import load_saliency_dataset, open_recording
from diffsal_diffusers.evaluation import PipelinePredictor, VideoScorer

METRICS = ("cc", "nss", "auc_judd", "sim")


def score(pipe: DiffSalPipeline, entries: list[dict], frame_step: int, seed: int, **settings) -> dict[str, float]:
    """The mean over videos of each metric."""
    predict, results = PipelinePredictor(pipe, seed=seed, **settings), []
    for entry in entries:
        recording = open_recording(entry)
        frames = range(0, recording.num_frames, frame_step)
        scorer = VideoScorer(recording, ["model"], METRICS)
        for index, prediction in zip(frames, predict(recording, frames), strict=True):
            scorer.score(index, recording.density(index), {"model": prediction})
        results.append(scorer.means()["model"])
    return {metric: statistics.fmean(result[metric] for result in results) for metric in METRICS}


def row(title: str, columns: list[str]) -> str:
    """A line of a Markdown table."""
    return f"| {title} | " + " | ".join(columns) + " |"


def main(argv: list[str] | None = None) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["tiny"], help="names or folders; default: tiny")
    parser.add_argument("--dataset", default="OSIE", help="default: %(default)s")
    parser.add_argument("--root", type=Path, help="the data set's folder")
    parser.add_argument("--split", default="validation", help="default: %(default)s")
    parser.add_argument("--limit", type=int, help="the first so many videos only")
    parser.add_argument("--frame-step", type=int, default=8, help="score every so many frames; default: %(default)s")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8], help="default: 1 2 4 8")
    parser.add_argument(
        "--ensembles", type=int, nargs="*", default=[8], help="sizes, at the default steps; default: 8"
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the noise; default: %(default)s")
    args = parser.parse_args(argv)

    entries = list(load_saliency_dataset(args.dataset, args.root, split=args.split))[: args.limit]
    settings = {f"{n} step{'s' if n > 1 else ''}": {"num_inference_steps": n} for n in args.steps}
    settings |= {f"mean of {n} samples": {"ensemble_size": n} for n in args.ensembles}
    runs = {title: [] for title in settings}
    bar = tqdm(total=len(args.models) * args.seeds * len(settings), unit="run")
    for model in args.models:
        pipe = load_pipeline(model)
        pipe.set_progress_bar_config(disable=True)
        for seed in range(args.seeds):
            for title, chosen in settings.items():
                runs[title].append(score(pipe, entries, args.frame_step, seed, **chosen))
                bar.update()
    bar.close()

    steps = pipe.config.default_num_inference_steps
    print(f"{args.dataset}, {args.split}: {len(entries)} videos; models x seeds: {len(args.models)} x {args.seeds}; "
          f"samples of {steps} steps")  # fmt: skip
    print(row("", list(METRICS)), "|---|" + "---:|" * len(METRICS), sep="\n")
    for title, results in runs.items():
        values = [[result[metric] for result in results] for metric in METRICS]
        spread = [f" ± {statistics.stdev(v):.4f}" if len(v) > 1 else "" for v in values]
        print(row(title, [f"{statistics.fmean(v):.4f}{s}" for v, s in zip(values, spread, strict=True)]))
    if len(runs) < 2:
        return
    first, *others = runs
    print(f"\nbetter than {first} by (mean, smallest of {len(runs[first])} runs):")
    for title in others:
        gains = [
            [result[metric] - base[metric] for result, base in zip(runs[title], runs[first], strict=True)]
            for metric in METRICS
        ]
        print(row(title, [f"{statistics.fmean(g):+.4f}, {min(g):+.4f}" for g in gains]))


if __name__ == "__main__":
    main()
