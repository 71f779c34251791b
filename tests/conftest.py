"""Every test runs without telemetry and leaves the machine's own settings alone."""

from tasks._environment import set_environment

set_environment()
