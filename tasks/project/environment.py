"""Project paths, and settings that keep data on this machine.

The settings are made before prefect, mlflow or dvc is imported. A value already in the
environment wins: a team points the tools at the team's servers through the tools' own variables.
"""

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COPIES = (".dvc/tmp/exps", ".state/sweeps", ".state/runs")
"""Folders of a project that hold temporary copies of the project."""


def project_of(tree: Path) -> Path:
    """Return the project of which `tree` is a temporary copy, otherwise `tree`.

    `dvc exp run --temp` and `--queue` work in copies below `.dvc/tmp/exps`, a sweep's trials in
    worktrees below `.state/sweeps`, and pipeline runs with other params in worktrees below
    `.state/runs`. Records of runs must outlive the copies.
    """
    for folder in reversed(tree.parents):
        if any(tree.is_relative_to(folder / below) for below in COPIES):
            return folder
    return tree


HOME = project_of(ROOT)

QUIET = {
    # no tool sends telemetry; mlflow accepts only the word "true"
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "true",
    # Prefect's own server drops its records of runs after 90 days; MLflow's are `make gc`'s
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # no stage uses the network, and no tool loads a pickle
    "HF_HUB_OFFLINE": "1",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    # report a missing git once, not in every process
    "GIT_PYTHON_REFRESH": "quiet",
    "TOKENIZERS_PARALLELISM": "false",
    # torch allocates big tensors in huge pages: a CPU training step is 1.4 times faster (measured),
    # and memory stays flat; memory grows if malloc is told to keep freed blocks instead
    "THP_MEM_ALLOC_ENABLE": "1",
    # no prompts, notices or progress bars that would distract a newcomer
    "PREFECT_CLI_PROMPT": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # notice an absent server within seconds: by default mlflow tries for many minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    # work goes on without Prefect's server: no minutes of retries, no wait for a hung server
    "PREFECT_API_REQUEST_TIMEOUT": "10",
    "PREFECT_CLIENT_MAX_RETRIES": "2",
}

# A waiting thread of torch's OpenMP spins so many times, then sleeps. With torch's default,
# training and decoding beside busy processes take about twice the time; without spinning they
# take 1.6 times the time alone (benchmarks/README.md).
SPINNING = {"GOMP_SPINCOUNT": "10000"}

# oneDNN keeps the compiled kernel of each shape that it met, and batches have many lengths: with
# its default of 1,024 kernels a fine-tuning of SmolLM2 takes 0.2 GB more, and no less time.
KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}

# Set by git in hooks: they would turn every git command, in tests and in worktrees too, to the
# repository of the hook.
OF_A_HOOK = (
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR",
    "GIT_DIR",
    "GIT_INDEX_FILE",
    "GIT_NAMESPACE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_PREFIX",
    "GIT_WORK_TREE",
)
PROBE_BYTES = 1 << 18  # room for the notes of a run
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def set_environment() -> None:
    """Set unset variables, and put this interpreter's tools first on PATH.

    Git works in this repository also below a hook of another, and no proxy stands before the
    servers of this machine.
    """
    for name in OF_A_HOOK:
        os.environ.pop(name, None)
    for name in ("no_proxy", "NO_PROXY"):
        hosts = [host.strip() for host in os.environ.get(name, "").split(",") if host.strip()]
        if "*" not in hosts:
            os.environ[name] = ",".join([*hosts, *(h for h in LOOPBACK if h not in hosts)])
    folders = {
        "PREFECT_HOME": str(ROOT / ".state" / "prefect"),
        # DVC's default is a folder writable by every user of the machine
        "DVC_SITE_CACHE_DIR": str(ROOT / ".dvc" / "tmp" / "site"),
    }
    # a user's OMP_WAIT_POLICY decides how threads wait, and GOMP_SPINCOUNT would overrule it
    waiting = {} if "OMP_WAIT_POLICY" in os.environ else SPINNING
    for name, value in {**QUIET, **KERNELS, **waiting, **folders}.items():
        os.environ.setdefault(name, value)
    Path(os.environ["PREFECT_HOME"]).mkdir(parents=True, exist_ok=True)
    bin_folder = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", "")
    if path.split(os.pathsep)[0] != bin_folder:
        os.environ["PATH"] = os.pathsep.join(filter(None, [bin_folder, path]))


def check_state() -> None:
    """Raise OSError, a sentence, where .state/ takes no more files.

    Every command keeps locks, logs, states or databases there; each of their writers would fail
    with a message of its own.
    """
    folder = ROOT / ".state"
    probe = folder / f".probe.{os.getpid()}"
    try:
        folder.mkdir(exist_ok=True)
        probe.write_bytes(bytes(PROBE_BYTES))
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), str(folder)) from None
    finally:
        with suppress(OSError):
            probe.unlink()


def sentence(error: ValueError | OSError) -> str:
    """Return an error as a sentence: the file, the reason, and the remedy for a full disk."""
    if not isinstance(error, OSError) or error.errno is None:
        return str(error)
    reason = os.strerror(error.errno)
    if error.strerror and error.strerror != reason:
        return error.strerror  # our own sentence, such as that of a state that was not saved
    remedy = {
        errno.ENOSPC: ": make room on its disk and repeat the command; finished work is kept",
        errno.EDQUOT: ": make room in your quota and repeat the command; finished work is kept",
        errno.EROFS: ": the commands need a file system that can be written",
        errno.EACCES: ": the commands need the permission to write there",
    }
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{reason}{remedy.get(error.errno, '')}"


def use_own_source() -> None:
    """Put this tree's src first on the import path.

    Without this, an editable install would make a worktree or a second clone run the main tree's
    code while DVC hashes the clone's own. Raises SystemExit if gptmill is still imported from a
    different folder.
    """
    sys.path.insert(0, str(ROOT / "src"))
    import gptmill

    package = Path(gptmill.__file__ or "").resolve().parent
    if package != ROOT / "src" / "gptmill":
        raise SystemExit(
            f"gptmill is imported from {package}, not from {ROOT / 'src'}: unset PYTHONPATH"
        )


def check_memory() -> None:
    """Raise ValueError where the memory limit of this process is too low for any command."""
    from gptmill.memory import check_limit  # after `use_own_source`

    check_limit()


def memory_shortage(text: str) -> str | None:
    """Return the error message for a failure of the memory limit, or None for other failures."""
    from gptmill.memory import shortage  # after `use_own_source`

    return shortage(text)


def wrong_environment(error: ImportError) -> str:
    """Return the error message for a Python without the project's packages."""
    shortage = memory_shortage(str(error))
    if shortage:
        return shortage
    return (
        f"{error}: {sys.executable} is not the project's environment; run `make env` to create "
        ".venv, and put .venv/bin first on PATH"
    )
