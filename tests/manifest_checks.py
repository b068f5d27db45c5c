"""Strict checks of Kubernetes manifests: unknown keys and wrong types are faults, at every level.

What belongs to KubeRay is held against a schema that is written here by hand, of the fields that deploy/ uses; pods,
policies and the rest against the models of the `kubernetes` client. `crd_faults` holds a manifest against KubeRay's own
definitions, where they are at hand.
"""

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import jsonschema
import kubernetes.client as models
import yaml

Path = tuple[str | int, ...]


def _closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": properties}


_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_TEXT, _WHOLE, _TRUTH = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
# Checked by the models of the kubernetes client.
_POD = _META = {"type": "object"}
_CLUSTER = _closed(
    ["rayVersion", "headGroupSpec", "workerGroupSpecs"],
    rayVersion=_TEXT,
    authOptions=_closed(["mode"], mode={"enum": ["disabled", "token"]}, secretName=_TEXT),
    headGroupSpec=_closed(
        ["template"],
        serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
        rayStartParams=_TEXTS,
        template=_POD,
    ),
    workerGroupSpecs={
        "type": "array",
        "items": _closed(
            ["groupName", "maxReplicas", "minReplicas", "template"],
            groupName=_TEXT,
            replicas=_WHOLE,
            minReplicas=_WHOLE,
            maxReplicas=_WHOLE,
            rayStartParams=_TEXTS,
            template=_POD,
        ),
    },
)
_JOB = _closed(
    ["entrypoint", "rayClusterSpec"],
    entrypoint=_TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
    backoffLimit=_WHOLE,
    preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
    shutdownAfterJobFinishes=_TRUTH,
    ttlSecondsAfterFinished=_WHOLE,
    submitterPodTemplate=_POD,
    rayClusterSpec=_CLUSTER,
)


def _resource(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    held = {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}, "metadata": _META, "spec": spec}
    return _closed(list(held), **held)


SCHEMAS = {"RayCluster": _resource("RayCluster", _CLUSTER), "RayJob": _resource("RayJob", _JOB)}
_PODS = ("template", "submitterPodTemplate")


def faults(manifest: dict[str, Any]) -> list[str]:
    """What is wrong with a manifest, in words; empty where nothing is."""
    kind = str(manifest.get("kind"))
    if kind not in SCHEMAS:
        return model_faults(manifest, f"V1{kind}", (kind,))
    found = [
        f"{e.json_path}: {e.message}" for e in jsonschema.Draft202012Validator(SCHEMAS[kind]).iter_errors(manifest)
    ]
    found += model_faults(manifest.get("metadata"), "V1ObjectMeta", (kind, "metadata"))
    for path, template in _find(manifest, _PODS):
        found += model_faults(template, "V1PodTemplateSpec", (kind, *path))
    return found


def model_faults(value: Any, kind: str, path: Path) -> list[str]:
    """How a value differs from what a type of the kubernetes client holds; types are its names, such as List[str]."""
    if listed := re.fullmatch(r"[Ll]ist\[(.+)\]", kind):
        if not isinstance(value, list):
            return [f"{path}: {value!r} is not a list"]
        return [f for k, v in enumerate(value) for f in model_faults(v, listed[1], (*path, k))]
    if mapped := re.fullmatch(r"[Dd]ict[\[(]str, (.+)[\])]", kind):
        if not isinstance(value, dict):
            return [f"{path}: {value!r} is not a mapping"]
        return [f for k, v in value.items() for f in model_faults(v, mapped[1], (*path, k))]
    plain: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "bool": bool, "datetime": datetime}
    if kind == "object":  # a number or a name, as in ports
        return [] if isinstance(value, int | str) else [f"{path}: {value!r} is neither a number nor text"]
    if kind in plain:
        wrong = not isinstance(value, plain[kind]) or (isinstance(value, bool) and kind != "bool")
        return [f"{path}: {value!r} is not of type {kind}"] if wrong else []
    model = getattr(models, kind, None)
    if model is None:
        return [f"{path}: there is no {kind}"]
    if not isinstance(value, dict):
        return [f"{path}: {value!r} is not a mapping"]
    names = {written: name for name, written in model.attribute_map.items()}
    found = [f"{path}: {kind} has no {key!r}" for key in value if key not in names]
    for key, held in value.items():
        if key in names:
            found += model_faults(held, model.openapi_types[names[key]], (*path, key))
    return found


def read_definition(text: str, version: str) -> dict[str, Any]:
    """The schema in a CustomResourceDefinition of KubeRay's own, with unknown keys refused."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # these files have a megabyte
    versions = yaml.load(text, loader)["spec"]["versions"]
    [schema] = [v["schema"]["openAPIV3Schema"] for v in versions if v["name"] == version]
    _close(schema)
    schema["properties"]["metadata"] = {"type": "object"}
    return schema


def crd_faults(manifest: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """How a manifest differs from what `read_definition` gave."""
    return [f"{e.json_path}: {e.message}" for e in jsonschema.Draft202012Validator(schema).iter_errors(manifest)]


def _close(schema: Any) -> None:
    """Refuse unknown keys wherever keys are named; a number or a text is both, as Kubernetes reads it."""
    for part in schema if isinstance(schema, list) else schema.values() if isinstance(schema, dict) else ():
        _close(part)
    if not isinstance(schema, dict):
        return
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string") is True:
        schema.pop("type", None)


def _find(value: Any, keys: tuple[str, ...], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Every value under one of the keys, outermost first."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, held in items:
        if key in keys:
            yield (*path, key), held
        else:
            yield from _find(held, keys, (*path, key))


def mappings(value: Any, path: Path = ()) -> Iterator[Path]:
    """Where mappings stand."""
    if isinstance(value, dict):
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, held in items:
        yield from mappings(held, (*path, key))


def leaves(value: Any, path: Path = ()) -> Iterator[Path]:
    """Where single values stand."""
    if not isinstance(value, dict | list):
        yield path
        return
    for key, held in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(held, (*path, key))


def at(value: Any, path: Path) -> Any:
    """What stands at a path."""
    for key in path:
        value = value[key]
    return value
