"""The registry of launchers: adding one is a module and a line here."""

from jobs.launch import srun, torchrun
from jobs.launch.contract import Launcher

LAUNCHERS: dict[str, Launcher] = {launcher.name: launcher for launcher in (srun.LAUNCHER, torchrun.LAUNCHER)}
