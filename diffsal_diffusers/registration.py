"""Makes diffusers' own loading find this package's classes.

`DiffusionPipeline.from_pretrained` looks the pipeline's class up in the module `diffusers`, and loads a component of
another library only if one of the base classes that `LOADABLE_CLASSES` names for it is an attribute of that library's
module. Neither is a documented interface: all of it is here, and the tests load both ways.
"""

import diffusers
from diffusers.pipelines import pipeline_loading_utils

LOADING_METHODS = ["save_pretrained", "from_pretrained"]
# A user's own encoder is declared in model_index.json under the name of her module, which has its base class as an
# attribute: the decorator that registers the encoder sees to it.
BASE_CLASSES = ("ModelMixin", "SchedulerMixin", "VideoEncoder", "AudioEncoder", "SaliencyProcessor")


def register_with_diffusers(*pipelines: type) -> None:
    """Registers the package as a library of components, and the pipeline classes by their names."""
    loadable = dict.fromkeys(BASE_CLASSES, LOADING_METHODS)
    pipeline_loading_utils.LOADABLE_CLASSES["diffsal_diffusers"] = loadable
    pipeline_loading_utils.ALL_IMPORTABLE_CLASSES.update(loadable)
    for pipeline in pipelines:
        setattr(diffusers, pipeline.__name__, pipeline)
