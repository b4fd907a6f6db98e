"""submitit over the scheduler contract: one executor for all schedulers, and the jobs of one controller."""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import ClassVar

from submitit.core import core, job_environment, utils
from submitit.local.local import LocalExecutor, LocalJob

from jobs import inquiry, submission, warning
from jobs.errors import UserError
from jobs.scheduler import SCHEDULERS
from jobs.scheduler.contract import NOTHING, Array, Status
from jobs.shell import run
from jobs.site import Site
from jobs.spec import JobSpec
from jobs.state import State

SCHEDULER_VARIABLE = "JOBS_SCHEDULER"


class SchedulerWatcher(core.InfoWatcher):
    """What submitit asks when it is asked for the state of a job."""

    def __init__(self, scheduler: str) -> None:
        super().__init__(delay_s=10)
        self.batch = SCHEDULERS[scheduler].batch
        self.states: dict[str, Status] = {}

    def update(self) -> None:
        assert self.batch is not None
        self._num_calls += 1
        self.states.update(inquiry.ask(self.batch, sorted(self._registered - self._finished)) or {})
        self._last_status_check = time.time()

    def get_state(self, job_id: str, mode: str = "standard") -> str:
        self.get_info(job_id, mode)
        return self.states.get(job_id, NOTHING).state.name


class SchedulerJob(core.Job[int]):
    """A job of the contract; `scheduler` and `watcher` are set per scheduler by `job_class`."""

    scheduler: ClassVar[str]

    def cancel(self, check: bool = True) -> None:
        batch = SCHEDULERS[self.scheduler].batch
        assert batch is not None
        run(batch.cancel([self.job_id]))


@cache
def job_class(scheduler: str) -> type[SchedulerJob]:
    """submitit keeps the watcher on the job's class: so one class per scheduler."""
    return type("SchedulerJob", (SchedulerJob,), {"scheduler": scheduler, "watcher": SchedulerWatcher(scheduler)})


class SchedulerExecutor(core.PicklingExecutor):
    """submitit's executor for every scheduler of the registry. Parameters are the fields of JobSpec."""

    def __init__(
        self, folder: Path | str, max_num_timeout: int = 0, max_pickle_size_gb: float = 1.0, scheduler: str = "slurm"
    ) -> None:
        super().__init__(folder, max_num_timeout=max_num_timeout, max_pickle_size_gb=max_pickle_size_gb)
        batch = SCHEDULERS[scheduler].batch
        if batch is None:
            raise UserError(f"scheduler {scheduler}: has no queue to submit to")
        self.scheduler, self._batch = scheduler, batch
        self.job_class = job_class(scheduler)
        self._throttling = 0.0

    @classmethod
    def affinity(cls) -> int:
        return 0  # only when asked for by name

    @classmethod
    def _equivalence_dict(cls) -> core.EquivalenceDict:
        return {
            "name": "name",
            "timeout_min": "runtime_min",
            "mem_gb": "mem_gb",
            "nodes": "nodes",
            "cpus_per_task": "cpus_per_rank",
            "gpus_per_node": "gpus_per_node",
            "tasks_per_node": "ranks_per_node",
        }

    @classmethod
    def _valid_parameters(cls) -> set[str]:
        return {field.name for field in fields(JobSpec)}

    def _spec(self, command: str = "") -> JobSpec:
        paths = utils.JobPaths(self.folder)
        stdout, stderr = (Path(str(path).replace("%t", "0")) for path in (paths.stdout, paths.stderr))
        env = {"SUBMITIT_EXECUTOR": self.name(), SCHEDULER_VARIABLE: self.scheduler}
        spec = JobSpec(**{"name": "submitit", **self.parameters})
        return replace(spec, command=tuple(shlex.split(command)), stdout=stdout, stderr=stderr, env={**spec.env, **env})

    @property
    def _submitit_command_str(self) -> str:
        return shlex.join([sys.executable, "-u", "-m", "jobs.entry", str(self.folder)])

    def _num_tasks(self) -> int:
        return 1  # ranks are the command's own affair: submitit would wait for one result of each

    def _internal_process_submissions(self, delayed_submissions: list[utils.DelayedSubmission]) -> list[core.Job[int]]:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if len(delayed_submissions) == 1:
            return [self._submit_one(delayed_submissions[0])]
        if self._batch.array is None:  # one by one, a refusal on the way would lose those that are in the queue already
            raise UserError(f"scheduler {self.scheduler}: takes one job at a time")
        return self._submit_array(self._batch.array, delayed_submissions)

    def _submit_one(self, delayed: utils.DelayedSubmission) -> core.Job[int]:
        """Unlike submitit's own: all that the job reads is there before it is submitted, under names without its id."""
        name = uuid.uuid4().hex
        self._dump(delayed, name)
        script = self._write(f"{name}.sh", self._make_submission_file_text(self._submitit_command_str, name))
        job_id = submission.place(self._batch, self._make_submission_command(script), script)
        return self.job_class(folder=self.folder, job_id=job_id, tasks=[0])

    def _submit_array(
        self, array: Array, delayed_submissions: Sequence[utils.DelayedSubmission]
    ) -> list[core.Job[int]]:
        """One script for all; each job reads the file of its number."""
        name, count = uuid.uuid4().hex, len(delayed_submissions)
        for number, delayed in enumerate(delayed_submissions, array.first):
            self._dump(delayed, f"{name}_{number}")
        script = self._write(f"{name}.sh", self._array_text(array, name))
        base_id = submission.place(self._batch, array.submit(self._spec(), script, count), script)
        ids = (array.job_id(base_id, str(number)) for number in range(array.first, array.first + count))
        return [self.job_class(folder=self.folder, job_id=job_id, tasks=[0]) for job_id in ids]

    def _dump(self, delayed: utils.DelayedSubmission, name: str) -> None:
        delayed.set_timeout(self.parameters.get("runtime_min", 10), self.max_num_timeout)
        delayed.dump(self._write(f"{name}.pkl"))

    def _write(self, name: str, text: str = "") -> Path:
        """A new file that is the user's alone, whatever the umask."""
        file = self.folder / name
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(text)
        return file

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return self._text(command, f'"${SCHEDULERS[self.scheduler].environment["job_id"]}"', f"{uid}.pkl")

    def _array_text(self, array: Array, uid: str) -> str:
        job_id = array.job_id(f'"${array.base_id}"', f'"${array.number}"')
        return self._text(self._submitit_command_str, job_id, f'{uid}_"${array.number}".pkl')

    def _text(self, command: str, job_id: str, pickled: str) -> str:
        """The pickle is submitit's under the job's id, so the job, a word of its shell, gives it that name."""
        spec = self._spec(command)
        folder = shlex.quote(str(self.folder))
        lines = (
            f"export {warning.ID_VARIABLE}={job_id}",
            f'ln -sf {pickled} {folder}/"${warning.ID_VARIABLE}"_submitted.pkl',
        )
        return self._batch.script(replace(spec, setup=(*lines, *spec.setup)))

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        return self._batch.submit(self._spec(), submission_file_path)

    def _get_job_id_from_submission_command(self, string: bytes | str) -> str:  # type: ignore[override]
        return self._batch.parse_id(string if isinstance(string, str) else string.decode())


class SchedulerJobEnvironment(job_environment.JobEnvironment):
    """submitit's view of the environment inside a job: the scheduler's own table."""

    def __init__(self) -> None:
        super().__init__()
        scheduler = SCHEDULERS.get(os.environ.get(SCHEDULER_VARIABLE, ""))
        words = scheduler.environment if scheduler else {}
        ours = {"num_nodes": "num_nodes", "nodes": "nodes", "global_rank": "rank"}
        # One submitit task per job, whatever the ranks: for the rest its defaults hold, read from no variable.
        unset = {"job_id": warning.ID_VARIABLE, **dict.fromkeys(("num_tasks", "node", "local_rank"), "JOBS_UNSET")}
        self._env = {**unset, **{theirs: words.get(word, "JOBS_UNSET") for theirs, word in ours.items()}}  # type: ignore[misc]


def make_executor(site: Site, folder: Path, spec: JobSpec) -> core.PicklingExecutor:
    """submitit's executor for one job of a site; no other job may have the same folder, which is the user's alone."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True, mode=0o700)
    if SCHEDULERS[site.scheduler].batch is not None:
        executor: core.PicklingExecutor = SchedulerExecutor(folder, scheduler=site.scheduler)
        executor.update_parameters(**{field.name: getattr(spec, field.name) for field in fields(spec)})
        return executor
    executor = LocalExecutor(folder)
    executor.update_parameters(
        timeout_min=spec.runtime_min, gpus_per_node=spec.gpus_per_node, signal_delay_s=spec.signal_delay_s
    )
    return executor


def submit(site: Site, folder: Path, spec: JobSpec, function: Callable[[], int]) -> core.Job[int]:
    """Submits one job. Raises RefusalError with the scheduler's own words, UserError for other faults."""
    return submit_all(site, folder, spec, [function])[0]


def submit_all(site: Site, folder: Path, spec: JobSpec, functions: Sequence[Callable[[], int]]) -> list[core.Job[int]]:
    """Submits jobs that differ in what they run only as one, for schedulers that have arrays. Raises as `submit`."""
    return make_executor(site, folder, spec).submit_array(functions)


def has_arrays(scheduler: str) -> bool:
    batch = SCHEDULERS[scheduler].batch
    return batch is not None and batch.array is not None


def own_warning_s(scheduler: str, spec: JobSpec) -> int:
    """Seconds before the end of its walltime at which a job must warn itself; 0 where the scheduler does."""
    batch = SCHEDULERS[scheduler].batch
    return 0 if batch is None or batch.warns else spec.signal_delay_s


def attach(scheduler: str, folder: Path, job_id: str) -> core.Job[int]:
    """A job that another controller submitted."""
    if SCHEDULERS[scheduler].batch is not None:
        return job_class(scheduler)(folder=folder, job_id=job_id)
    return LocalJob(folder=folder, job_id=job_id)


def local_state(job: core.Job[int]) -> State:
    """State of a job of submitit's local executor, whose job id is a process id; adopted ones have no handle."""
    process = getattr(job, "_process", None)
    if process is not None:
        return State.RUNNING if process.poll() is None else State.COMPLETED
    try:
        words = Path(f"/proc/{job.job_id}/cmdline").read_text().split("\0")
    except OSError:
        return State.COMPLETED
    return State.RUNNING if "submitit.local._local" in words else State.COMPLETED


def cancel(scheduler: str, jobs: Sequence[core.Job[int]]) -> str:
    """Cancels all of them with one command, tried a few times; returns what the scheduler says if it does not."""
    batch = SCHEDULERS[scheduler].batch
    if batch is not None:
        return submission.cancel(batch, [job.job_id for job in jobs])
    for job in jobs:
        if local_state(job) is State.RUNNING:
            os.kill(int(job.job_id), signal.SIGINT)
    return ""


def read_result(job: core.Job[int]) -> int | str | None:
    """None while the job has left no result; what it returned; or what it raised, in one line."""
    try:
        outcome, result = utils.pickle_load(job.paths.result_pickle)
    except (FileNotFoundError, EOFError):
        return None
    return int(result) if outcome == "success" else str(result).strip().splitlines()[-1]


def ask(scheduler: str, jobs: Sequence[core.Job[int]]) -> dict[str, Status] | None:
    """What is said of each job, by its id, from one query for all; None when the scheduler does not answer."""
    batch = SCHEDULERS[scheduler].batch
    if batch is None:
        return {job.job_id: Status(local_state(job)) for job in jobs}
    return inquiry.ask(batch, [job.job_id for job in jobs])


def release(scheduler: str, job: core.Job[int], status: Status) -> None:
    """Lets a job go on that waits only because no node could start it: nobody else would, for days."""
    batch = SCHEDULERS[scheduler].batch
    if batch is not None and batch.held is not None and status.reason == batch.held[0]:
        said = run(batch.held[1](job.job_id))
        outcome = f"not released: {said.stderr.strip()}" if said.code else "released"
        print(f"jobs: job {job.job_id}: {status.reason}: {outcome}", file=sys.stderr, flush=True)


def places(scheduler: str) -> dict[str, inquiry.Place]:
    """Where the waiting jobs of all users are in their queues, by job id, as far as the scheduler says."""
    batch = SCHEDULERS[scheduler].batch
    return inquiry.places(batch) if batch else {}
