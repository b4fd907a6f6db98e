"""A line of segments.jsonl says which steps the allocation made, from the files that the trainer leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs import segments
from jobs.scheduler import SCHEDULERS


def write_metrics(run_dir: Path, numbers: range) -> None:
    records = "".join(f'{{"step": {number}, "loss": 1.0}}\n' for number in numbers)
    (run_dir / "metrics.jsonl").write_text(records + '{"step": 99')  # a killed trainer's half line


def recorded(run_dir: Path, code: int) -> dict[str, Any]:
    segments.record(run_dir, SCHEDULERS["local"], {}, segments.now(), code, segments.cause(code, []))
    line: dict[str, Any] = json.loads((run_dir / "segments.jsonl").read_text().splitlines()[-1])
    return line


@pytest.mark.parametrize(
    ("first", "numbers", "expected"),
    [
        (1, range(1, 11), (1, 10)),
        (11, range(1, 21), (11, 20)),
        (11, range(1, 11), (None, None)),
        (1, range(0), (None, None)),
    ],
)
def test_steps_of_an_allocation(tmp_path: Path, first: int, numbers: range, expected: tuple[int | None, ...]) -> None:
    (tmp_path / "segment.json").write_text(json.dumps({"first_step": first}))
    write_metrics(tmp_path, numbers)
    line = recorded(tmp_path, 0)
    assert (line["first_step"], line["last_step"], line["cause"]) == (*expected, "finished")


def test_an_allocation_that_never_trained_does_not_claim_the_steps_before_it(tmp_path: Path) -> None:
    (tmp_path / "segment.json").write_text('{"first_step": 1}')
    write_metrics(tmp_path, range(1, 11))
    assert recorded(tmp_path, 137)["last_step"] == 10
    assert recorded(tmp_path, 2)["last_step"] is None
