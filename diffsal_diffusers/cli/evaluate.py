"""`diffsal evaluate`: scores of a model, of maps made elsewhere and of baselines on a data set."""

import argparse
import sys
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState

from .. import __version__
from ..data import (
    SALIENCY_DATASETS,
    SaliencyDataset,
    find_saliency_dataset,
    load_saliency_dataset,
    open_recording,
)
from ..errors import InputError
from ..evaluation import Evaluation, FolderPredictor, MeanMap, PipelinePredictor, write_report
from ..evaluation.predictors import BASELINES, MODALITIES, Predictor, centre, spectral_residual, uniform
from ..evaluation.protocol import HUMANS
from ..evaluation.report import PUBLISHED
from ..evaluation.runner import fingerprint, skipped_lines
from ..metrics import METRICS
from ..presets import DEFAULT_MODEL, list_pretrained, pretrained
from .common import add_inference_arguments, add_model_argument, choose_device, positive_int, prepare_model

DEFAULT_METRICS = ["cc", "nss", "auc_judd", "sim"]
SHOWN = 20  # lines of a long list on the terminal
EXAMPLES = """\
writes into DIR:
  scores.json     the scores, by fold too
  per_video.csv   the scores of each video
  table.md        the scores beside the published ones of the same data set, where there are any
  examples.png    frames, ground truth and predictions
  worst.png       the same of the videos that the model does worst on, by the first of --metrics

An interrupted evaluation goes on where it stopped when it is started again.

examples:
  diffsal evaluate --model tiny --dataset OSIE-still --root osie
  diffsal evaluate --model my_model --dataset AVAD --root data
  diffsal evaluate --model my_model --dataset DIEM --root data --steps 2 --frame-step 10 --modality v
  diffsal evaluate --predictions maps --dataset ETMD --root data --fold 1
  diffsal evaluate --model my_model --dataset synthetic
  accelerate launch -m diffsal_diffusers.cli evaluate --model my_model --dataset AVAD --root data
  torchrun --standalone --nproc_per_node 2 -m diffsal_diffusers.cli evaluate --model my_model --dataset synthetic
"""


def _names(what: str, known: Iterable[str], may_be_none: bool = False) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"there is no {what} {name!r}; there are {', '.join(known)}")
        if not names and not may_be_none:
            raise argparse.ArgumentTypeError(f"at least one is needed, out of {', '.join(known)}")
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
    parser.set_defaults(model=None)
    parser.add_argument("--predictions", type=Path, metavar="DIR", help="instead of a model: VIDEO/*.png or VIDEO.mp4")
    parser.add_argument(
        "--modality", choices=MODALITIES, help="what the model gets: av, v or a; default: all that it takes"
    )
    parser.add_argument(
        "--metrics", type=_names("metric", METRICS), default=DEFAULT_METRICS, metavar="LIST",
        help=f"out of {','.join(METRICS)}; default: {','.join(DEFAULT_METRICS)}",
    )  # fmt: skip
    parser.add_argument(
        "--baselines", type=_names("baseline", BASELINES, may_be_none=True), default=list(BASELINES), metavar="LIST",
        help=f"out of {','.join(BASELINES)} (humans: where the data tell who looked), or '' for none; default: all",
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
    state = PartialState(cpu=choose_device(args.device).type == "cpu", timeout=timedelta(days=7))
    check_options(args)
    dataset = find_saliency_dataset(args.dataset)
    if args.root is None and dataset.needs_root:
        raise InputError(f"--dataset {dataset.name} needs --root, the folder that it lies in")
    split = args.split or ("test" if "test" in dataset.splits else dataset.splits[-1])
    chosen = {
        fold: list(load_saliency_dataset(dataset.name, args.root, split=split, fold=fold))[: args.limit]
        for fold in args.fold or dataset.folds
    }

    # 1. What is scored.
    if args.predictions is not None:
        name, title = "predictions", args.predictions.resolve().name
        predictor = FolderPredictor(args.predictions)
        report_problems(predictor, dataset, split, chosen, args)
        settings = {"predictions": str(args.predictions.resolve()), "state": fingerprint(args.predictions)}
    else:
        args.model = args.model or DEFAULT_MODEL
        pipe = prepare_model(args)
        pipe.set_progress_bar_config(disable=True)
        predictor = PipelinePredictor(
            pipe, args.modality, args.seed,
            num_inference_steps=args.steps, batch_size=args.batch_size, ensemble_size=args.ensemble,
        )  # fmt: skip
        name, title = "model", f"{Path(args.model).name} ({predictor.modality})"
        shipped = args.model in list_pretrained()
        folder = pretrained(args.model) if shipped else Path(args.model)
        settings = {
            "model": str(folder.resolve()) if folder.is_dir() and not shipped else args.model,
            "state": fingerprint(folder) if folder.is_dir() else __version__,
            "modality": predictor.modality,
            "steps": args.steps or pipe.config.get("default_num_inference_steps"),
            "scheduler": type(pipe.scheduler).__name__ if "scheduler" in pipe.components else None,
            "ensemble": args.ensemble,
            "dtype": args.dtype,
        }
    predictors: dict[str, Predictor] = {name: predictor}
    titles = {name: title}
    baselines = {"centre": centre, "uniform": uniform, "spectral_residual": spectral_residual}
    means = load_training_sets(dataset.name, args.root, chosen) if "mean" in args.baselines else {}
    for baseline in args.baselines:
        if baseline == HUMANS:
            titles[baseline] = BASELINES[baseline]  # they are no predictor: their ground truth is their own
        elif baseline in baselines:
            predictors[baseline], titles[baseline] = baselines[baseline], BASELINES[baseline]
        elif means:
            predictors[baseline], titles[baseline] = next(iter(means.values())), BASELINES[baseline]

    # 2. Score it.
    settings |= {
        "dataset": dataset.name, "root": None if args.root is None else str(args.root.resolve()), "split": split,
        "metrics": args.metrics, "predictors": list(titles), "frame_step": args.frame_step, "seed": args.seed,
        "version": __version__,
    }  # fmt: skip
    folder = args.output or Path("evaluation", f"{dataset.name}_{title.replace(' (', '_').rstrip(')')}")
    evaluation = Evaluation(
        folder, args.metrics, settings, frame_step=args.frame_step, humans=HUMANS in titles,
        seed=args.seed, strict=args.strict,
    )  # fmt: skip
    results = {}
    for fold, entries in chosen.items():
        of_fold = predictors | ({"mean": means[fold]} if means else {})
        fold_name = "all" if fold is None else str(fold)
        results[fold_name] = evaluation.run(entries, of_fold, fold_name)

    # 3. Tell.
    if not state.is_main_process:
        return 0
    skipped = skipped_lines(result for of_fold in results.values() for result in of_fold)
    scored = sum(result["frames"] > 0 for of_fold in results.values() for result in of_fold)
    if not scored:
        print_lines(skipped)
        raise InputError(f"nothing could be scored of {sum(map(len, results.values()))} videos")
    whole = split == "test" and args.limit is None and set(chosen) == set(dataset.folds)
    settings |= {"limit": args.limit, "folds": list(results)}
    print(write_report(folder, dataset.name if whole else None, results, titles, args.metrics, settings))
    if not whole and dataset.name in PUBLISHED:
        print("note: not the whole test split, so the published scores are not shown beside it", file=sys.stderr)
    if skipped:
        print(f"skipped: {len(skipped)}", file=sys.stderr)
        print_lines(skipped)
    print(
        f"{scored} videos; {folder / 'table.md'}, scores.json, per_video.csv, examples.png, worst.png", file=sys.stderr
    )
    return 0


def check_options(args: argparse.Namespace) -> None:
    """Refuses options that contradict each other.

    Raises:
        InputError: names the two.
    """
    if args.predictions is not None:
        of_model = {"model": None, "modality": None, "steps": None, "scheduler": None, "ensemble": 1}
        for name, default in of_model.items():
            if getattr(args, name) != default:
                raise InputError(f"--{name} is for a model; leave it out with --predictions")
    elif args.allow_missing:
        raise InputError("--allow-missing is for --predictions")
    if args.strict and args.allow_missing:
        raise InputError("--strict ends at what --allow-missing allows; leave one of them out")


def load_training_sets(name: str, root: Path | None, folds: Iterable[int | None]) -> dict[int | None, MeanMap]:
    """The mean training map of each fold; none, with a note, where there is no training set."""
    try:
        return {fold: MeanMap(load_saliency_dataset(name, root, split="train", fold=fold)) for fold in folds}
    except InputError as error:
        print(f"note: no row for the mean training map: {error}", file=sys.stderr)
        return {}


def report_problems(
    predictor: FolderPredictor,
    dataset: SaliencyDataset,
    split: str,
    folds: Mapping[int | None, list[dict]],
    args: argparse.Namespace,
) -> None:
    """Lists videos and frames without a prediction, and predictions without a video.

    Raises:
        InputError: there are some, and --allow-missing is not set.
    """
    problems, known = [], set()
    for entry in {entry["video_id"]: entry for entries in folds.values() for entry in entries}.values():
        try:
            recording = open_recording(entry)
        except InputError as error:
            problems.append(str(error))
        else:
            problems += predictor.problems(recording, range(0, recording.num_frames, args.frame_step))
    for fold in dataset.folds:
        known |= set(load_saliency_dataset(dataset.name, args.root, split=split, fold=fold)["video_id"])
    problems += [f"{name}: a prediction, but no ground truth" for name in sorted(predictor.sources.keys() - known)]
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
