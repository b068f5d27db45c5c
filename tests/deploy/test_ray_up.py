"""The files for `ray up` are what this version of Ray takes, with unknown keys refused where its schema is open too."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

DEPLOY = Path(__file__).parents[2] / "deploy"
SCHEMA = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
# Of a provider, the schema lists keys but takes others too; these it does not list.
ALSO = ("type",)
files = pytest.mark.parametrize("name", ["aws", "on-premises"])


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "ray-up" / f"{name}.yaml").read_text())


def faults(config: dict[str, Any]) -> list[str]:
    found = [e.message for e in jsonschema.Draft7Validator(SCHEMA).iter_errors(config)]
    known = {*SCHEMA["properties"]["provider"]["properties"], *ALSO}
    found += [f"provider has no {key}" for key in config.get("provider", {}) if key not in known]
    if config.get("provider", {}).get("type") == "aws":
        for node in config.get("available_node_types", {}).values():
            found += machine_faults(node.get("node_config", {}))
    return found


def machine_faults(given: dict[str, Any]) -> list[str]:
    """What AWS would refuse of a machine, by its own description of the call, which the client brings along."""
    session = pytest.importorskip("botocore.session")
    from botocore.validate import ParamValidator

    call = session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    report = ParamValidator().validate({"MinCount": 1, "MaxCount": 1, **given}, call)
    return [*_unknown(given, call, "node_config"), *([report.generate_report()] if report.has_errors() else [])]


def _unknown(given: Any, shape: Any, where: str) -> list[str]:
    if shape.type_name == "list":
        return [f for item in given for f in _unknown(item, shape.member, where)]
    if shape.type_name != "structure":
        return []
    found = [f"{where} has no {key}" for key in given if key not in shape.members]
    return found + [f for k, v in given.items() if k in shape.members for f in _unknown(v, shape.members[k], k)]


@files
def test_file_has_no_fault(name: str) -> None:
    assert faults(load(name)) == []


@files
def test_ray_prepares_and_accepts_the_file(name: str) -> None:
    prepared = prepare_config(load(name))
    validate_config(prepared)
    workers = [n["max_workers"] for kind, n in prepared["available_node_types"].items() if kind != "head"]
    assert sum(workers) == yaml.safe_load((DEPLOY / "job" / "cluster.yaml").read_text())["cluster"]["workers"]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("aws", ()),
        ("aws", ("provider",)),
        ("aws", ("provider", "security_group")),
        ("aws", ("auth",)),
        ("aws", ("available_node_types", "worker")),
        ("aws", ("available_node_types", "worker", "node_config")),
        ("aws", ("available_node_types", "worker", "node_config", "MetadataOptions")),
        ("aws", ("available_node_types", "head", "node_config", "BlockDeviceMappings", 0, "Ebs")),
        ("on-premises", ()),
        ("on-premises", ("provider",)),
        ("on-premises", ("auth",)),
    ],
)
def test_misspelt_key_is_found(name: str, path: tuple[str, ...]) -> None:
    mutant: Any = copy.deepcopy(load(name))
    held = mutant
    for key in path:
        held = held[key]
    held["misspelt"] = "x"
    assert faults(mutant)


def test_machines_of_aws_hold_the_workers_of_the_job() -> None:
    config = load("aws")
    asked = yaml.safe_load((DEPLOY / "job" / "cluster.yaml").read_text())["cluster"]
    worker = config["available_node_types"]["worker"]
    assert worker["min_workers"] == worker["max_workers"] == config["max_workers"] == asked["workers"]
    assert worker["resources"]["CPU"] == asked["cpus_per_worker"]
    assert config["available_node_types"][config["head_node_type"]]["resources"]["CPU"] == 0


def test_own_machines_offer_the_cpus_of_a_worker() -> None:
    config = load("on-premises")
    asked = yaml.safe_load((DEPLOY / "job" / "cluster.yaml").read_text())["cluster"]
    assert len(config["provider"]["worker_ips"]) == asked["workers"]
    assert f"--num-cpus={asked['cpus_per_worker']}" in config["worker_start_ray_commands"][-1]
    assert "--num-cpus=0" in config["head_start_ray_commands"][-1]


def test_head_of_own_machines_is_not_counted_as_a_worker() -> None:
    """The second autoscaler of Ray 2.60 counts it, and leaves the last of the machines out."""
    assert "RAY_enable_autoscaler_v2=0" in load("on-premises")["head_start_ray_commands"][-1]


@files
def test_every_start_asks_for_the_token(name: str) -> None:
    config = load(name)
    starts = [c for key in ("head", "worker") for c in config[f"{key}_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"


@files
def test_no_secret_is_in_the_file(name: str) -> None:
    text = (DEPLOY / "ray-up" / f"{name}.yaml").read_text()
    assert not re.search(r"AKIA[0-9A-Z]{16}|aws_secret|BEGIN .*PRIVATE|RAY_AUTH_TOKEN=", text)


@files
def test_machines_are_set_up_by_the_script_of_the_image(name: str) -> None:
    install, path = load(name)["setup_commands"]
    assert install == "VENV=$HOME/rayinf-env bash ~/rayinf/deploy/install.sh"
    assert "export PATH=$HOME/rayinf-env/bin:$PATH RAY_AUTH_MODE=token" in path
    assert "deploy/install.sh" in (DEPLOY / "Dockerfile").read_text()
