"""What can be wrong with the servers of the fabric database. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from tenancy.diagnosis import Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """One server, at one of the remotes that the address lists.

    `failure` is why it does not answer. `connected` is false for a member of a cluster that has no
    contact with a majority, and for a relay without its source.
    """

    remote: str
    failure: str | None = None
    schema: str | None = None
    model: str | None = None
    connected: bool = True


def servers(found: Sequence[ServerFacts], schema: str) -> list[Finding]:
    """Servers that don't answer, have no quorum or serve another schema than this program's."""
    findings = []
    for one in found:
        subject = f"fabric database {one.remote}"
        if one.failure is not None:
            findings.append(
                Finding(
                    kind="database-silent",
                    object=subject,
                    found=f"does not answer ({one.failure.rstrip('.')})",
                    remedy="start it on its machine (`nvctl db start`) and see its log, "
                    "or correct --db, VIRTKIT_DB or virtkit.toml",
                )
            )
            continue
        if not one.connected:
            findings.append(
                Finding(
                    kind="database-without-quorum",
                    object=subject,
                    found=f"answers, but its {one.model} database has no contact with the others: "
                    "nothing can be written through it",
                    remedy="start the other members, or bring back their network; "
                    "`ovs-appctl cluster/status virtkit` on its machine tells whom it misses",
                )
            )
        if one.schema != schema:
            findings.append(
                Finding(
                    kind="schema-differs",
                    object=subject,
                    found=f"serves schema {one.schema}, this program knows {schema}",
                    remedy="upgrade what is older; with the newer version, `nvctl db stop` and "
                    "`nvctl db start` convert the database",
                )
            )
    return findings
