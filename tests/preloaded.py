"""What a rank imports, seconds of it: loaded once, in the process that the tests' ranks are forked from."""

import importlib
import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is loaded

for module in (
    "deepspeed.runtime.zero.muon.muon_optimizer",  # loads torch's compiler, as the first optimizer would otherwise
    "deepspeed.runtime.zero.parameter_offload",
    "torch.utils.tensorboard",
    "neox.checkpoint.start",
    "neox.data.parts",
    "neox.train.kernels",
    "neox.train.run",
):
    importlib.import_module(module)
