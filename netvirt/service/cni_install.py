"""Making a node's container runtime use virtkit: the program, then the conflist.

A runtime calls a plugin as soon as a conflist names it, and a Kubernetes node turns Ready as soon
as there is one. So the conflist comes last, and goes first.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from netvirt.backends import node_files
from netvirt.cni.call import CHOICES, VERSIONS
from tenancy.errors import InvalidRequest
from tenancy.names import validate_name

PLUGIN = "virtkit"
DEFAULT_BIN_DIR = Path("/opt/cni/bin")
DEFAULT_CONF_DIR = Path("/etc/cni/net.d")
DEFAULT_RUN_DIR = Path("/run/virtkit")
DEFAULT_CONFLIST = "10-virtkit.conflist"
# In an image or a package; else where `make` leaves it in a checkout.
PROGRAM = Path("/usr/libexec/virtkit/virtkit-cni")
CHECKOUT_PROGRAM = Path(__file__).parents[2] / "build" / "virtkit-cni"

# The newest that containerd 1.6 takes.
DEFAULT_CNI_VERSION = "1.0.0"
CHAINED = ("portmap", "bandwidth", "tuning")
SMALLEST_MTU, LARGEST_MTU = 576, 65_535

# CNI specification 1.1, "Network configuration format", key `name`.
_CONFLIST_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Conflist:
    """What a conflist says. `allow` is what a container may choose; None leaves the default."""

    name: str = PLUGIN
    cni_version: str = DEFAULT_CNI_VERSION
    tenant: str = "default"
    network: str = "pods"
    mtu_bytes: int | None = None
    allow: Sequence[str] | None = None
    chain: Sequence[str] = ()
    sysctls: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if not _CONFLIST_NAME.fullmatch(self.name):
            raise InvalidRequest(
                f"conflist name {self.name!r} is not usable. Choose letters, digits, dots, dashes "
                "and underscores that begin with a letter or digit."
            )
        validate_name("tenant", self.tenant)
        validate_name("network", self.network)
        _check_choice("CNI version", [self.cni_version], VERSIONS)
        _check_choice("--chain", self.chain, CHAINED)
        _check_choice("--allow", self.allow or (), CHOICES)
        if self.mtu_bytes is not None and not SMALLEST_MTU <= self.mtu_bytes <= LARGEST_MTU:
            raise InvalidRequest(
                f"MTU {self.mtu_bytes} is out of range. Choose {SMALLEST_MTU} to {LARGEST_MTU}, or "
                "omit it and it is the network's."
            )
        if bool(self.sysctls) != ("tuning" in self.chain):
            raise InvalidRequest(
                "tuning sets what --sysctl says, and nothing else does. Give both `--chain tuning` "
                "and --sysctl, or neither."
            )

    def text(self) -> str:
        """The file's contents; equal conflists have equal ones."""
        own: dict[str, Any] = {
            "type": PLUGIN,
            "tenant": self.tenant,
            "network": self.network,
            "capabilities": {"ips": True, "mac": True},
        }
        if self.mtu_bytes is not None:
            own["mtu"] = self.mtu_bytes
        if self.allow is not None:
            own["allow"] = sorted(set(self.allow))
        chained: dict[str, dict[str, Any]] = {
            "portmap": {"type": "portmap", "capabilities": {"portMappings": True}},
            "bandwidth": {"type": "bandwidth", "capabilities": {"bandwidth": True}},
            "tuning": {"type": "tuning", "sysctl": dict(self.sysctls or {})},
        }
        document = {
            "cniVersion": self.cni_version,
            "name": self.name,
            "plugins": [own, *(chained[plugin] for plugin in dict.fromkeys(self.chain))],
        }
        return json.dumps(document, indent=2) + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where a node's runtime looks. `conflist` is a file name: the first by name is used."""

    bin_dir: Path = DEFAULT_BIN_DIR
    conf_dir: Path = DEFAULT_CONF_DIR
    conflist: str = DEFAULT_CONFLIST

    def __post_init__(self) -> None:
        if Path(self.conflist).name != self.conflist or not re.fullmatch(
            r"[^.].*\.conflist", self.conflist
        ):
            raise InvalidRequest(
                f"conflist file {self.conflist!r} would be read by no runtime. Give a name without "
                f"directories that ends in .conflist, such as {DEFAULT_CONFLIST}."
            )

    @property
    def program_file(self) -> Path:
        return self.bin_dir / PLUGIN

    @property
    def conflist_file(self) -> Path:
        return self.conf_dir / self.conflist


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFile:
    """One file that a node is to have."""

    path: Path
    contents: bytes
    mode: int

    def is_there(self) -> bool:
        return node_files.is_as_wanted(self.path, self.contents, self.mode)


def chain_for(places: Places, asked: Sequence[str] | None) -> tuple[str, ...]:
    """The chained plugins: those asked for, else portmap where the node has it.

    Without portmap a container's port mappings would be ignored without a word; with a plugin
    that is not there no container would start at all.
    """
    if asked is None:
        return ("portmap",) if (places.bin_dir / "portmap").exists() else ()
    chosen = () if list(asked) == ["none"] else tuple(asked)
    _check_choice("--chain", chosen, (*CHAINED, "none"))
    if "none" in chosen:
        raise InvalidRequest("--chain none stands alone. Leave it out, or the others.")
    for plugin in chosen:
        if not (places.bin_dir / plugin).exists():
            raise InvalidRequest(
                f"chained plugin {plugin} is not in {places.bin_dir}, and no container would "
                "start. Install the CNI reference plugins there (Debian's are in /usr/lib/cni), or "
                "leave it out of --chain."
            )
    return chosen


def wanted(places: Places, conflist: Conflist, program: Path | None) -> tuple[NodeFile, NodeFile]:
    """The program and the conflist, in the order in which they have to come."""
    source = program or (PROGRAM if PROGRAM.exists() else CHECKOUT_PROGRAM)
    return (
        NodeFile(path=places.program_file, contents=node_files.read_program(source), mode=0o755),
        # Kubernetes' kubelet, runtimes and checks of a node read it; it holds no secret.
        NodeFile(path=places.conflist_file, contents=conflist.text().encode(), mode=0o644),
    )


def install(
    program: NodeFile, conflist: NodeFile, *, run_dir: Path, wait_s: float | None
) -> dict[Path, bool]:
    """Put both in place, and say which were not there before.

    With `wait_s`, the conflist is written only when the agent can serve; if it cannot in that
    time, `BackendUnavailable`, and the node has the program alone.
    """
    written = {program.path: _put(program)}
    if wait_s is not None:
        node_files.wait_for_agent(run_dir, wait_s)
    written[conflist.path] = _put(conflist)
    return written


def uninstall(places: Places) -> dict[Path, bool]:
    """Take both away, the conflist first, and say which were there."""
    return {path: node_files.remove(path) for path in (places.conflist_file, places.program_file)}


def _put(file: NodeFile) -> bool:
    if file.is_there():
        return False
    node_files.put(file.path, file.contents, file.mode)
    return True


def _check_choice(what: str, chosen: Sequence[str], known: Sequence[str]) -> None:
    for one in chosen:
        if one not in known:
            raise InvalidRequest(f"{what} {one!r} is not known. Choose of: {', '.join(known)}.")
