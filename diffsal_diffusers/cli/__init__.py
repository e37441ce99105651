"""The `diffsal` command."""

import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from diffusers.utils import logging

from .. import __version__
from . import convert, evaluate, info, predict
from .common import Parser, explain

EXAMPLES = """\
examples:
  diffsal predict clip.mp4
  diffsal predict *.mp4 --output results --formats overlay,csv
"""


def build_parser() -> Parser:
    """The command's arguments."""
    parser = Parser(
        prog="diffsal",
        description="Predicts where people look in a video with sound.",
        epilog=EXAMPLES + "\n`diffsal COMMAND --help` tells more about each command.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    predict.add_parser(commands)
    evaluate.add_parser(commands)
    info.add_parsers(commands)
    convert.add_parser(commands)
    return parser


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keeps what libraries tell developers off the user's terminal; errors reach her as exceptions."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()  # of loading a folder; the maps have their own
    try:
        with warnings.catch_warnings():
            if not sys.warnoptions:
                warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


@contextmanager
def unwinding_signals() -> Iterator[None]:
    """A stop from outside unwinds the stack as Ctrl-C does, so that half-written files are removed."""
    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]  # nohup ignores SIGHUP
    for number in numbers:
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def main(argv: list[str] | None = None) -> int:
    """Runs the command: 0 if all that was asked for was written, 1 for bad input, 2 for bad usage, 130 for Ctrl-C."""
    args = build_parser().parse_args(argv)
    try:
        with quiet_libraries(), unwinding_signals():
            return args.run(args)
    except KeyboardInterrupt:
        print("diffsal: interrupted; no half-written file was kept", file=sys.stderr)
        return 130
    except Exception as error:
        print(f"diffsal: {explain(error, args.command)}", file=sys.stderr)
        return 1
