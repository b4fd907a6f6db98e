"""Whether a job gets anywhere: its runs' checkpoints are compared from one allocation to the next."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import warning

_CHECKPOINT = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class Restarts:
    """What a job remembers beside its folder of notes, which each of its allocations clears."""

    notes: Path
    max_idle: int
    """Allocations in a row without a new checkpoint after which the job is given up."""

    def begin(self) -> int:
        """Counts an allocation that begins; returns how many began before it."""
        seen = self._read()
        is_first = not seen
        idle = 0 if is_first or self.marks() != seen["marks"] else seen["idle"] + 1
        count = 0 if is_first else seen["count"] + 1
        self.notes.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = self._file.with_suffix(".tmp")
        draft.write_text(json.dumps({"count": count, "idle": idle, "marks": self.marks()}))
        draft.replace(self._file)
        return count

    def is_overtaken(self, count: int) -> bool:
        """Whether an allocation began after the one that `begin` numbered `count`."""
        return bool(self._read()["count"] != count)

    def has_progress(self) -> bool:
        """Whether a run saved since the last allocation began."""
        seen = self._read()
        return bool(seen) and self.marks() != seen["marks"]

    def refusal(self) -> str:
        """Why the job is not to be started once more; empty if it may be."""
        seen = self._read()
        idle = 0 if not seen or self.has_progress() else seen["idle"] + 1
        if idle < self.max_idle:
            return ""
        return f"no new checkpoint in {idle} allocations (requeue.max_idle of the site)"

    @property
    def _file(self) -> Path:
        return self.notes.with_name(f"{self.notes.name}.restarts")

    def _read(self) -> Mapping[str, Any]:
        try:
            return dict(json.loads(self._file.read_text()))
        except FileNotFoundError:
            return {}

    def marks(self) -> dict[str, int]:
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
