"""The registry of schedulers: adding one is a module and a line here."""

from jobs.scheduler import flux, local, lsf, slurm
from jobs.scheduler.contract import Scheduler

SCHEDULERS: dict[str, Scheduler] = {
    s.name: s for s in (flux.SCHEDULER, local.SCHEDULER, lsf.SCHEDULER, slurm.SCHEDULER)
}
