"""A plugin called by hand, as runtimes and Multus call it: environment, standard input, answer."""

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lab.host import Host
from tests.functional.runtimes.conflist import PROGRAMS, Conflist


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """What a call is about: an interface of a container."""

    container: str
    netns: str
    interface: str = "eth0"


def call(
    host: Host,
    verb: str,
    config: Conflist,
    about: Attachment | None = None,
    added: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The decoded answer of the list's first plugin, which must succeed; `{}` if it printed none.

    `added` are keys that a runtime adds to the configuration, `prevResult` for instance.
    """
    done = _run(host, verb, config, about, added or {})
    assert done.returncode == 0, done.stdout or done.stderr
    answer: dict[str, Any] = json.loads(done.stdout or "{}")
    return answer


def _run(
    host: Host, verb: str, config: Conflist, about: Attachment | None, added: Mapping[str, Any]
) -> "subprocess.CompletedProcess[str]":
    plugin = config["plugins"][0]
    given = {**plugin, "name": config["name"], "cniVersion": config["cniVersion"], **added}
    environment = {"CNI_COMMAND": verb, "CNI_PATH": PROGRAMS}
    if about is not None:
        environment |= {
            "CNI_CONTAINERID": about.container,
            "CNI_NETNS": about.netns,
            "CNI_IFNAME": about.interface,
        }
    return host.run(
        [f"{PROGRAMS}/{plugin['type']}"],
        environment=environment,
        input=json.dumps(given),
        check=False,
        timeout_s=40,
    )
