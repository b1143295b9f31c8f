"""The errors of virtkit, named for who must act.

Every message is one sentence that names the object, what was found and what to do. Adapters
translate their library's exceptions into these once, with `from`; only the edges (commands,
agent, CNI) turn them into text and an exit code. Anything else that escapes is a bug.
"""


class VirtkitError(Exception):
    """Something virtkit can explain. `exit_code` is what a command ends with."""

    exit_code = 1


class InvalidRequest(VirtkitError):
    """The request itself is wrong: its author must change it."""

    exit_code = 2


class NotFound(InvalidRequest):
    """The request names an object that does not exist."""

    exit_code = 1


class Refused(VirtkitError):
    """The request is well formed, but the present state forbids it."""


class AlreadyExists(Refused):
    """A name, address, segment id or other unique value is taken."""


class QuotaExceeded(Refused):
    """The tenant's quota does not admit the request."""


class Conflict(VirtkitError):
    """Another writer was faster, repeatedly: try again."""


class BackendUnavailable(VirtkitError):
    """A database, switch or cluster does not answer: the operator must act."""


class VerificationFailed(VirtkitError):
    """What was found afterwards is not what was asked for."""
