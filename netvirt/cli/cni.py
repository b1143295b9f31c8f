"""`nvctl cni`: how this node's container runtime comes to use virtkit."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from netvirt.backends import node_files
from netvirt.service import attachments, cni_install
from netvirt.service.attachments import AttachmentState
from netvirt.service.cni_install import Conflist, Places
from tenancy.cli import Format, Output, parse_pairs, session, show

app = typer.Typer(help="Containers of this node's runtime.", no_args_is_help=True)

BinDir = Annotated[Path, typer.Option(help="Where the runtime looks for programs.")]
ConfDir = Annotated[Path, typer.Option(help="Where it looks for network configurations.")]
ConflistFile = Annotated[
    str, typer.Option("--conflist", help="File name; the runtime uses the first by name.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")]


@app.command()
def install(
    tenant: Annotated[str, typer.Option("--tenant", "-t", help="Whose containers.")] = "default",
    network: Annotated[str, typer.Option("--network", "-n", help="The network they join.")] = (
        "pods"
    ),
    name: Annotated[str, typer.Option(help="The conflist's name.")] = cni_install.PLUGIN,
    cni_version: Annotated[
        str, typer.Option(help="Which CNI the runtime speaks; containerd 1.6 none newer.")
    ] = cni_install.DEFAULT_CNI_VERSION,
    mtu: Annotated[
        int | None, typer.Option(help="Bytes, if less than the network's.", show_default=False)
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            help="What a container may choose for itself: ips, mac, network, tenant; or none. "
            "Repeatable.",
            show_default="ips, mac, network",
        ),
    ] = None,
    chain: Annotated[
        list[str] | None,
        typer.Option(
            help="Plugin that follows: portmap, bandwidth, tuning; or none. Repeatable.",
            show_default="portmap, if it is there",
        ),
    ] = None,
    sysctl: Annotated[
        list[str] | None, typer.Option(help="NAME=VALUE for tuning, repeatable.")
    ] = None,
    program: Annotated[
        Path | None,
        typer.Option(
            help="The program to install.",
            show_default=f"{cni_install.PROGRAM}, else a checkout's",
        ),
    ] = None,
    bin_dir: BinDir = cni_install.DEFAULT_BIN_DIR,
    conf_dir: ConfDir = cni_install.DEFAULT_CONF_DIR,
    conflist: ConflistFile = cni_install.DEFAULT_CONFLIST,
    run_dir: Annotated[
        Path, typer.Option(help="Where the agent's socket is.")
    ] = cni_install.DEFAULT_RUN_DIR,
    wait_for_agent: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            max=3600,
            help="Seconds to wait at most until the agent can serve, before the conflist is "
            "written.",
            show_default=False,
        ),
    ] = None,
    dry_run: DryRun = False,
    output: Output = Format.TABLE,
) -> None:
    """Install the CNI program, then the conflist that makes the runtime use it.

    What is there already stays as it is. Run it again to upgrade.
    """
    places = Places(bin_dir=bin_dir, conf_dir=conf_dir, conflist=conflist)
    wish = Conflist(
        name=name,
        cni_version=cni_version,
        tenant=tenant,
        network=network,
        mtu_bytes=mtu,
        allow=() if allow == ["none"] else allow,
        chain=cni_install.chain_for(places, chain),
        sysctls=parse_pairs("sysctl", sysctl),
    )
    files = cni_install.wanted(places, wish, program)
    for other in node_files.configurations_before(places.conflist_file):
        print(
            f"{conf_dir / other} sorts before {conflist}: a runtime uses that one. Remove it, or "
            "choose an earlier name with --conflist.",
            file=sys.stderr,
        )
    if dry_run:
        show([_line(one.path, not one.is_there(), "would be written") for one in files], output)
        if output is Format.TABLE:
            print(f"\n{wish.text()}", end="")
        return
    written = cni_install.install(*files, run_dir=run_dir, wait_s=wait_for_agent)
    show([_line(path, new, "written") for path, new in written.items()], output)


@app.command()
def uninstall(
    bin_dir: BinDir = cni_install.DEFAULT_BIN_DIR,
    conf_dir: ConfDir = cni_install.DEFAULT_CONF_DIR,
    conflist: ConflistFile = cni_install.DEFAULT_CONFLIST,
    dry_run: DryRun = False,
    output: Output = Format.TABLE,
) -> None:
    """Take the conflist away, then the program.

    Containers that run keep their interfaces; nothing can take those away in an orderly manner
    any more, so stop the containers first.
    """
    places = Places(bin_dir=bin_dir, conf_dir=conf_dir, conflist=conflist)
    if dry_run:
        found = {path: path.exists() for path in (places.conflist_file, places.program_file)}
        show(
            [_line(path, one, "would be removed", "absent") for path, one in found.items()], output
        )
        return
    removed = cni_install.uninstall(places)
    show([_line(path, gone, "removed", "absent") for path, gone in removed.items()], output)


@app.command("list")
def list_(
    context: typer.Context,
    host: Annotated[str | None, typer.Option(help="Of this host only.", show_default=False)] = None,
    output: Output = Format.TABLE,
) -> None:
    """List containers' interfaces that are attached, and the ports that they are on."""
    with session(context).fabric() as fabric:
        found = [_record(state) for state in attachments.list_all(fabric, host)]
    columns = ["host", "pod", "container", "interface", "tenant", "network", "addresses", "port"]
    table = [{**one, "container": one["container"][:12]} for one in found]
    show(table if output is Format.TABLE else found, output, columns)


def _record(state: AttachmentState) -> dict[str, Any]:
    labels = state.port.labels
    return {
        "host": state.attachment.host,
        "conflist": state.attachment.conflist,
        "container": state.attachment.container,
        "interface": state.attachment.interface,
        "netns": state.attachment.netns,
        "pod": f"{labels['pod-namespace']}/{labels['pod']}" if "pod" in labels else "",
        "tenant": state.tenant_name,
        "network": state.network_name,
        "mac": str(state.port.mac),
        "addresses": [str(address) for address in state.port.addresses],
        "port": state.port.name,
        "port_id": str(state.port.id),
    }


def _line(path: Path, changed: bool, change: str, otherwise: str = "unchanged") -> dict[str, str]:
    return {"file": str(path), "state": change if changed else otherwise}
