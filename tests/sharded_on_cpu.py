"""The training command with FSDP or DeepSpeed on the CPU, where accelerate itself would use neither.

`torchrun tests/sharded_on_cpu.py fsdp|deepspeed ARGUMENTS`: a stand-in for the configs of accelerate on GPUs.
"""

import os
import sys

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from diffsal_diffusers.training.train import main

kind = sys.argv.pop(1)
os.environ |= {
    "fsdp": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    },
    "deepspeed": {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
        "DS_ACCELERATOR": "cpu",
    },
}[kind]

construct = AcceleratorState.__init__


def constructed(self, *args, fsdp_plugin=None, deepspeed_plugin=None, **kwargs):
    """Chooses the kind that accelerate keeps for GPUs, once its own choice is made."""
    construct(self, *args, fsdp_plugin=fsdp_plugin, deepspeed_plugin=deepspeed_plugin, **kwargs)
    if fsdp_plugin is not None:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin
    elif deepspeed_plugin is not None:
        deepspeed_plugin.set_mixed_precision("no")
        deepspeed_plugin.select(_from_accelerator_state=True)
        self.distributed_type, self.deepspeed_plugins = DistributedType.DEEPSPEED, deepspeed_plugin
    else:
        return
    PartialState._shared_state["distributed_type"] = self.distributed_type


AcceleratorState.__init__ = constructed
sys.exit(main())
