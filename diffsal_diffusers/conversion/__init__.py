"""Released checkpoints to folders of this package."""

from .backbones import convert_mvit_v2_s, convert_vggish
from .diffsal import convert_diffsal, released_pipeline
from .salfom import convert_salfom, convert_umt

__all__ = [
    "convert_diffsal",
    "convert_mvit_v2_s",
    "convert_salfom",
    "convert_umt",
    "convert_vggish",
    "released_pipeline",
]
