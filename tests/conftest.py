"""The order of the files: the longest first, so that the processes among which they are dealt end together."""

from __future__ import annotations

from pathlib import Path

import pytest

LONGEST = (
    *("cluster/test_cluster.py", "parallel/test_layouts.py", "integration/test_pipeline.py", "jobs/test_launch.py"),
    *("train/test_run.py", "parallel/test_optimizers.py", "test_architecture.py", "train/test_watchdog.py"),
    *("cluster/test_chain.py", "cluster/test_outage.py", "cluster/test_site.py", "jobs/test_lsf.py"),
    *("train/test_anomaly.py", "train/test_moves.py", "train/test_observed.py", "train/test_warmup.py"),
)
"""Files that take 20 s or more, and those that mostly wait before those that calculate."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Within a file the order stays."""
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    assert all(path.is_file() for path in places), "LONGEST names a file that is not there"
    items.sort(key=lambda item: places.get(item.path, len(places)))
