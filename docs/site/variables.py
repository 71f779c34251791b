"""The reference of environment variables; tests/promises/test_docs.py finds missing ones."""

from docs.site.markdown import code, table
from tasks.project.environment import KERNELS, QUIET, SPINNING

OURS = {
    "VERBOSE": "1: `make pipeline` prints all log lines with times; otherwise a line per stage",
    "GPTMILL_PREFECT_PORT, GPTMILL_MLFLOW_PORT": "ports of `make ui`: 4200 and 5000",
    "GPTMILL_ALLOWED_HOSTS": "names of hosts that a proxy with a login forwards, by commas",
    "GPTMILL_STATES": "a folder of training states that workers share, instead of .state",
    "GPTMILL_POWERCAP": "folder of the CPUs' energy counters, unless /sys/class/powercap",
    "GPTMILL_NODES": "number of machines of a training",
    "GPTMILL_NODE": "number of this machine; machine 0 runs DVC",
    "GPTMILL_RENDEZVOUS": "HOST:PORT on machine 0, where the machines meet",
}
TOOLS = {
    "MLFLOW_TRACKING_URI": "an MLflow server of your own, instead of mlflow/mlflow.db",
    "PREFECT_API_URL": "a Prefect server of your own",
    "PREFECT_API_AUTH_STRING": "NAME:PASSWORD of a Prefect server",
    "MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD": "the login of an MLflow server",
    "PREFECT_API_DATABASE_CONNECTION_URL": "the database of Prefect's local server",
    "OMP_NUM_THREADS": "threads of a training; results with other numbers differ in the last bits",
    "OMP_WAIT_POLICY": "how threads wait; unset, they spin briefly and sleep",
    "CUDA_VISIBLE_DEVICES": "GPUs that may be used",
    "HF_ENDPOINT": "another address for hub ids of `gptmill import`",
    "HTTP_PROXY, HTTPS_PROXY, NO_PROXY": "proxies for `make data`; loopback never uses a proxy",
    "NO_COLOR": "no colours in a terminal",
}
TESTS = {
    "GPTMILL_GPT2, GPTMILL_VERDICT": "GPT-2's weights and The Verdict, for the published figures",
    "GPTMILL_TOKENIZERS, GPTMILL_VLLM, GPTMILL_NODE_LLAMA_CPP": "folders of optional references",
    "FUZZ_SECONDS": "duration of the fuzz test",
    "OUTAGE_SECONDS": "duration of MLflow's outage in the test of outages",
}
INTERNAL = (
    "GPTMILL_FLOW_PROCESS", "GPTMILL_LOCKED", "GPTMILL_PARENT_RUN", "GPTMILL_RECEIPT",
    "GPTMILL_ROOT", "GPTMILL_SWEEP_RUN", "GPTMILL_WORKER",
)  # fmt: skip
"""Set by a command for the processes that the command starts."""


def page() -> str:
    """Return the page."""
    parts = ["# Environment variables\n\nA value in your environment wins over ours.\n"]
    for title, names in (("gptmill", OURS), ("Tools", TOOLS), ("Tests", TESTS)):
        rows = [(code(name), meaning) for name, meaning in names.items()]
        parts.append(f"## {title}\n\n{table(('variable', 'meaning'), rows)}")
    internal = ", ".join(map(code, INTERNAL))
    parts.append(f"Set by commands for their own processes: {internal}.\n")
    rows = [(code(name), code(value)) for name, value in {**QUIET, **SPINNING, **KERNELS}.items()]
    parts.append(f"## Set unless you set them\n\n{table(('variable', 'value'), rows)}")
    return "\n".join(parts)
