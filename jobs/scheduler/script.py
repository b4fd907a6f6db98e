"""The batch script, which no scheduler needs of its own kind: options are given on the submit command's line."""

from __future__ import annotations

import shlex

from jobs.spec import JobSpec


def render_script(spec: JobSpec) -> str:
    """Environment, setup lines and command of a job.

    `exec`, so that the process the scheduler signals is the command itself. Options are not in it as #SBATCH or #BSUB
    lines but on the command line of sbatch or bsub, where nothing reads them a second time.
    """
    exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(spec.env.items())]
    return "\n".join(["#!/bin/bash", *exports, *spec.setup, f"exec {shlex.join(spec.command)}", ""])
