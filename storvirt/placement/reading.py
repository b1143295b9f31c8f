"""Which of an object's OSDs answers an image's reads. Pure: names and what they mean."""

from enum import StrEnum

# librbd takes settings from the image's own metadata under this prefix.
KEY = "conf_rbd_read_from_replica_policy"


class ReadPolicy(StrEnum):
    """`primary`: the primary, as always. `balance`: any OSD that has the object, by chance.
    `localize`: the one nearest to the client, which must know where it is (`crush_location`).
    """

    PRIMARY = "primary"
    BALANCE = "balance"
    LOCALIZE = "localize"


def policy_of(note: str | None) -> ReadPolicy:
    """The policy that the image's metadata says; `default` is Ceph's word for the primary."""
    return (
        ReadPolicy(note)
        if note in (ReadPolicy.BALANCE, ReadPolicy.LOCALIZE)
        else (ReadPolicy.PRIMARY)
    )


def client_location(host: str) -> str:
    """The Ceph configuration of a client on this CRUSH host, for `localize`."""
    return f"[global]\ncrush_location = host={host}\n"
