"""deploy/: what no machine of ours can run is checked against schemas."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from prefect.utilities.templating import apply_values
from prefect.workers.process import ProcessJobConfiguration

from tasks.project.environment import ROOT
from tasks.project.graph import read_yaml

DEPLOY = ROOT / "deploy"
POOLS = sorted((DEPLOY / "pools").glob("*.json"))
PLACEHOLDER = re.compile(r"{{ (\w+) }}")
OF_PREFECT = {"command", "env", "labels", "name"}
"""Variables that every worker of Prefect fills in."""
SECRET = re.compile(r"PASSWORD|SECRET|AUTH_STRING|ACCESS_KEY")


@pytest.mark.parametrize("pool", POOLS, ids=lambda path: path.stem)
def test_a_work_pool_s_template_uses_each_of_its_variables(pool: Path) -> None:
    template = json.loads(pool.read_text(encoding="utf-8"))
    assert set(template) == {"job_configuration", "variables"}
    variables = template["variables"]
    Draft202012Validator.check_schema(variables)
    defaults = {
        name: one["default"] for name, one in variables["properties"].items() if "default" in one
    }
    Draft202012Validator({**variables, "required": []}).validate(defaults)
    assert all(len(one["description"]) > 10 for one in variables["properties"].values())
    used = set(PLACEHOLDER.findall(json.dumps(template["job_configuration"])))
    assert used == set(variables["properties"])
    assert OF_PREFECT - {"command"} <= used
    assert not SECRET.search(json.dumps(defaults))


def filled(name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Put values into a template as Prefect does."""
    template = json.loads((DEPLOY / "pools" / f"{name}.json").read_text(encoding="utf-8"))
    known = template["variables"]["properties"].items()
    defaults = {key: one["default"] for key, one in known if "default" in one}
    return dict(apply_values(template["job_configuration"], {**defaults, **values}))


SRUN = (
    "srun --job-name=gptmill --nodes=1 --ntasks=1 --partition=gpu --gpus=2 --cpus-per-task=8 "
    "--mem=64G --time=12:00:00 python -m prefect.engine"
)


@pytest.mark.parametrize(
    ("name", "values", "command"),
    [("process", {}, None), ("slurm", {"working_dir": "/shared/mill", "gpus": 2}, SRUN)],
)
def test_prefect_s_process_worker_fills_in_a_template(
    name: str, values: dict[str, Any], command: str | None
) -> None:
    made = ProcessJobConfiguration(**filled(name, values))
    assert made.command == command
    assert made.working_dir == (Path(values["working_dir"]) if values else None)


@pytest.mark.filterwarnings("default")
def test_prefect_s_other_workers_take_the_templates() -> None:
    docker = pytest.importorskip("prefect_docker.worker")
    made = docker.DockerWorkerJobConfiguration(**filled("docker", {"gpus": 2}))
    assert made.volumes[0] == "/srv/gptmill:/mill"
    (gpus,) = made.container_create_kwargs["device_requests"]
    assert (gpus["Driver"], gpus["Count"]) == ("nvidia", 2)
    kubernetes = pytest.importorskip("prefect_kubernetes.worker")
    asked = {"name": "run", "labels": {}, "env": {"A": "b"}, "command": "prefect"}
    made = kubernetes.KubernetesWorkerJobConfiguration(**filled("kubernetes", asked))
    (container,) = made.job_manifest["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_compose_starts_both_servers_with_logins_on_this_machine_s_ports() -> None:
    compose = read_yaml(DEPLOY / "compose.yaml")
    services = compose["services"]
    assert set(services) == {"postgres", "store", "buckets", "prefect", "mlflow"}
    published = [port for one in services.values() for port in one.get("ports", [])]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert "PREFECT_SERVER_API_AUTH_STRING" in services["prefect"]["environment"]
    assert "--app-name=basic-auth" in services["mlflow"]["command"]
    for service in services.values():
        for name, value in service.get("environment", {}).items():
            assert not SECRET.search(name) or str(value).startswith("${"), name
        assert set(service.get("depends_on", {})) <= set(services)
        named = [one.partition(":")[0] for one in service.get("volumes", [])]
        assert {*named} <= set(compose["volumes"])
        assert {one["source"] for one in service.get("configs", [])} <= set(compose["configs"])


def test_the_dockerfile_copies_files_of_this_tree_and_installs_extras_that_exist() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    allowed = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    copied = [word for line in re.findall(r"^COPY (.*) \S+$", text, re.M) for word in line.split()]
    assert copied
    for path in copied:
        assert (ROOT / path).exists()
        assert f"!{path}\n" in allowed
    (extras,) = re.findall(r"'\.\[([\w,]+)\]'", text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {*extras.split(",")} <= set(project["optional-dependencies"])
