"""Container engines under the contract: the same cases for each, over the real service."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from pathlib import Path

import pytest

from tests.contract.test_oci import BASE, OciSubject, WatchCases
from tests.host import engine_lab
from zlayer_driver import contract
from zlayer_driver.backends.engine import EngineBackend
from zlayer_driver.backends.engine_api import Api, Engine
from zlayer_driver.contract import Backend
from zlayer_driver.model import Exit
from zlayer_driver.readings import Channel, LogOptions
from zlayer_driver.testing import suite
from zlayer_driver.testing.cases import AbilityCases
from zlayer_driver.testing.subject import Subject


class EngineSubject(OciSubject):
    """``pulled`` is in the registry, and is what all tasks run from under another name."""

    def __init__(self, root: Path, engine: Engine, socket: str, pulled: str) -> None:
        self._root = root
        self._engine = engine
        self._socket = socket
        self._image = pulled
        self.logs = root / "logs"
        self.logs.mkdir()
        self.backend = self.successor()

    def prepare(self) -> None:
        """An earlier case may have pruned all images, or pulled the one that is to be absent."""
        if not engine_lab.has(self._socket, BASE):
            engine_lab.pull(self._socket, self._image)
            engine_lab.tag(self._socket, self._image, *BASE.rsplit(":", 1))
        engine_lab.untag(self._socket, self._image)

    def successor(self) -> Backend:
        return EngineBackend(Api(self._engine, self._socket), self._root / "state")

    async def remains(self) -> Collection[str]:
        state = {str(path) for path in (self._root / "state").glob("*")}
        return {*engine_lab.containers(self._socket), *state, *engine_lab.followers(self._socket)}

    def death(self, number: int) -> Exit:
        return Exit(128 + number, number)


class DetailCases(AbilityCases):
    """What engines tell beyond what the other cases ask."""

    covers = frozenset({contract.HasDetails, contract.HasImageHistory, contract.CanStreamLogs})

    async def test_details_tell_the_exit(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.HasDetails)
        handle = await subject.start(subject.exits("task", 7))
        await subject.backend.wait(handle)
        details = await subject.backend.inspect(handle)
        assert (details.exit_code, details.raw["Id"]) == (7, handle.data["container"])
        await subject.backend.destroy(handle)

    async def test_logs_are_streamed_to_the_end(self, subject: Subject) -> None:
        assert isinstance(subject.backend, contract.CanStreamLogs)
        handle = await subject.start(subject.prints("task", "one\\ntwo\\n", "three\\n"))
        chunks = [chunk async for chunk in await subject.backend.stream_logs(handle, LogOptions(follow=True, timestamps=True))]
        told = {channel: b"".join(chunk.data for chunk in chunks if chunk.channel is channel) for channel in Channel}
        assert told == {Channel.STDOUT: b"one\ntwo\n", Channel.STDERR: b"three\n"}
        assert all(chunk.at for chunk in chunks)
        await subject.backend.destroy(handle)


class EngineCases(
    suite.Verbs,
    suite.SignalCases,
    suite.ExecCases,
    suite.StreamExecCases,
    suite.ControlCases,
    suite.LogCases,
    suite.UsageCases,
    suite.SweepCases,
    suite.PullCases,
    suite.ImageCases,
    DetailCases,
    WatchCases,
):
    """All that an engine can do."""

    engine: Engine

    @pytest.fixture
    async def subject(self, tmp_path: Path, socket: str, pulled: str) -> AsyncIterator[Subject]:
        subject = EngineSubject(tmp_path, self.engine, socket, pulled)
        subject.prepare()
        yield subject
        left = await subject.remains()
        engine_lab.remove_all(socket)
        assert left == set()
