"""Bounded waits."""

import pytest

from lab import waiting
from tenancy.errors import BackendUnavailable


def test_a_wait_ends_when_the_condition_holds() -> None:
    answers = iter([False, False, True])

    waiting.until(lambda: next(answers), what="it is not so", timeout_s=5)

    assert next(answers, "none") == "none"


def test_a_wait_that_fails_says_what_for_and_why() -> None:
    with pytest.raises(BackendUnavailable) as caught:
        waiting.until(
            lambda: False, what="h1: sshd is not ready", timeout_s=0.05, explain=lambda: "    log"
        )

    assert str(caught.value) == "gave up after 0.05 s: h1: sshd is not ready\n    log"


def test_a_condition_is_asked_at_least_once() -> None:
    waiting.until(lambda: True, what="never", timeout_s=0)
