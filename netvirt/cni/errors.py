"""Errors as the CNI has them: a number, a sentence, and what to do. Pure.

See "Error" in the CNI specification; numbers from 100 on are a plugin's own.
"""

import json
from enum import IntEnum

from netvirt.allocate import PoolExhausted
from tenancy.errors import (
    AlreadyExists,
    BackendUnavailable,
    Conflict,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
    Refused,
    VerificationFailed,
    VirtkitError,
)


class Code(IntEnum):
    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    UNDECODABLE = 6
    INVALID_CONFIGURATION = 7
    TRY_AGAIN_LATER = 11
    NOT_AVAILABLE = 50
    QUOTA_EXCEEDED = 100
    NO_ADDRESS_LEFT = 101
    TAKEN = 102
    DIFFERENCE_FOUND = 103


class CniError(InvalidRequest):
    """A refusal that has its number already."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


# The most particular class first.
_CODES: tuple[tuple[type[VirtkitError], Code], ...] = (
    (QuotaExceeded, Code.QUOTA_EXCEEDED),
    (PoolExhausted, Code.NO_ADDRESS_LEFT),
    (AlreadyExists, Code.TAKEN),
    (VerificationFailed, Code.DIFFERENCE_FOUND),
    (NotFound, Code.INVALID_CONFIGURATION),
    (InvalidRequest, Code.INVALID_CONFIGURATION),
    (Conflict, Code.TRY_AGAIN_LATER),
    (BackendUnavailable, Code.TRY_AGAIN_LATER),
    (Refused, Code.INVALID_CONFIGURATION),
)


def code_of(error: VirtkitError) -> Code:
    if isinstance(error, CniError):
        return error.code
    return next((code for kind, code in _CODES if isinstance(error, kind)), Code.TRY_AGAIN_LATER)


# More than this of a message is what a caller gave, and repeats it. An answer has its limits.
_LONGEST = 2000


def render(error: VirtkitError, version: str) -> bytes:
    """The error object. What is to be done is the second half of our messages: `details`."""
    text = " ".join(str(error).split())
    message, stop, hint = text.partition(". ")
    return json.dumps(
        {
            "cniVersion": version,
            "code": int(code_of(error)),
            "msg": _fitting(message + stop.strip()),
            "details": _fitting(hint),
        }
    ).encode()


def _fitting(text: str) -> str:
    """As much of it as an answer holds, without what is no character."""
    cut = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return cut.encode(errors="backslashreplace").decode()
