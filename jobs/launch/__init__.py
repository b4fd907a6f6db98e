"""The registry of launchers: adding one is a module and a line here."""

from jobs.launch import jsrun, srun, torchrun
from jobs.launch.contract import Launcher

LAUNCHERS: dict[str, Launcher] = {it.name: it for it in (srun.LAUNCHER, torchrun.LAUNCHER, jsrun.LAUNCHER)}
