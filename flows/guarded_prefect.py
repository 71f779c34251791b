"""Prefect's server behind our check of host and origin.

Whoever can create a deployment makes the worker run commands, and Prefect's server asks nobody for
a name: without the check, any page in the user's browser could do it.
"""

from typing import TYPE_CHECKING

from tasks.project.environment import use_own_source

if TYPE_CHECKING:
    from gptmill.serving.host_guard import HostGuard


def make_app() -> "HostGuard":
    """Return the ASGI application, for `uvicorn --factory`."""
    use_own_source()
    from prefect.server.api.server import create_app

    from gptmill.serving.host_guard import LOOPBACK_NAMES, HostGuard, allowed_names

    return HostGuard(create_app(), hosts=LOOPBACK_NAMES | allowed_names())
