"""Options of the commands that make encrypted images."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tenancy.errors import InvalidRequest


class Encryption(StrEnum):
    """What librbd can encrypt an image with and everything here can open."""

    LUKS2 = "luks2"


EncryptOption = Annotated[
    Encryption | None, typer.Option("--encrypt", help="Keep only ciphertext in Ceph.")
]
PassphraseOption = Annotated[
    Path | None,
    typer.Option(help="What the image opens with; mode 0600, no line break.", show_default=False),
]


def to_encrypt(encrypt: Encryption | None, passphrase_file: Path | None) -> Path | None:
    """The file with the passphrase, if the image is to be encrypted. Raises InvalidRequest."""
    if (encrypt is None) != (passphrase_file is None):
        raise InvalidRequest(
            "an encrypted image needs both: --encrypt luks2 and --passphrase-file FILE."
        )
    return passphrase_file
