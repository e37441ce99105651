"""`diffsal convert`: published checkpoints to folders of this package."""

import argparse
import os
import shlex
import textwrap
from pathlib import Path

from diffusers import DiffusionPipeline, ModelMixin

from ..conversion import convert_diffsal, convert_mvit_v2_s, convert_salfom, convert_umt, convert_vggish
from ..errors import InputError
from ..media.writers import complete_path, writing
from ..modeling import count_parameters
from ..pipelines import SaliencyPipeline
from ..presets import list_models

EXAMPLES = """\
examples:
  diffsal convert diffsal diffsal_av.pth released
  diffsal predict clip.mp4 --model released
  diffsal convert diffsal diffsal_dhf1k.pth released_video --video-only
  diffsal convert salfom salfom.pth salfom
"""


def add_parser(commands: argparse._SubParsersAction) -> None:
    """The command's arguments."""
    convert = commands.add_parser(
        "convert",
        help="make folders of this package from published checkpoints",
        description="Writes what a published checkpoint holds as a folder that --model takes or, of a backbone, as an "
        "encoder's folder. Nothing in the checkpoint is run: it may hold tensors only.",
        epilog=EXAMPLES,
    )
    kinds = convert.add_subparsers(dest="kind", required=True, metavar="KIND")
    diffsal = _add_kind(kinds, "diffsal", "a checkpoint that the authors of DiffSal released")
    diffsal.set_defaults(run=run_diffsal)
    diffsal.add_argument("--video-only", action="store_true", help="it is the network without sound")
    salfom = _add_kind(kinds, "salfom", "a checkpoint that the authors of SalFoM released")
    salfom.set_defaults(run=run_salfom)
    for name, convert_file, setting, description in (
        ("vggish", convert_vggish, "model.audio_pretrained",
         "the PyTorch port of Google's VGGish (vggish-10086976.pth)"),
        ("mvit_v2_s_mmaction", convert_mvit_v2_s, "model.pretrained",
         "mmaction2's MViTv2-S (mvit-small-p244_16x4x1_kinetics400-rgb)"),
        ("umt", convert_umt, "model.pretrained",
         "UnMasked Teacher's ViT-B/16 or ViT-L/16, fine-tuned on Kinetics (l16_ptk710_ftk710_ftk400_f16_res224.pth)"),
    ):  # fmt: skip
        encoder = _add_kind(kinds, name, description)
        encoder.set_defaults(run=run_encoder, convert_file=convert_file, setting=setting)


def _add_kind(kinds: argparse._SubParsersAction, name: str, description: str) -> argparse.ArgumentParser:
    parser = kinds.add_parser(name, help=description, description=f"Converts {description}.")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the published file")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what is made; must not exist yet")
    return parser


def run_diffsal(args: argparse.Namespace) -> int:
    """`diffsal convert diffsal`."""
    check_folder(args.folder)
    return write_pipeline(*convert_diffsal(args.checkpoint, args.video_only), args.folder)


def run_salfom(args: argparse.Namespace) -> int:
    """`diffsal convert salfom`."""
    check_folder(args.folder)
    return write_pipeline(*convert_salfom(args.checkpoint), args.folder)


def run_encoder(args: argparse.Namespace) -> int:
    """`diffsal convert` of a backbone."""
    check_folder(args.folder)
    encoder, unused = args.convert_file(args.checkpoint)
    return write(encoder, unused, args.folder, f"in a training run `{args.setting}` takes it")


def check_folder(folder: Path) -> None:
    """Refuses a folder that is there, before any work is done."""
    if os.path.lexists(folder):
        raise InputError(f"{folder} exists already; name a folder that does not")


def write_pipeline(pipe: SaliencyPipeline, unused: list[str], folder: Path) -> int:
    """Writes a pipeline's folder, and says how to use it."""
    name = f"./{folder}" if str(folder) in list_models() else str(folder)
    return write(pipe, unused, folder, f"`diffsal predict VIDEO --model {shlex.quote(name)}` predicts with it")


def write(model: DiffusionPipeline | ModelMixin, unused: list[str], folder: Path, hint: str) -> int:
    """Writes a folder, there whole or not at all, and says what became of the checkpoint."""
    with writing(folder), complete_path(folder) as temporary:
        model.save_pretrained(temporary)
    if unused:
        print(f"left out, since the network has no use for them, {len(unused)} tensors:")
        print(textwrap.fill(", ".join(unused), 100, initial_indent="  ", subsequent_indent="  "))
    networks = model.components.values() if isinstance(model, DiffusionPipeline) else [model]
    parameters = count_parameters(*(part for part in networks if isinstance(part, ModelMixin)))
    print(f"{folder}: {type(model).__name__}, {parameters / 1e6:.2f} M parameters; {hint}")
    return 0
