"""Who has a certificate, and what it is good for. Pure.

There are two authorities, because the fabric database gives rights by the door that somebody comes
in by, and a door asks for the certificates of one authority: hosts may write only what is their
own (`tenancy.roles`), operators everything. A host's certificate opens no operators' door.

A certificate says whether it is a server's or a client's (extended key usage, RFC 5280 4.2.1.12),
and OpenSSL takes it for nothing else: a stolen host key can't pose as the database. Only a
member's is both, because members of a clustered database call one another.
"""

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from tenancy.errors import InvalidRequest
from tenancy.names import shortened

AUTHORITY_DAYS = 3650
DEFAULT_DAYS = 730
# One that ends within this time is issued anew by the same command.
RENEWED_WITHIN = timedelta(days=60)

# RFC 5280 allows a common name 64 characters; hosts are called as they call themselves.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,62}[A-Za-z0-9])?")


class Authority(StrEnum):
    """Whose certificates it signs, besides those of the servers that these connect to."""

    HOSTS = "hosts"
    OPERATORS = "operators"


class Kind(StrEnum):
    """What a certificate is for."""

    HOST = "host"
    OPERATOR = "operator"
    SERVER = "server"
    MEMBER = "member"

    @property
    def serves(self) -> bool:
        """Whether it is a database server's, which hosts and operators connect to."""
        return self in (Kind.SERVER, Kind.MEMBER)

    @property
    def authorities(self) -> tuple[Authority, ...]:
        """Those that sign it: a server is known to hosts and to operators."""
        match self:
            case Kind.HOST:
                return (Authority.HOSTS,)
            case Kind.OPERATOR:
                return (Authority.OPERATORS,)
            case Kind.SERVER | Kind.MEMBER:
                return (Authority.HOSTS, Authority.OPERATORS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate that was issued. `directory` holds it with its key and its authority's."""

    kind: Kind
    name: str
    authority: Authority
    serial: str
    not_after: datetime
    directory: str


def checked_name(kind: Kind, text: str) -> str:
    """`text` as the name that a certificate carries. Raises InvalidRequest."""
    if not _NAME.fullmatch(text):
        raise InvalidRequest(
            f"{kind} name {shortened(text)!r} is not usable in a certificate. Choose 1 to 64 "
            "letters, digits, dots, underscores and dashes that begin and end with a letter or "
            "digit: for a host, its name in virtkit.toml."
        )
    return text


def checked_days(days: int) -> int:
    """`days`, if a certificate can be valid for so long. Raises InvalidRequest."""
    if not 1 <= days <= AUTHORITY_DAYS:
        raise InvalidRequest(
            f"a certificate can't be valid for {days} days. Choose 1 to {AUTHORITY_DAYS}."
        )
    return days


def is_due(not_after: datetime, now: datetime) -> bool:
    """Whether a certificate ends so soon that another should be issued."""
    return not_after - now < RENEWED_WITHIN
