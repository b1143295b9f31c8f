"""Names, sizes and database addresses as people type them. Pure: text in, value or
`InvalidRequest` out.
"""

import re

from tenancy.errors import InvalidRequest

# A DNS label (RFC 1123): names end up in host names, Ceph entities and link aliases, and this is
# the one alphabet that all of them accept without quoting.
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SIZE = re.compile(r"(\d+)\s*([KMGTP]i?)?B?", re.IGNORECASE)
_BINARY_PREFIXES = "KMGTP"
LONGEST_SHOWN = 70
# ovsdb(7), "Connection Methods", of the active kind.
_REMOTE = re.compile(r"unix:.+|(?:tcp|ssl):(?:\[[0-9a-fA-F:.]+\]|[^:\[\]\s]+):(\d{1,5})")


def validate_name(kind: str, text: str) -> str:
    """`text`, if it can name an object of this kind."""
    if _NAME.fullmatch(text):
        return text
    raise InvalidRequest(
        f"{kind} name {shortened(text)!r} is not usable. Choose 1 to 63 lower-case letters, digits "
        "and dashes that begin and end with a letter or digit."
    )


def shortened(text: str) -> str:
    """`text` as an error may repeat it: its beginning, if it is very long."""
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def parse_size(what: str, text: str) -> int:
    """Bytes meant by `10GiB`, `512M` or `4096`; prefixes are binary, as in `rbd` and `qemu-img`."""
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise InvalidRequest(f"{what} {text!r} is not a size. Write a number and a unit: 10GiB.")
    number, prefix = found.groups()
    power = _BINARY_PREFIXES.index(prefix[0].upper()) + 1 if prefix else 0
    return int(number) * int(1024**power)


def validate_remotes(text: str) -> str:
    """`text`, if it says where a database is: unix:PATH, tcp:HOST:PORT, ssl:HOST:PORT, or several
    of them.
    """
    for remote in text.split(","):
        found = _REMOTE.fullmatch(remote)
        if not found or int(found[1] or 1) not in range(1, 2**16):
            raise InvalidRequest(
                f"database {text!r}: {remote!r} is not an address of one. Write unix:PATH or "
                "ssl:IP:PORT (tcp: without TLS), several with a comma between them."
            )
    return text


def rough_size(size_bytes: int) -> str:
    """A measured number of bytes, for people: `4.6MiB`, `14.9GiB`, `513`."""
    for power in range(len(_BINARY_PREFIXES), 0, -1):
        unit = 1024**power
        if size_bytes >= unit:
            return (
                f"{size_bytes / unit:.1f}".removesuffix(".0") + f"{_BINARY_PREFIXES[power - 1]}iB"
            )
    return str(size_bytes)


def format_size(size_bytes: int) -> str:
    """The shortest exact way to write a number of bytes: `10GiB`, `1536MiB`, `513`."""
    for power in range(len(_BINARY_PREFIXES), 0, -1):
        unit = 1024**power
        if size_bytes and size_bytes % unit == 0:
            return f"{size_bytes // unit}{_BINARY_PREFIXES[power - 1]}iB"
    return str(size_bytes)
