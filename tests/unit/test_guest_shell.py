"""What is said on the guest's control port."""

import pytest

from lab.guest_shell import Result, answer, request


def test_request_is_one_line_whatever_the_command() -> None:
    assert request("t0", "echo 'a\nb'", 2.5) == b"t0 2.5 ZWNobyAnYQpiJw==\n"


@pytest.mark.parametrize(
    ("received", "result"),
    [
        (b"t0 begin\nhello\n\nt0 end 0\n", Result(0, "hello\n")),
        (b"t0 begin\n\nt0 end 1\n", Result(1, "")),
        (b"of another\nt9 end 0\nt0 begin\nno newline\nt0 end 12\n", Result(12, "no newline")),
        (b"t0 begin\nhello\n\nt0 end 1", None),
        (b"t0 begin\nhello", None),
        (b"", None),
    ],
)
def test_answer_is_what_stands_between_the_markers(received: bytes, result: Result | None) -> None:
    assert answer(received, "t0") == result
