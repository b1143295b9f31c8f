"""What `nvctl` and `svctl` have in common: the database option, output, errors, and `tenant`.

This is an edge: here, and nowhere deeper, an error becomes one sentence on stderr and an exit
code, and a record becomes a table, JSON or YAML on stdout.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from tenancy import service, settings
from tenancy.backends import tls
from tenancy.backends.fabric import Fabric
from tenancy.errors import InvalidRequest, VirtkitError
from tenancy.model import UNLIMITED, Resource, Tenant
from tenancy.names import format_size, parse_size

Record = Mapping[str, Any]

# What typer ends with after Ctrl-C: 128 + SIGINT.
INTERRUPTED = 130


class Format(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Output = Annotated[Format, typer.Option("-o", "--output", help="How to print the result.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Labels = Annotated[list[str] | None, typer.Option("--label", help="KEY=VALUE, repeatable.")]


DatabaseOption = Annotated[
    str | None,
    typer.Option(
        "--db", help="Fabric database, such as unix:PATH or ssl:IP:PORT.", show_default=False
    ),
]


@dataclass(slots=True)
class Session:
    """What the options before the sub-command chose."""

    settings: settings.Settings
    # Told before anything that may have to be waited for, and after all that a user is asked.
    before_connecting: Callable[[], None] = lambda: None

    @contextmanager
    def fabric(self) -> Iterator[Fabric]:
        self.before_connecting()
        self.use_certificates()
        with Fabric.connect(self.settings.db) as fabric:
            yield fabric

    def use_certificates(self) -> None:
        """Let this process connect over TLS, if the database is reached that way."""
        tls.use(Path(self.settings.tls.directory), self.settings.db)


def root(help_text: str) -> typer.Typer:
    """A command with the options that all of virtkit's commands take.

    A command with more registers a callback of its own, which takes this one's place.
    """
    app = typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @app.callback()
    def options(context: typer.Context, db: DatabaseOption = None) -> None:
        context.obj = Session(settings.load(db=db))

    return app


def session(context: typer.Context) -> Session:
    found = context.find_object(Session)
    assert found is not None, "the command was not built by root()"
    return found


def run(app: Callable[[], Any]) -> NoReturn:
    """Run a command to its exit code: 0 done, 1 failed, 2 misuse."""
    try:
        app()
    except VirtkitError as error:
        print(f"{' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as ended:
        if ended.code == INTERRUPTED:
            print("interrupted. To finish it, run the same command again.", file=sys.stderr)
        raise
    except BrokenPipeError:
        # The reader of our output has gone; there is nobody left to tell.
        sys.stderr.close()
        sys.exit(1)
    sys.exit(0)


def show(
    result: Record | Sequence[Record], output: Format, columns: Sequence[str] | None = None
) -> None:
    """Print one record or a list of them. `columns` are those of the table; JSON has all."""
    if output is Format.JSON:
        print(json.dumps(result, indent=2, default=str))
    elif output is Format.YAML:
        import yaml

        plain = json.loads(json.dumps(result, default=str))
        print(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), end="")
    elif isinstance(result, Mapping):
        _print_table(["field", "value"], [[key, _cell(value)] for key, value in result.items()])
    else:
        chosen = list(columns or (result[0] if result else ()))
        _print_table(chosen, [[_cell(record.get(c)) for c in chosen] for record in result])


def confirm(question: str, *, yes: bool) -> None:
    """Go on only if the user says so; without a terminal, only with --yes."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise InvalidRequest(f"{question} There is no terminal to ask on: give --yes.")
    typer.confirm(question, abort=True, err=True)


def parse_pairs(what: str, pairs: Sequence[str] | None) -> dict[str, str]:
    """`KEY=VALUE` options as a mapping."""
    found = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InvalidRequest(f"{what} {pair!r} is not KEY=VALUE. Write it with an equals sign.")
        found[key] = value
    return found


def _cell(value: Any) -> str:
    if value is None or value == [] or value == {}:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return "  ".join(f"{key}={_cell(item)}" for key, item in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_cell(item) for item in value)
    return str(value)


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    if not header:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in header:
        table.add_column(name.upper().replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*row)
    # Off a terminal a line is a record, however long: never fold what a script may read.
    width = None if sys.stdout.isatty() else 10_000
    # What users wrote is text: `[/b]` in a label is no markup, and `:cat:` no picture.
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    console.print(table)


# The `tenant` sub-command


def tenant_app() -> typer.Typer:
    app = typer.Typer(help="Tenants and their quotas.", no_args_is_help=True)
    app.command("create")(_create)
    app.command("list")(_list)
    app.command("get")(_get)
    app.command("set")(_set)
    app.command("delete")(_delete)
    return app


QuotaOption = Annotated[
    list[str] | None,
    typer.Option(
        "--quota",
        help=f"RESOURCE=LIMIT, repeatable; of {', '.join(Resource)}; LIMIT may be `unlimited`.",
    ),
]


def _create(
    context: typer.Context,
    name: str,
    quota: QuotaOption = None,
    label: Labels = None,
    output: Output = Format.TABLE,
) -> None:
    """Create a tenant."""
    limits, labels = parse_quota(quota), parse_pairs("label", label)
    with session(context).fabric() as fabric:
        _show(service.create(fabric, name, quota=limits, labels=labels), output)


def _list(context: typer.Context, output: Output = Format.TABLE) -> None:
    """List all tenants."""
    with session(context).fabric() as fabric:
        tenants = service.list_all(fabric)
    if output is Format.TABLE:
        show([_row(tenant) for tenant in tenants], output, ["name", *Resource, "labels"])
    else:
        show([_record(tenant) for tenant in tenants], output)


def _get(context: typer.Context, name: str, output: Output = Format.TABLE) -> None:
    """Show one tenant: its limits and what it uses."""
    with session(context).fabric() as fabric:
        _show(service.get(fabric, name), output)


def _set(
    context: typer.Context,
    name: str,
    quota: QuotaOption = None,
    label: Labels = None,
    output: Output = Format.TABLE,
) -> None:
    """Change a tenant's quota, or replace its labels."""
    limits, labels = parse_quota(quota), parse_pairs("label", label)
    if not limits and label is None:
        raise InvalidRequest(f"tenant {name}: nothing to set. Give --quota or --label.")
    with session(context).fabric() as fabric:
        if limits:
            service.set_quota(fabric, name, limits)
        if label is not None:
            service.set_labels(fabric, name, labels)
        _show(service.get(fabric, name), output)


def _delete(context: typer.Context, name: str, yes: Yes = False) -> None:
    """Delete a tenant that owns nothing any more."""
    with session(context).fabric() as fabric:
        service.find(fabric, name)
        confirm(f"Delete tenant {name}?", yes=yes)
        service.delete(fabric, name)


def parse_quota(pairs: Sequence[str] | None) -> dict[Resource, int]:
    """What `--quota` options say. Raises InvalidRequest."""
    limits = {}
    for key, text in parse_pairs("quota", pairs).items():
        try:
            resource = Resource(key)
        except ValueError as error:
            raise InvalidRequest(
                f"quota {key!r} is not a resource. Choose of: {', '.join(Resource)}."
            ) from error
        if text == "unlimited":
            limits[resource] = UNLIMITED
        elif resource is Resource.BYTES:
            limits[resource] = parse_size("quota bytes", text)
        elif text.isdecimal():
            limits[resource] = int(text)
        else:
            raise InvalidRequest(
                f"quota {key}={text} is not a number. Give a whole number or `unlimited`."
            )
    return limits


def _show(tenant: Tenant, output: Format) -> None:
    show(_row(tenant) if output is Format.TABLE else _record(tenant), output)


def _row(tenant: Tenant) -> dict[str, Any]:
    """What a table shows of a tenant: each resource on its own, as used/limit."""
    record = _record(tenant)
    return {
        "id": record["id"],
        "name": record["name"],
        **record["usage"],
        "labels": record["labels"],
    }


def _record(tenant: Tenant) -> dict[str, Any]:
    return {
        "id": str(tenant.id),
        "name": tenant.name,
        "usage": {
            str(resource): _usage(resource, allowance.used, allowance.limit)
            for resource, allowance in tenant.quota.items()
        },
        "quota": {
            str(resource): {"limit": allowance.limit, "used": allowance.used}
            for resource, allowance in tenant.quota.items()
        },
        "labels": dict(tenant.labels),
    }


def _usage(resource: Resource, used: int, limit: int) -> str:
    write = format_size if resource is Resource.BYTES else str
    return f"{write(used)}/{'unlimited' if limit == UNLIMITED else write(limit)}"
