"""Every command of `svctl`, with arguments that mean something: found in the command itself.

A verb that is added later is in the tests that use this by itself; what only it takes is to be
said in `SPECIAL` or `BY_NAME`, and a test fails until it is.
"""

from collections.abc import Iterator

import click
import typer

from storvirt import cli

# Commands that serve until they are told to end, or leave somebody behind who does.
SERVERS = {("golden", "serve"), ("image", "map")}

# What parameters of these names are given, whichever command takes them.
BY_NAME = {
    "tenant": "{tenant}",
    "pool": "{pool}",
    "name": "disk",
    "image": "disk",
    "ref": "disk@kept",
    "parent": "disk@kept",
    "size": "8MiB",
    "to": "/tmp/virtkit-verbs-{tenant}",
    "readers": "{tenant}-4",
    "policy": "primary",
    "new_name": "renamed",
    "names": "disk",
    "images": "disk",
    "which": "gone",
    "directory": "/tmp/virtkit-verbs-backup",
    "snapshot": "disk@kept",
    "source": "/usr/bin/env",
    "target": "{pool}",
    "keep": "1",
    "yes": True,
}

# What one command takes otherwise: positional arguments, then options.
SPECIAL: dict[tuple[str, ...], list[str]] = {
    ("tenant", "create"): ["{tenant}-2"],
    ("tenant", "get"): ["{tenant}"],
    ("tenant", "set"): ["{tenant}", "--label", "a=b"],
    ("tenant", "delete"): ["{tenant}", "--yes"],
    ("pool", "create"): ["{pool}-2", "--replicas", "2", "--pg-num", "1"],
    ("pool", "get"): ["{pool}"],
    ("pool", "set"): ["{pool}", "--compression", "none"],
    ("pool", "delete"): ["{pool}-gone", "--yes"],
    ("image", "create"): ["new", "--size", "8MiB", "--tenant", "{tenant}"],
    ("image", "import"): [
        *("imported", "--from", "/usr/bin/env", "--format", "raw"),
        *("--tenant", "{tenant}"),
    ],
    ("image", "clone"): ["disk@kept", "copy", "--tenant", "{tenant}"],
    ("image", "delete"): ["gone", "--tenant", "{tenant}", "--yes"],
    ("image", "resize"): ["disk", "--size", "16MiB", "--tenant", "{tenant}"],
    ("snapshot", "create"): ["disk@new", "--tenant", "{tenant}"],
    ("snapshot", "delete"): ["disk@gone", "--tenant", "{tenant}", "--yes"],
    ("namespace", "create"): ["{tenant}-4", "--pool", "{pool}"],
    ("namespace", "delete"): ["{tenant}-4", "--pool", "{pool}", "--yes"],
    ("tier", "create"): ["{pool}", "--cache", "{pool}-gone"],
    ("tier", "set"): ["{pool}", "objects=1000"],
    # Nobody's address: see RFC 5737.
    ("host", "fence"): ["nobody", "--address", "192.0.2.7", "--yes"],
    ("host", "unfence"): ["nobody", "--address", "192.0.2.7", "--yes"],
    ("image", "set"): ["disk", "--iops-limit", "100", "--tenant", "{tenant}"],
    ("image", "rename"): ["old", "renamed", "--tenant", "{tenant}"],
    ("image", "export"): [
        *("disk", "--tenant", "{tenant}"),
        *("--to", "/tmp/virtkit-verbs.raw", "--force"),
    ],
    ("place",): ["disk", "--tenant", "{tenant}"],
    # The others run beside it, and what they are at is theirs.
    ("doctor",): ["--dry-run"],
    ("pin",): ["disk", "--tenant", "{tenant}", "--host", "h1", "--dry-run"],
    ("migrate",): ["disk", "--tenant", "{tenant}", "--abort"],
}


def all_verbs() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command, by the words that call it."""
    yield from _below((), typer.main.get_command(cli.app))


def arguments(path: tuple[str, ...], command: click.Command, **values: str) -> list[str]:
    """The command line of a verb; `values` fills what stands in braces."""
    given = SPECIAL.get(path)
    if given is None:
        given = list(_by_name(path, command))
    return [*path, *(word.format(**values) for word in given)]


def _by_name(path: tuple[str, ...], command: click.Command) -> Iterator[str]:
    for parameter in command.params:
        value = BY_NAME.get(str(parameter.name))
        if parameter.param_type_name == "option":
            if value is True:
                yield parameter.opts[0]
            elif parameter.required:
                yield from (parameter.opts[-1], _known(path, parameter, value))
        elif parameter.required:
            yield _known(path, parameter, value)


def _known(path: tuple[str, ...], parameter: click.Parameter, value: object) -> str:
    assert isinstance(value, str), (
        f"svctl {' '.join(path)}: tests/functional/verbs.py does not know what to give as "
        f"{parameter.name}"
    )
    return value


def _below(
    path: tuple[str, ...], command: click.Command
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    children: dict[str, click.Command] | None = getattr(command, "commands", None)
    if children is not None:
        for name, child in children.items():
            yield from _below((*path, name), child)
    elif path not in SERVERS:
        yield path, command
