"""The manifests for Kubernetes are what Kubernetes and KubeRay 1.7 take, and fit each other and the job."""

import copy
import os
import re
from pathlib import Path
from typing import Any

import manifest_checks as checks
import pytest
import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
FILES = sorted((DEPLOY / "kuberay").glob("*.yaml"))
# Mappings whose keys are the user's own.
FREE = ("labels", "matchLabels", "rayStartParams", "requests", "limits")


def documents(file: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(file.read_text()))


MANIFESTS = [(f"{file.name}-{k}", doc) for file in FILES for k, doc in enumerate(documents(file))]
manifests = pytest.mark.parametrize("manifest", [m for _, m in MANIFESTS], ids=[name for name, _ in MANIFESTS])


def one(name: str) -> dict[str, Any]:
    [found] = documents(DEPLOY / "kuberay" / f"{name}.yaml")
    return found


def cluster_specs() -> list[dict[str, Any]]:
    return [one("raycluster")["spec"], one("rayjob")["spec"]["rayClusterSpec"]]


def pods() -> list[dict[str, Any]]:
    found = [one("rayjob")["spec"]["submitterPodTemplate"]["spec"]]
    for spec in cluster_specs():
        found += [group["template"]["spec"] for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]]
    return found


def containers() -> list[dict[str, Any]]:
    return [container for pod in pods() for container in pod["containers"]]


def test_all_kinds_are_there() -> None:
    kinds = [m["kind"] for _, m in MANIFESTS]
    assert sorted(set(kinds)) == ["Namespace", "NetworkPolicy", "RayCluster", "RayJob"]


@manifests
def test_manifest_has_no_fault(manifest: dict[str, Any]) -> None:
    assert checks.faults(manifest) == []


@manifests
def test_misspelt_key_at_any_level_is_found(manifest: dict[str, Any]) -> None:
    paths = [p for p in checks.mappings(manifest) if not p or p[-1] not in FREE]
    assert len(paths) > 1
    for path in paths:
        mutant = copy.deepcopy(manifest)
        checks.at(mutant, path)["misspelt"] = "x"
        assert checks.faults(mutant), f"a key at {path} was not found"


@manifests
def test_each_key_misspelt_is_found(manifest: dict[str, Any]) -> None:
    for path in checks.mappings(manifest):
        if path and path[-1] in FREE:
            continue
        for key in checks.at(manifest, path):
            mutant = copy.deepcopy(manifest)
            held = checks.at(mutant, path)
            held[f"{key}s"] = held.pop(key)
            assert checks.faults(mutant), f"{key}s at {path} was not found"


@manifests
def test_value_of_another_type_is_found(manifest: dict[str, Any]) -> None:
    for path in checks.leaves(manifest):
        mutant = copy.deepcopy(manifest)
        checks.at(mutant, path[:-1])[path[-1]] = {"wrong": 1}
        assert checks.faults(mutant), f"a mapping at {path} was not found"


@manifests
def test_manifest_agrees_with_the_definitions_of_kuberay(manifest: dict[str, Any]) -> None:
    folder = os.environ.get("RAYINF_KUBERAY_CRDS")
    if not manifest["apiVersion"].startswith("ray.io"):
        pytest.skip("is not of KubeRay")
    if folder is None:
        pytest.skip("RAYINF_KUBERAY_CRDS names no folder with ray.io_rayclusters.yaml and ray.io_rayjobs.yaml")
    text = (Path(folder) / f"ray.io_{manifest['kind'].lower()}s.yaml").read_text()
    definition = checks.read_definition(text, manifest["apiVersion"].split("/")[1])
    assert checks.crd_faults(manifest, definition) == []
    paths = [p for p in checks.mappings(manifest["spec"], ("spec",)) if p[-1] not in FREE]
    for path in (paths[0], paths[len(paths) // 2], paths[-1]):
        mutant = copy.deepcopy(manifest)
        checks.at(mutant, path)["misspelt"] = "x"
        assert checks.crd_faults(mutant, definition)


def test_job_has_the_cluster_of_the_cluster_file() -> None:
    cluster, job = cluster_specs()
    without = {**cluster, "workerGroupSpecs": [g for g in cluster["workerGroupSpecs"] if g["replicas"]]}
    assert job == without


def test_workers_of_the_job_fit_in_the_pods() -> None:
    asked = yaml.safe_load((DEPLOY / "job" / "cluster.yaml").read_text())["cluster"]
    for spec in cluster_specs():
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        room = 0
        for group in spec["workerGroupSpecs"]:
            assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            room += group["replicas"] * (int(limits["cpu"]) // asked["cpus_per_worker"])
        assert room == asked["workers"]


def test_gpu_pods_hold_one_worker_a_gpu() -> None:
    [group] = [g for g in one("raycluster")["spec"]["workerGroupSpecs"] if g["groupName"] == "gpu"]
    [container] = group["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["image"].endswith("-cuda")


def test_requests_are_the_limits_of_ray_pods() -> None:
    held = [c["resources"] for c in containers() if c["name"].startswith("ray-") and c["name"] != "ray-job-submitter"]
    assert all(r["requests"] == r["limits"] for r in held)


def test_job_finds_its_config_in_every_pod() -> None:
    assert one("rayjob")["spec"]["entrypoint"] == "rayinf influence /home/rayinf/job/cluster.yaml --address auto"
    assert (DEPLOY / "job" / "cluster.yaml").exists()
    for spec in cluster_specs():
        for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
            pod = group["template"]["spec"]
            assert [m["mountPath"] for c in pod["containers"] for m in c["volumeMounts"]] == ["/home/rayinf/job"]
            assert pod["volumes"][0]["configMap"]["name"] == "rayinf-job"


def test_token_is_on_and_secrets_are_references() -> None:
    for spec in cluster_specs():
        assert spec["authOptions"] == {"mode": "token", "secretName": "rayinf-auth"}
    assert not [m for _, m in MANIFESTS if m["kind"] == "Secret"]
    for container in containers():
        assert not [e for e in container.get("env", []) if "value" in e and re.search("KEY|TOKEN|SECRET", e["name"])]


def test_no_pod_may_run_as_root() -> None:
    [user] = re.findall(r"^USER (\d+):", (DEPLOY / "Dockerfile").read_text(), re.M)
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == int(user)
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_only_ray_and_the_submitter_reach_the_pods() -> None:
    ray, rest = documents(DEPLOY / "kuberay" / "network-policy.yaml")
    assert ray["spec"]["podSelector"] == {"matchLabels": {"ray.io/is-ray-node": "yes"}}
    assert ray["spec"]["policyTypes"] == ["Ingress", "Egress"]
    open_to_all = [rule for rule in ray["spec"]["ingress"] if not rule.get("from")]
    assert open_to_all == []
    wide = [r for r in ray["spec"]["ingress"] if "ports" not in r]
    assert [r["from"] for r in wide] == [[{"podSelector": ray["spec"]["podSelector"]}]]
    assert rest["spec"] == {"podSelector": {}, "policyTypes": ["Ingress"]}


def test_versions_are_those_of_the_project() -> None:
    root = DEPLOY.parent
    [ray] = re.findall(r"^ray==(.+)$", (root / "constraints.txt").read_text(), re.M)
    [own] = re.findall(r'^version = "(.+)"$', (root / "pyproject.toml").read_text(), re.M)
    assert [spec["rayVersion"] for spec in cluster_specs()] == [ray, ray]
    assert {c["image"] for c in containers()} == {f"REGISTRY/rayinf:{own}", f"REGISTRY/rayinf:{own}-cuda"}
    for text in (DEPLOY / "README.md", DEPLOY / "Dockerfile"):
        assert set(re.findall(r"REGISTRY/rayinf:([\w.]+)", text.read_text())) == {own}
