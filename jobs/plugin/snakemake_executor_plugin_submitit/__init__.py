"""Snakemake executor plugin `submitit`: hands Snakemake's jobs to `jobs.queue` and its answers back."""

# No `from __future__ import annotations`: the interface reads the types of the settings.
import ast
import re
import shlex
import tempfile
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Optional

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface
from snakemake_interface_executor_plugins.settings import CommonSettings, ExecutorSettingsBase

from jobs.errors import RefusalError, UserError
from jobs.queue import Queue, QueuedJob, Submission
from jobs.resources import job_spec, num_successors, placed
from jobs.shell import interrupted_late
from jobs.site import load_site
from jobs.spec import JobSpec

_LITERAL = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
RESULT_POLL_S = 2
"""Between two looks at result files; the scheduler is asked every --seconds-between-status-checks."""


@dataclass
class ExecutorSettings(ExecutorSettingsBase):
    """`--submitit-site` and so on, or the same keys in a profile."""

    site: Optional[str] = field(  # noqa: UP045 (the interface knows Optional only)
        default="slurm",
        metadata={"help": "a folder of site_configs/, or a path to a site.yaml"},
    )
    folder: Optional[str] = field(  # noqa: UP045
        default=".snakemake/submitit", metadata={"help": "job scripts, logs and results; on a filesystem all nodes see"}
    )


common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=False,
    job_deploy_sources=False,
    pass_default_storage_provider_args=True,
    pass_default_resources_args=True,
    pass_envvar_declarations_to_cmd=True,
    auto_deploy_default_storage_provider=False,
    init_seconds_before_status_checks=1,
)


class Executor(RemoteExecutor):
    """Thin: names, resources, logs and answers; everything else is in `jobs`."""

    def __post_init__(self) -> None:
        self.queued: dict[str, QueuedJob] = {}
        settings = self.workflow.executor_settings
        self.workdir = Path(self.workflow.workdir_init)
        interval_s = self.workflow.remote_execution_settings.seconds_between_status_checks
        try:
            self.site = load_site(settings.site)
            self.queue = Queue(self.site, self.workdir / settings.folder, interval_s)
        except UserError as error:
            raise WorkflowError(str(error)) from None
        self.next_seconds_between_status_checks = RESULT_POLL_S

    def run_jobs(self, jobs: list[JobExecutorInterface]) -> None:
        """Jobs that are ready at once and are alike but for their command are submitted as one."""
        alike: list[tuple[JobSpec | None, list[tuple[JobExecutorInterface, Submission]]]] = []
        for job in jobs:
            self.run_job_pre(job)
            submission = self._adopted_or_new(job)
            if submission is None:
                continue
            # A job with launches runs on in allocations of its own, with successors.
            is_alone = bool(job.resources.get("launches")) or not self.queue.has_arrays
            group = next((group for spec, group in alike if spec == submission.spec and not is_alone), None)
            if group is None:
                alike.append((None if is_alone else submission.spec, group := []))
            group.append((job, submission))
        for _, group in alike:
            with interrupted_late():  # what is submitted is registered, and so cancelled
                self._submit(group)

    def run_job(self, job: JobExecutorInterface) -> None:
        self.run_jobs([job])

    def _adopted_or_new(self, job: JobExecutorInterface) -> Submission | None:
        """What is to be submitted; None where an earlier controller has done so, or where it cannot be."""
        try:
            submission = self._submission(job)
            queued = self.queue.adopt(submission)
        except UserError as error:
            self._refuse(job, error)
            return None
        if queued is None:
            return submission
        self.logger.info(f"Job {job.jobid}: adopted {self.site.scheduler} job {queued.job_id}")
        self._register(job, queued)
        return None

    def _submit(self, group: list[tuple[JobExecutorInterface, Submission]]) -> None:
        """All at once; where the scheduler refuses that, each alone."""
        submissions = [submission for _, submission in group]
        try:
            queued = self.queue.submit(submissions)
        except UserError as error:
            if len(group) > 1 and isinstance(error, RefusalError):
                self.logger.info(f"{len(group)} jobs are not submitted as one: {error}")
                for one in group:
                    self._submit([one])
                return
            for job, _ in group:  # where nobody knows whether the scheduler has them, they must not run twice
                self._refuse(job, error)
            return
        names, ids = ", ".join(str(job.jobid) for job, _ in group), ", ".join(each.job_id for each in queued)
        self.logger.info(f"Job {names}: submitted as {self.site.scheduler} job {ids} (logs: {queued[0].folder})")
        for (job, _), each in zip(group, queued, strict=True):
            self._register(job, each)

    def _refuse(self, job: JobExecutorInterface, error: UserError) -> None:
        if job.is_group():  # of whose jobs Snakemake prints no message
            self.logger.error(f"Group {job.name}: not submitted: {error}")
        self.report_job_error(SubmittedJobInfo(job), msg=f"not submitted: {error}. ")

    def _register(self, job: JobExecutorInterface, queued: QueuedJob) -> None:
        self.queued[queued.submission.key] = queued
        self.report_job_submission(SubmittedJobInfo(job, external_jobid=queued.job_id, aux={"queued": queued}))

    def _submission(self, job: JobExecutorInterface) -> Submission:
        resources = dict(job.resources.items())
        spec = job_spec(job.name, resources, job.threads, self.site)
        line = ["bash", "-c", shell_line(self.format_job_exec(job))]  # Snakemake makes a shell line of it
        outputs = tuple(str(path) for path in job.output)
        successors = num_successors(resources, self.site)
        return Submission(spec, outputs, placed(line, resources, self.site), self.workdir, successors)

    def get_python_executable(self) -> str:
        return shlex.quote(super().get_python_executable())

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncGenerator[SubmittedJobInfo, None]:
        if not active_jobs:  # Snakemake's thread asks before __post_init__ is done, where that takes over a second
            return
        pairs = [(info, _queued(info)) for info in active_jobs]
        self.queue.refresh([queued for _, queued in pairs])
        for info, queued in pairs:
            message = self.queue.end(queued, info.job.log)
            if message is None:
                yield info
                continue
            del self.queued[queued.submission.key]
            if message == "":
                self.report_job_success(info)
            else:
                self.report_job_error(info, msg=f"{message}. ", aux_logs=[str(path) for path in queued.logs])

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Cancels all: `active_jobs` lacks those that check_active_jobs is just asking about."""
        self.queue.cancel(list(self.queued.values()))

    def shutdown(self) -> None:
        """Jobs wait for `tmpdir` when they begin, which Snakemake removes: those that were not cancelled need it."""
        if self.queue.active.all():
            self._tmpdir = tempfile.mkdtemp(dir=self.queue.folder)
        super().shutdown()
        self.queue.close()


def shell_line(line: str) -> str:
    """Snakemake's line with its words quoted for a shell: it writes Python's literals, in which bash finds `$(...)`."""
    return _LITERAL.sub(lambda literal: _quoted(literal[0]), line)


@lru_cache
def _quoted(literal: str) -> str:
    try:
        return shlex.quote(ast.literal_eval(literal))
    except (SyntaxError, ValueError):
        return literal  # a path, which Snakemake does quote for a shell


def _queued(info: SubmittedJobInfo) -> QueuedJob:
    assert info.aux is not None
    queued = info.aux["queued"]
    assert isinstance(queued, QueuedJob)
    return queued
