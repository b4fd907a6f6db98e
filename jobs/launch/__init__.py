"""The registry of launchers: adding one is a module and a line here."""

from jobs.launch import deepspeed, flux, hydra, jsrun, openmpi, pdsh, srun, torchrun
from jobs.launch.contract import Launcher

_MODULES = (srun, torchrun, jsrun, openmpi, hydra, flux, pdsh, deepspeed)
LAUNCHERS: dict[str, Launcher] = {module.LAUNCHER.name: module.LAUNCHER for module in _MODULES}
