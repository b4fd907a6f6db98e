"""`python -m jobs.entry FOLDER`: what a job's script starts; runs what submitit pickled, and leaves submitit's result.

As submitit.core._submit does, but without submitit: its imports (numpy, asyncio, plugins) were most of a small job.
"""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.warning import ID_VARIABLE


class _Submission:
    """Has the attributes of submitit's DelayedSubmission, for which it is taken out of the pickle."""

    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("submitit.core.utils", "DelayedSubmission"):
            return _Submission
        return super().find_class(module, name)


def main(folder: Path) -> int:
    """Returns the job's exit code: 1 where the function raised."""
    os.environ["SUBMITIT_FOLDER"] = str(folder)  # for functions that ask for submitit.JobEnvironment
    job = folder / os.environ[ID_VARIABLE]
    try:
        with Path(f"{job}_submitted.pkl").open("rb") as file:
            submission: _Submission = _Unpickler(file).load()
        result = pickle.dumps(("success", submission.function(*submission.args, **submission.kwargs)))
        code = 0
    except Exception:
        traceback.print_exc()
        result, code = pickle.dumps(("error", traceback.format_exc())), 1
    draft = Path(f"{job}_0_result.tmp")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(result)
    draft.replace(f"{job}_0_result.pkl")
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
