"""A client of the Kubernetes Container Runtime Interface: what a kubelet asks of a runtime.

The messages are those of `cri.proto`, compiled when this module is imported.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

_messages, _services = grpc.protos_and_services("tests/functional/runtimes/cri.proto")
_TIMEOUT_S = 60.0


class CriError(Exception):
    """The runtime's refusal, in its own words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """A pod as the runtime lists it."""

    id: str
    name: str
    is_ready: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """What the runtime believes about a pod's network: the first address, then the others."""

    ips: tuple[str, ...]
    netns: str


class Cri:
    """A connection to a runtime's socket. Each call returns when the runtime has done it."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self._runtime = _services.RuntimeServiceStub(self._channel)

    def close(self) -> None:
        """Give up the connection."""
        self._channel.close()

    def conditions(self) -> dict[str, bool]:
        """`RuntimeReady` and `NetworkReady`."""
        status = self._call("Status").status
        return {condition.type: condition.status for condition in status.conditions}

    def conflists(self) -> set[str]:
        """The names of the network configurations that the runtime has read, of all handlers."""
        info = self._call("Status", verbose=True).info
        found = [json.loads(info[key]) for key in info if key.startswith("cniconfig")]
        return {
            network["Config"]["Name"]
            for config in found
            if config
            for network in config["Networks"] or ()
        }

    def run_sandbox(
        self,
        name: str,
        *,
        namespace: str,
        uid: str,
        handler: str = "",
        host_ports: Mapping[int, int] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> tuple[str, Any]:
        """A new pod without containers: its id, and its configuration for `run_container`."""
        config = _messages.PodSandboxConfig(
            metadata=_messages.PodSandboxMetadata(name=name, uid=uid, namespace=namespace),
            hostname=name,
            port_mappings=[
                _messages.PortMapping(host_port=host, container_port=container)
                for host, container in (host_ports or {}).items()
            ],
            annotations=annotations or {},
            linux=_messages.LinuxPodSandboxConfig(cgroup_parent=f"/kubepods/pod{uid}"),
        )
        done = self._call("RunPodSandbox", config=config, runtime_handler=handler)
        return done.pod_sandbox_id, config

    def run_container(self, sandbox: str, config: Any, image: str, command: Sequence[str]) -> str:
        """The id of a new container that runs in the pod."""
        container = _messages.ContainerConfig(
            metadata=_messages.ContainerMetadata(name="main"),
            image=_messages.ImageSpec(image=image),
            command=command,
        )
        created = self._call(
            "CreateContainer", pod_sandbox_id=sandbox, config=container, sandbox_config=config
        )
        self._call("StartContainer", container_id=created.container_id)
        return str(created.container_id)

    def addresses(self, sandbox: str) -> Addresses:
        """The network status of a pod."""
        answer = self._call("PodSandboxStatus", pod_sandbox_id=sandbox, verbose=True)
        network = answer.status.network
        spec = json.loads(answer.info["info"])["runtimeSpec"]
        netns = [
            space["path"] for space in spec["linux"]["namespaces"] if space["type"] == "network"
        ]
        return Addresses(
            ips=(network.ip, *(extra.ip for extra in network.additional_ips)), netns=netns[0]
        )

    def sandboxes(self) -> list[Sandbox]:
        """All pods, whatever their state."""
        ready = _messages.PodSandboxState.Value("SANDBOX_READY")
        return [
            Sandbox(id=item.id, name=item.metadata.name, is_ready=item.state == ready)
            for item in self._call("ListPodSandbox").items
        ]

    def stop_sandbox(self, sandbox: str) -> None:
        """End what runs in a pod and take its network away."""
        self._call("StopPodSandbox", pod_sandbox_id=sandbox)

    def remove_sandbox(self, sandbox: str) -> None:
        """Forget a pod and its containers."""
        self._call("RemovePodSandbox", pod_sandbox_id=sandbox)

    def execute(self, container: str, argv: Sequence[str], timeout_s: int) -> tuple[int, str]:
        """A command in a running container: its exit code and what it printed."""
        done = self._call("ExecSync", container_id=container, cmd=argv, timeout=timeout_s)
        return int(done.exit_code), (done.stdout + done.stderr).decode(errors="replace")

    def _call(self, method: str, **fields: Any) -> Any:
        request = getattr(_messages, f"{method}Request")(**fields)
        try:
            return getattr(self._runtime, method)(request, timeout=_TIMEOUT_S)
        except grpc.RpcError as error:
            raise CriError(f"{method}: {error.details()}") from error
