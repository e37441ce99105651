"""`diffsal evaluate`: scores of a model, of maps made elsewhere and of baselines on a data set."""

import argparse
import sys
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState

from .. import __version__
from ..data import SALIENCY_DATASETS, find_saliency_dataset, load_saliency_dataset, open_recording
from ..errors import InputError
from ..evaluation import Evaluation, FolderPredictor, MeanMap, PipelinePredictor, write_report
from ..evaluation.predictors import BASELINES, MODALITIES, centre, spectral_residual, uniform
from ..evaluation.runner import skipped_lines
from ..metrics import METRICS
from .common import add_inference_arguments, add_model_argument, positive_int, prepare_model

DEFAULT_METRICS = ["cc", "nss", "auc_judd", "sim"]
SHOWN = 20  # lines of a long list on the terminal
EXAMPLES = """\
writes into DIR:
  scores.json     the scores, by fold too
  per_video.csv   the scores of each video
  table.md        the scores beside the published ones of the same data set, where there are any
  examples.png    frames, ground truth and predictions

An interrupted evaluation goes on where it stopped when it is started again.

examples:
  diffsal evaluate --model my_model --dataset AVAD --root data
  diffsal evaluate --model my_model --dataset DIEM --root data --steps 2 --frame-step 10 --modality v
  diffsal evaluate --predictions maps --dataset ETMD --root data --fold 1
  diffsal evaluate --model my_model --dataset synthetic
  accelerate launch --num_processes 4 -m diffsal_diffusers.cli evaluate --model my_model --dataset AVAD --root data
"""


def _names(what: str, known):
    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"there is no {what} {name!r}; there are {', '.join(known)}")
        return list(dict.fromkeys(names))

    return parse


def folds(text: str) -> list[int]:
    """The argument of --fold."""
    if not all(part.isdecimal() for part in text.split(",")):
        raise argparse.ArgumentTypeError(f"numbers with commas between are needed, as 1,2,3, got {text!r}")
    return list(dict.fromkeys(int(part) for part in text.split(",")))


def add_parser(commands: argparse._SubParsersAction) -> None:
    """The command's arguments."""
    parser = commands.add_parser(
        "evaluate",
        help="score a model on a data set",
        description="Scores a model, or maps made elsewhere, on a data set by the field's protocol, beside baselines.",
        epilog=EXAMPLES,
        usage="diffsal evaluate --dataset NAME --root DIR [--model M | --predictions DIR] [options]",
    )
    parser.set_defaults(run=run_evaluate)
    parser.add_argument("--dataset", required=True, metavar="NAME", help=", ".join(SALIENCY_DATASETS))
    parser.add_argument("--root", type=Path, metavar="DIR", help="the data set's folder; synthetic scenes need none")
    parser.add_argument("--split", metavar="NAME", help="train, validation or test; default: test where there is one")
    parser.add_argument(
        "--fold", type=folds, metavar="LIST", help="folds, with commas between; default: all that the data set has"
    )
    add_model_argument(parser)
    parser.add_argument("--predictions", type=Path, metavar="DIR", help="instead of a model: VIDEO/*.png or VIDEO.mp4")
    parser.add_argument(
        "--modality", choices=MODALITIES, default="av", help="what the model gets: av, v or a; default: %(default)s"
    )
    parser.add_argument(
        "--metrics", type=_names("metric", METRICS), default=DEFAULT_METRICS, metavar="LIST",
        help=f"out of {','.join(METRICS)}; default: {','.join(DEFAULT_METRICS)}",
    )  # fmt: skip
    parser.add_argument(
        "--baselines", type=_names("baseline", BASELINES), default=list(BASELINES), metavar="LIST",
        help=f"out of {','.join(BASELINES)}, or '' for none; default: all",
    )  # fmt: skip
    parser.add_argument("--frame-step", type=positive_int, default=1, metavar="N", help="score every N-th frame only")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="the first N videos of each fold only")
    add_inference_arguments(parser)
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: evaluation/DATASET_MODEL")
    parser.add_argument(
        "--allow-missing", action="store_true", help="score what is there of --predictions, and end well"
    )
    parser.add_argument("--strict", action="store_true", help="end at a broken file of the data set; default: skip it")


def run_evaluate(args: argparse.Namespace) -> int:
    """`diffsal evaluate`."""
    # Processes wait for the slowest of them, which may have hours more to do.
    state = PartialState(cpu=args.device == "cpu", timeout=timedelta(days=7))
    dataset = find_saliency_dataset(args.dataset)
    if args.root is None and dataset.needs_root:
        raise InputError(f"--dataset {dataset.name} needs --root, the folder that it lies in")
    split = args.split or ("test" if "test" in dataset.splits else dataset.splits[-1])
    by_fold = {
        fold: list(load_saliency_dataset(dataset.name, args.root, split=split, fold=fold))
        for fold in (args.fold or dataset.folds)
    }
    whole = {entry["video_id"] for entries in by_fold.values() for entry in entries}
    by_fold = {fold: entries[: args.limit] for fold, entries in by_fold.items()}
    entries = [entry for entries in by_fold.values() for entry in entries]

    settings = {
        "dataset": dataset.name, "root": None if args.root is None else str(args.root.resolve()), "split": split,
        "metrics": args.metrics, "baselines": args.baselines, "frame_step": args.frame_step, "seed": args.seed,
    }  # fmt: skip
    predictors, titles = {}, {}
    if args.predictions is not None:
        name = args.predictions.name or "predictions"
        predictors["predictions"] = FolderPredictor(args.predictions)
        titles["predictions"] = name
        settings |= {"predictions": str(args.predictions.resolve()), "allow_missing": args.allow_missing}
        report_missing(predictors["predictions"], entries, whole, args)
    else:
        pipe = prepare_model(args)
        pipe.set_progress_bar_config(disable=True)
        name = Path(args.model).name
        predictors["model"] = PipelinePredictor(
            pipe,
            args.modality,
            args.seed,
            num_inference_steps=args.steps,
            batch_size=args.batch_size,
            ensemble_size=args.ensemble,
        )
        titles["model"] = f"{name} ({args.modality})"
        settings |= {
            "model": str(Path(args.model).resolve()) if Path(args.model).is_dir() else args.model,
            "modality": args.modality,
            "steps": args.steps or pipe.config.default_num_inference_steps,
            "scheduler": type(pipe.scheduler).__name__,
            "ensemble": args.ensemble,
            "dtype": args.dtype,
        }
    baselines = {"centre": centre, "uniform": uniform, "spectral_residual": spectral_residual}
    if "mean" in args.baselines:
        try:
            training = {
                fold: load_saliency_dataset(dataset.name, args.root, split="train", fold=fold) for fold in by_fold
            }
        except InputError as error:
            print(f"note: no row for the mean training map: {error}", file=sys.stderr)
        else:
            baselines["mean"] = MeanMap(training, {e["video_id"]: fold for fold in by_fold for e in by_fold[fold]})
    for baseline in args.baselines:
        if baseline in baselines:
            predictors[baseline], titles[baseline] = baselines[baseline], BASELINES[baseline]

    folder = args.output or Path("evaluation", f"{dataset.name}_{name}")
    evaluation = Evaluation(
        folder, predictors, args.metrics, settings, frame_step=args.frame_step, seed=args.seed, strict=args.strict
    )
    done = {result["video_id"]: result for result in evaluation.run(entries)}
    results = {str(fold): [done[e["video_id"]] for e in entries] for fold, entries in by_fold.items()}
    if not state.is_main_process:
        return 0
    if not any(result["scores"] for result in done.values()):
        print_lines(skipped_lines(done.values()))
        raise InputError(f"nothing could be scored of the {len(done)} videos")
    print(write_report(folder, dataset.name, results, titles, args.metrics, settings | {"version": __version__}))
    skipped = skipped_lines(done.values())
    if skipped:
        print(f"skipped: {len(skipped)}", file=sys.stderr)
        print_lines(skipped)
    print(f"{len(done)} videos; {folder / 'table.md'}, scores.json, per_video.csv, examples.png", file=sys.stderr)
    return 0


def report_missing(predictor: FolderPredictor, entries: list[dict], whole: set[str], args: argparse.Namespace) -> None:
    """Lists videos and frames without a prediction, and predictions without a video.

    Raises:
        InputError: there are some, and --allow-missing is not set.
    """
    problems = []
    for entry in entries:
        recording = open_recording(entry)
        problems += predictor.missing(recording, range(0, recording.num_frames, args.frame_step))
    problems += [f"{name}: a prediction, but no ground truth" for name in sorted(predictor.sources.keys() - whole)]
    if not problems:
        return
    if PartialState().is_main_process:
        print_lines(problems)
    if not args.allow_missing:
        raise InputError(
            f"{len(problems)} mismatches between {args.predictions} and the ground truth; "
            "--allow-missing scores the rest"
        )


def print_lines(lines: list[str]) -> None:
    """The first of many lines, on the error stream."""
    print(*lines[:SHOWN], sep="\n", file=sys.stderr)
    if len(lines) > SHOWN:
        print(f"... and {len(lines) - SHOWN} more", file=sys.stderr)
