"""A Snakemake executor that does nothing but make the outputs: what is left is Snakemake's own part of a job."""

from collections.abc import AsyncGenerator
from pathlib import Path

from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor
from snakemake_interface_executor_plugins.jobs import JobExecutorInterface
from snakemake_interface_executor_plugins.settings import CommonSettings

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
    """Jobs are over as soon as they are given to it."""

    def run_job(self, job: JobExecutorInterface) -> None:
        self.format_job_exec(job)  # every executor needs the line
        for output in job.output:
            Path(output).touch()
        self.report_job_submission(SubmittedJobInfo(job, external_jobid="0"))

    async def check_active_jobs(self, active_jobs: list[SubmittedJobInfo]) -> AsyncGenerator[SubmittedJobInfo, None]:
        for info in active_jobs:
            self.report_job_success(info)
        return
        yield

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        return
