"""Whether a job gets anywhere: its runs' checkpoints are compared from one allocation to the next."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from jobs import warning

_CHECKPOINT = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class Restarts:
    """A line for each allocation of a job, beside its folder of notes, which each of them clears."""

    notes: Path
    max_idle: int
    """Allocations in a row without a new checkpoint after which the job is given up."""

    def begin(self, job_id: str) -> int:
        """Counts an allocation that begins; returns how many began before it."""
        count = len(self.begun())
        self._note(job_id, has_begun=True)
        return count

    def miss(self, job_id: str) -> None:
        """Counts on behalf of an allocation that never began: the scheduler refused it, or ended it before."""
        self._note(job_id, has_begun=False)

    def begun(self) -> list[str]:
        """Under which job ids allocations began, in order."""
        return [line["job_id"] for line in self._lines() if line["has_begun"]]

    def is_overtaken(self, count: int) -> bool:
        """Whether an allocation began after the one that `begin` numbered `count`."""
        return len(self.begun()) != count + 1

    def has_progress(self) -> bool:
        """Whether a run saved since the last allocation."""
        return bool(self._lines()) and not self.num_idle()

    def num_idle(self) -> int:
        """Allocations in a row, up to the last, that brought no new checkpoint."""
        marks = self._marks()
        return sum(1 for _ in takewhile(lambda line: line["marks"] == marks, reversed(self._lines())))

    def refusal(self) -> str:
        """Why the job is not to be started once more; empty if it may be."""
        idle = self.num_idle()
        if idle < self.max_idle:
            return ""
        return f"no new checkpoint in {idle} allocations (requeue.max_idle of the site)"

    def _note(self, job_id: str, has_begun: bool) -> None:
        """Begins a line of its own: the last one may have been cut off by a full disk."""
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        line = {"job_id": job_id, "has_begun": has_begun, "marks": self._marks()}
        with self._file.open("a") as file:
            file.write(f"\n{json.dumps(line)}")

    @property
    def _file(self) -> Path:
        return self.notes.with_name(f"{self.notes.name}.restarts")

    def _lines(self) -> list[dict[str, Any]]:
        lines = []
        for text in self._file.read_text().splitlines() if self._file.exists() else ():
            try:
                lines.append(json.loads(text))
            except ValueError:
                continue
        return lines

    def _marks(self) -> dict[str, int]:
        """The step of the newest checkpoint of every run that the job has launched and that has one."""
        steps = {str(run): last_save(run)[0] for run in warning.runs_of(self.notes)}
        return {run: step for run, step in steps.items() if step is not None}


def last_save(folder: Path) -> tuple[int | None, float | None]:
    """Step and time of the newest checkpoint; one without a manifest is not committed."""
    saved = [
        (int(match[1]), manifest.stat().st_mtime)
        for manifest in (folder / "checkpoints").glob("step_*/manifest.json")
        if (match := _CHECKPOINT.fullmatch(manifest.parent.name))
    ]
    return max(saved, default=(None, None))
