"""What the commands share: the parser, kinds of arguments, models, devices, and how errors are told."""

import argparse
import sys

import torch

from ..errors import InputError
from ..pipelines import SaliencyPipeline
from ..presets import DEFAULT_MODEL, UNTRAINED_MODELS, list_models, load_pipeline
from ..schedulers import SCHEDULERS, create_scheduler

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Parser(argparse.ArgumentParser):
    """Shows examples as they are written, and says what is wrong in one line, without the usage."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs)

    def error(self, message: str):
        """Ends the program."""
        self.exit(2, f"{self.prog}: {message} (`{self.prog} --help` tells more)\n")


def positive_int(text: str) -> int:
    """An argument that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a positive whole number is needed, got {text!r}")
    return int(text)


def seed(text: str) -> int:
    """The argument of --seed, as far as torch takes it."""
    if not text.isdecimal() or int(text) >= 2**64:
        raise argparse.ArgumentTypeError(f"a whole number from 0 to 2^64 - 1 is needed, got {text!r}")
    return int(text)


def not_negative(text: str) -> float:
    """An argument in seconds. A billion is thirty years, and what the clocks in media files can still count."""
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1e9:
        raise argparse.ArgumentTypeError(f"a number from 0 to a billion is needed, got {text!r}")
    return number


def positive(text: str) -> float:
    """An argument in seconds, or per second."""
    number = not_negative(text)
    if number == 0:
        raise argparse.ArgumentTypeError(f"a number above 0 is needed, got {text!r}")
    return number


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Adds --model."""
    parser.add_argument(
        "--model", default=DEFAULT_MODEL, metavar="NAME_OR_FOLDER",
        help=f"{', '.join(list_models())}, or a model's folder (one of that name: ./tiny); default: {DEFAULT_MODEL}",
    )  # fmt: skip


def add_inference_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what decides how a model is run, from --steps to --dtype."""
    parser.add_argument("--steps", type=positive_int, metavar="N", help="denoising steps; default: the model's own")
    samplers = f"{', '.join(SCHEDULERS)}; default: the model's own"
    parser.add_argument("--scheduler", choices=SCHEDULERS, metavar="NAME", help=samplers)
    ensemble = "average the maps from N different noises; default: %(default)s"
    parser.add_argument("--ensemble", type=positive_int, default=1, metavar="N", help=ensemble)
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="of the noise; default: %(default)s")
    batch = "maps computed together; less needs less memory; default: %(default)s"
    parser.add_argument("--batch-size", type=positive_int, default=4, metavar="N", help=batch)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps; default: %(default)s")
    dtypes = f"{', '.join(DTYPES)}; default: %(default)s"
    parser.add_argument("--dtype", choices=DTYPES, default="float32", metavar="NAME", help=dtypes)


def load_model(name: str) -> SaliencyPipeline:
    """The model of --model, with a word on the untrained ones."""
    pipe = load_pipeline(name)
    if name in UNTRAINED_MODELS:
        print(
            f"note: {name} is UNTRAINED: its weights are random, and its maps show that the program works, "
            "not where people look",
            file=sys.stderr,
        )
    return pipe


def prepare_model(args: argparse.Namespace) -> SaliencyPipeline:
    """The model of --model on --device, in --dtype, with --scheduler."""
    device = choose_device(args.device)
    pipe = load_model(args.model).to(device)
    if args.dtype != "float32":
        pipe.to(DTYPES[args.dtype])
    of_denoising = {"--steps": args.steps, "--scheduler": args.scheduler, "--ensemble": args.ensemble > 1}
    for option, value in of_denoising.items():
        if value and "scheduler" not in pipe.components:
            raise InputError(f"{option} is for models that denoise, and {args.model} predicts in one pass")
    if args.scheduler:
        pipe.scheduler = create_scheduler(args.scheduler, pipe.scheduler.config)
    return pipe


def choose_device(name: str) -> torch.device:
    """The device of --device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()  # also refuses `meta`, which only pretends to compute
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name!r} cannot be used here; cpu always can") from error
    return torch.device(name)


def explain(error: Exception, where: str) -> str:
    """One sentence on what went wrong. What is no [`InputError`] is a disk, a device, or a model that misleads."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return f"{where}: the memory is not enough; a smaller --batch-size needs less"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or where}: {error.strerror}"
    return f"{where}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
