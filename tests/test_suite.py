"""The suite's own manners."""

import socket

import pytest


def test_no_test_speaks_to_another_machine() -> None:
    with socket.socket() as s, pytest.raises(PermissionError, match=r"192\.0\.2\.1"):
        s.connect(("192.0.2.1", 80))  # a documentation address, RFC 5737
    with socket.socket() as s, pytest.raises(ConnectionRefusedError):
        s.connect(("127.0.0.1", 1))
