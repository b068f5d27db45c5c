"""Whether a Ray answers at an address and would take this process in: known within seconds, before Ray itself tries.

Ray tries for minutes to reach an address at which nothing answers, and says of a wrong token that it cannot connect.
"""

from __future__ import annotations

import importlib
import os
import socket
import time
from contextlib import suppress
from typing import Any

from rayinf.engine import ray_token
from rayinf.errors import InputError

_ANSWER_SECONDS = 5.0
# A node that is just starting may not be listed yet.
_NODE_SECONDS = 5.0
# What every gRPC client says first, and an empty settings frame; the server's own settings frame is the answer.
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_CLIENT = "ray://"


def check_address(address: str) -> None:
    """Refuse an address that this process cannot join.

    Args:
        address: of a `Cluster`: "auto", a head's address, or that of a Ray client's server.

    Raises:
        InputError: no address can be found, no Ray answers there, it refuses the token of this process, or no node of
            its cluster runs on this machine.
    """
    if address == "auto":
        ray_token.take_found()
    ray_token.read_again()
    wanted = _resolve(address)
    fix = "start Ray there (ray start --head), correct the address, or leave it out to start Ray on this machine."
    if wanted is None:
        raise InputError(f"Cluster(address={address!r}): no Ray runs on this machine, and RAY_ADDRESS is not set.", fix)
    host, _, port = wanted.removeprefix(_CLIENT).rpartition(":")
    if not host or not port.isdigit():
        raise InputError(f"Cluster(address={address!r}) is not a host and a port.", 'pass "auto" or "host:6379".')
    if why := _silent(host.strip("[]"), int(port)):
        raise InputError(f"Cluster(address={address!r}): no Ray answers at {host}:{port} ({why}).", fix)
    if why := ray_token.wanting() or _refusal(wanted):
        raise InputError(f"Cluster(address={address!r}) cannot be joined: {why}.", ray_token.GIVE)
    if not wanted.startswith(_CLIENT) and not _has_node_here(wanted):
        raise InputError(
            f"Cluster(address={address!r}): a Ray answers at {host}:{port}, but no node of its cluster runs on this "
            "machine.",
            "run the same command on one of the cluster's machines, or send it there: rayinf submit.",
        )


def _resolve(address: str) -> str | None:
    """The address that Ray would take: from its environment variable or its files for "auto"."""
    if address != "auto":
        return address
    try:
        from ray._private.services import get_ray_address_from_environment

        found = get_ray_address_from_environment("auto", None)
    except (ImportError, TypeError):  # another version of Ray
        return os.environ.get("RAY_ADDRESS") or None
    return None if found in (None, "auto") else str(found)


def _silent(host: str, port: int) -> str:
    """Why no gRPC server answers there; empty where one does."""
    try:
        with socket.create_connection((host, port), _ANSWER_SECONDS) as line:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return ""
            line.settimeout(_ANSWER_SECONDS)
            line.sendall(_PREFACE)
            answer = line.recv(9)
            return "" if answer[3:4] == b"\x04" else "something else listens there"
    except TimeoutError:
        return f"no answer in {_ANSWER_SECONDS:.0f} s"
    except OSError as error:
        return error.strerror or str(error)


def _refusal(address: str) -> str:
    """Why a Ray does not take this process in; empty where it would, or this version of Ray has no such request."""
    with suppress(ImportError, AttributeError):
        grpc: Any = importlib.import_module("grpc")
        try:
            _ask(address)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
                return ray_token.refused()
            if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED and not address.startswith(_CLIENT):
                return f"it accepts a connection, and does not answer in {_ANSWER_SECONDS:.0f} s"
    return ""


def _ask(address: str) -> Any:
    """A question that every Ray answers: the head its cluster's id, a Ray client's server a sign of life."""
    name = "ray_client" if address.startswith(_CLIENT) else "gcs_service"
    messages: Any = importlib.import_module(f"ray.core.generated.{name}_pb2")
    services: Any = importlib.import_module(f"ray.core.generated.{name}_pb2_grpc")
    channel = _channel(address)
    try:
        if name == "ray_client":
            request = messages.ClusterInfoRequest(type=messages.ClusterInfoType.PING)
            return services.RayletDriverStub(channel).ClusterInfo(request, timeout=_ANSWER_SECONDS)
        request = messages.GetClusterIdRequest()
        return services.NodeInfoGcsServiceStub(channel).GetClusterId(request, timeout=_ANSWER_SECONDS)
    finally:
        channel.close()


def _channel(address: str) -> Any:
    utils: Any = importlib.import_module("ray._private.grpc_utils")
    return utils.init_grpc_channel(address.removeprefix(_CLIENT))


def _has_node_here(address: str) -> bool:
    """Whether a node of the cluster runs on this machine: without one Ray looks for it for a minute."""
    end = time.monotonic() + _NODE_SECONDS
    while True:
        here, alive = _nodes_here(), _nodes_of(address)
        if here is None or alive is None or here & alive:
            return True
        if time.monotonic() > end:
            return False
        time.sleep(0.5)


def _nodes_here() -> set[str] | None:
    with suppress(ImportError, AttributeError):
        services: Any = importlib.import_module("ray._private.services")
        return set(services.find_node_ids())
    return None


def _nodes_of(address: str) -> set[str] | None:
    """Ids of the nodes that live; None where this version of Ray has no such request."""
    with suppress(ImportError, AttributeError):
        grpc: Any = importlib.import_module("grpc")
        messages: Any = importlib.import_module("ray.core.generated.gcs_service_pb2")
        services: Any = importlib.import_module("ray.core.generated.gcs_service_pb2_grpc")
        channel = _channel(address)
        try:
            stub = services.NodeInfoGcsServiceStub(channel)
            found = stub.GetAllNodeInfo(messages.GetAllNodeInfoRequest(), timeout=_ANSWER_SECONDS)
            return {node.node_id.hex() for node in found.node_info_list if node.state == 0}
        except grpc.RpcError:
            return None
        finally:
            channel.close()
    return None
