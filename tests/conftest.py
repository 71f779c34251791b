"""Every test runs without telemetry and leaves the machine's own settings alone."""

import os
import signal

import pytest

from tasks.project.environment import set_environment

set_environment()

# Tests run side by side, and share the cores: torch's default would have each take all of them.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell without job control starts background jobs with SIGINT ignored, and children inherit
# that: the tests that press Ctrl-C would then wait for ever. A handler does not survive exec.
signal.signal(signal.SIGINT, signal.default_int_handler)


# Files that take most of a minute or more. They come first, in this order: no process is left
# alone with one of them at the end.
LONGEST = [
    "test_stopped_stage.py",
    "test_kill.py",
    "test_pipeline.py",
    "test_ranks.py",
    "test_sweep.py",
    "test_seam.py",
    "test_verbs.py",
    "test_bench.py",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
