"""Network configuration lists, and the programs they name, put where a host's runtimes look.

A conflist is kept as the dictionary that its JSON is, see the CNI specification, "Section 1".
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.host import Host

Plugin = Mapping[str, Any]
Conflist = dict[str, Any]

DIRECTORY = "/etc/cni/net.d"
PROGRAMS = "/opt/cni/bin"
_DEBIAN = Path("/usr/lib/cni")


def conflist(name: str, *plugins: Plugin, version: str = "1.0.0") -> Conflist:
    """A list that calls these plugins, one after the other."""
    return {"cniVersion": version, "name": name, "plugins": list(plugins)}


def virtkit(**keys: Any) -> Plugin:
    """Virtkit's own plugin, with these keys."""
    return {"type": "virtkit", **keys}


def bridge(cidr: str, *, link: str = "cni0") -> Plugin:
    """What virtkit is compared with: Debian's `bridge`, with `host-local` for addresses."""
    return {
        "type": "bridge",
        "bridge": link,
        "isGateway": True,
        "ipMasq": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": cidr}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }


PORTMAP: Plugin = {"type": "portmap", "capabilities": {"portMappings": True}}
BANDWIDTH: Plugin = {"type": "bandwidth", "capabilities": {"bandwidth": True}}


def tuning(**sysctls: str) -> Plugin:
    """The plugin that sets sysctls, given as `net_core_somaxconn="500"`."""
    return {
        "type": "tuning",
        "sysctl": {name.replace("_", ".", 2): value for name, value in sysctls.items()},
    }


def write(host: Host, config: Conflist, directory: str = DIRECTORY) -> None:
    """Put a conflist where a runtime of this host reads it; at once, since it may be watching."""
    place = host.path(directory)
    place.mkdir(parents=True, exist_ok=True)
    draft = place / ".draft"
    draft.write_text(json.dumps(config, indent=2))
    draft.rename(place / f"10-{config['name']}.conflist")


def install_reference_plugins(host: Host) -> None:
    """Put Debian's plugins where runtimes look for them."""
    place = host.path(PROGRAMS)
    place.mkdir(parents=True, exist_ok=True)
    for program in _DEBIAN.iterdir():
        shutil.copy2(program, place)
