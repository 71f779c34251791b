"""Too little memory: the limit of this process, and the signs of a shortage in messages."""

import resource

MINIMUM = 1 << 30
"""Bytes of address space below which imports abort or hang in native code."""
SIGNS = (
    "can't start new thread",
    "Cannot allocate memory",
    "MemoryError",
    "bad_alloc",
    "pthread_create",
    "failed to map segment",
    "DefaultCPUAllocator",
    "not enough memory",
    "Memory allocation still failed",
)
REMEDY = "raise the limits (`ulimit -v` and `ulimit -u` print them), or end other programs"


def check_limit() -> None:
    """Raise ValueError where the limit of the address space is too low for any work."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY and limit < MINIMUM:
        raise ValueError(
            f"this process may use {limit >> 20} MiB of memory, and needs {MINIMUM >> 20} MiB or "
            f"more: raise the limit, `ulimit -v {2 * MINIMUM >> 10}` or `ulimit -v unlimited`"
        )


def shortage(text: str) -> str | None:
    """Return the error message for a failure of the memory limit, or None for other failures.

    Threads, shared libraries and arrays fail with errors of their own.
    """
    if not any(sign in text for sign in SIGNS):
        return None
    return f"not enough memory or threads for this process: {REMEDY}"
