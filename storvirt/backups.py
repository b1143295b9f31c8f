"""A chain of backups: one full piece, then what changed since the piece before. Pure.

The manifest says which files make up the chain and what each of them and each restore must give.
It is replaced as a whole, last, so a piece that is not in it does not exist.

`content` is the SHA-256 over the SHA-256 of every 4 MiB of the disk (the last one may be
shorter): it covers every byte, and after an increment only what was touched is hashed anew.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import lru_cache

import msgspec

from storvirt.formats.rbddiff import Stretch
from tenancy.errors import InvalidRequest

BLOCK_BYTES = 4 << 20
MANIFEST = "manifest.json"


class Piece(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file of a chain: the disk as it was at `taken`, or what differs from the one before."""

    number: int
    file: str
    since: str | None
    until: str
    size_bytes: int
    file_bytes: int
    sha256: str
    content: str
    taken: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A chain. `image_id` is the id of the image's row; `next` the next piece's number."""

    format: int = 1
    chain: str
    tenant: str
    image: str
    image_id: str
    encryption: str | None = None
    next: int = 1
    pieces: tuple[Piece, ...] = ()

    @property
    def holder(self) -> str:
        """How the chain's snapshots say what needs them."""
        return f"backup chain {self.chain}"

    def snapshot(self, number: int) -> str:
        """The name of the snapshot that a piece is taken from."""
        return f"backup-{self.chain}-{number}"


class _Sealed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    manifest: Manifest
    seal: str


def encode(manifest: Manifest) -> bytes:
    """The manifest as it is kept, sealed against bits that flip."""
    sealed = _Sealed(manifest=manifest, seal=_seal(manifest))
    return msgspec.json.format(msgspec.json.encode(sealed), indent=2) + b"\n"


def decode(where: str, text: bytes) -> Manifest:
    """The manifest of `where`. Raises InvalidRequest if it is damaged or contradicts itself."""
    try:
        found = msgspec.json.decode(text, type=_Sealed)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{where} is no manifest of a backup chain ({error}).") from error
    manifest = found.manifest
    if found.seal != _seal(manifest):
        raise InvalidRequest(
            f"{where} is damaged: it does not match its own seal. Use another copy of the chain."
        )
    if manifest.format != 1:
        raise InvalidRequest(f"{where} has format {manifest.format}, made by a newer virtkit.")
    before = None
    for piece in manifest.pieces:
        if piece.since != before or "/" in piece.file or piece.number >= manifest.next:
            raise InvalidRequest(f"{where}: piece {piece.file} does not follow the one before it.")
        before = piece.until
    return manifest


def file_name(number: int, *, full: bool) -> str:
    return f"{number:06}.{'full' if full else 'diff'}"


def chosen(where: str, manifest: Manifest, number: int | None) -> tuple[Piece, ...]:
    """The pieces that a restore of piece `number` (None: the newest) needs. Raises."""
    if not manifest.pieces:
        raise InvalidRequest(f"{where} holds no complete backup yet. Run `svctl backup create`.")
    if number is None:
        return manifest.pieces
    for at, piece in enumerate(manifest.pieces):
        if piece.number == number:
            return manifest.pieces[: at + 1]
    have = ", ".join(str(piece.number) for piece in manifest.pieces)
    raise InvalidRequest(f"{where} has no backup {number}; it has {have}.")


def overlay(
    base: Sequence[Stretch], top: Sequence[Stretch], size_bytes: int
) -> tuple[Stretch, ...]:
    """`base` with `top` laid over it, cut to a size. Both are ascending and without overlap.

    What no stretch covers reads as zeros, so stretches of zeros are left out.
    """
    found: list[Stretch] = []
    first = 0
    for under in base:
        start = under.start
        while first < len(top) and top[first].end <= start:
            first += 1
        at = first
        while at < len(top) and top[at].start < under.end:
            if top[at].start > start:
                found.append(under.cut(start, top[at].start))
            start = max(start, top[at].end)
            at += 1
        if start < under.end:
            found.append(under.cut(start, under.end))
    found += [over for over in top if over.at is not None]
    kept = sorted(found, key=lambda stretch: stretch.start)
    return tuple(
        stretch if stretch.end <= size_bytes else stretch.cut(stretch.start, size_bytes)
        for stretch in kept
        if stretch.start < size_bytes
    )


def blocks_of(size_bytes: int) -> int:
    """How many blocks a disk has."""
    return -(-size_bytes // BLOCK_BYTES)


def touched(spans: Iterable[tuple[int, int]], old_bytes: int, size_bytes: int) -> set[int]:
    """The blocks that have to be hashed anew after these spans and a change of size."""
    found = set(range(blocks_of(old_bytes), blocks_of(size_bytes)))
    if old_bytes != size_bytes:
        # The block that ended the shorter of the two has another length now, or another end.
        found.add(min(old_bytes, size_bytes) // BLOCK_BYTES)
    for start, end in spans:
        found.update(range(start // BLOCK_BYTES, blocks_of(end)))
    return {block for block in found if block < blocks_of(size_bytes)}


def content(digests: Sequence[bytes]) -> str:
    return hashlib.sha256(b"".join(digests)).hexdigest()


@lru_cache(maxsize=8)
def zero_digest(length: int) -> bytes:
    """The SHA-256 of so many zeros."""
    return hashlib.sha256(bytes(length)).digest()


def block_length(block: int, size_bytes: int) -> int:
    return min(BLOCK_BYTES, size_bytes - block * BLOCK_BYTES)


def _seal(manifest: Manifest) -> str:
    return hashlib.sha256(msgspec.json.encode(manifest)).hexdigest()
