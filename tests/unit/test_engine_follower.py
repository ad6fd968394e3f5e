"""What the follower of an engine's output says where the engine does not let it attach."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from zlayer_driver.backends.engine_follower import Follower


@pytest.mark.needs("linux")
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"cause": "OCI runtime error", "message": "crun: no cgroups", "response": 409}\n', "crun: no cgroups"),
        (b"page not found\n", "page not found"),
        (b'["odd"]', '["odd"]'),
    ],
)
def test_the_engine_s_reason_is_told(tmp_path: Path, body: bytes, reason: str) -> None:
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(tmp_path / "engine.sock"))
        engine.listen()

        def refuse() -> None:
            connection, _ = engine.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 409 Conflict\r\nContent-Type: application/json\r\n\r\n" + body)

        answering = threading.Thread(target=refuse)
        answering.start()
        with pytest.raises(OSError, match=r"the engine answers 409: ") as told:
            Follower(str(tmp_path / "engine.sock"), "c", {}).attach()
        answering.join()
    assert str(told.value) == f"the engine answers 409: {reason}"
