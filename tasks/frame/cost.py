"""The cost of a stage: seconds, CPU seconds and memory of the process."""

import os
import time

import psutil

from gptmill.device import peak_memory

SECONDS, CPU_SECONDS, MEMORY_GB = "cost/seconds", "cost/cpu_seconds", "cost/peak_memory_gb"
"""Names of the metrics; a continued run has a value for each of its processes."""


def cost() -> dict[str, float]:
    """Return the cost of this process since its start.

    With several processes per stage, each pays for itself. Memory is the GPU's where CUDA is
    available.
    """
    return {
        SECONDS: time.time() - psutil.Process().create_time(),
        CPU_SECONDS: sum(os.times()[:4]),
        MEMORY_GB: peak_memory() / 1e9,
    }
