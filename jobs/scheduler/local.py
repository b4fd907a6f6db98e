"""No scheduler: this machine, where a job is a child process and a rank is told its place by torchrun."""

from jobs.scheduler.contract import Scheduler

SCHEDULER = Scheduler(
    name="local",
    environment={
        "job_id": "SUBMITIT_LOCAL_JOB_ID",
        "num_nodes": "SUBMITIT_LOCAL_JOB_NUM_NODES",
    },
    batch=None,
)
