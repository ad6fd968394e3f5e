"""This node's place in the overlay: from the operator's block alone, or with a share and peers that Nomad keeps."""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from zlayer_driver.config import OverlayBlock, OverlayNomadBlock, Transport
from zlayer_driver.errors import DriverError, NetworkError, NomadError, NotFound
from zlayer_driver.nomad.client import Access, Nomad
from zlayer_driver.nomad.roster import Roster, serve
from zlayer_driver.overlay import keys
from zlayer_driver.overlay.inspection import load
from zlayer_driver.overlay.overlay import KEY_FILE, STATE, Overlay
from zlayer_driver.overlay.plan import Peer, Plan, Subnets

_log = logging.getLogger(__name__)
_AGAIN_S = 5.0
_ID_FILE = "node_id"

Sleep = Callable[[float], Awaitable[None]]


class Membership:
    """Joins in the background: the agent whose plugin this is may not answer yet. Close it, also if it never joined."""

    def __init__(
        self,
        block: OverlayBlock,
        state_dir: Path,
        *,
        environment: Mapping[str, str] = os.environ,
        netns_path: str = "/proc/self/ns/net",
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._block = block
        self._state_dir = state_dir / STATE
        self._environment = environment
        self._netns_path = netns_path
        self._sleep = sleep
        self._joined: asyncio.Future[Overlay] = asyncio.get_running_loop().create_future()
        self._made: Overlay | None = None
        self._task = asyncio.create_task(self._live())

    async def overlay(self) -> Overlay:
        """The node's overlay, once it has joined; the error, if it never can or has lost its share."""
        return await asyncio.shield(self._joined)

    async def close(self) -> None:
        """Lets go of the overlay, whose links and share stay."""
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task
        if self._made:
            await self._made.close()
        if self._joined.done():
            self._joined.exception()  # whoever wanted it has it
        else:
            self._joined.cancel()

    async def _live(self) -> None:
        try:
            if self._block.nomad:
                await self._by_nomad(self._block.nomad)
            else:
                await self._open(Plan.of(self._block))
        except DriverError as error:
            _log.error("this node has no overlay: %s", error)  # the error says it all; its traceback helps nobody
            if self._joined.done():
                await self._leave(self._joined.result())
                self._joined = asyncio.get_running_loop().create_future()
            self._joined.set_exception(error)

    async def _leave(self, overlay: Overlay) -> None:
        try:
            await overlay.leave()
        except NetworkError as error:
            _log.warning("this node's part of the overlay could not be removed: %s", error)

    async def _by_nomad(self, block: OverlayNomadBlock) -> None:
        async with Nomad(access(block, self._environment)) as nomad:
            roster = Roster(nomad, Subnets.of(self._block.network, self._block.network6))
            node_id = _node_id(self._state_dir)
            key = keys.load(self._state_dir / KEY_FILE).public if self._block.transport is Transport.WIREGUARD else ""

            def make(share: Subnets) -> Peer:
                return Plan.of(self._block, share).as_peer(key)

            former = self._former()
            me = await self._persistently(lambda: roster.claim(node_id, make, before=former.subnets if former else None))
            # Its peers are still those, most likely, and packets to them flow on until Nomad tells of others.
            peers = former.peers if former and former.transport is self._block.transport else ()
            overlay = await self._open(replace(Plan.of(self._block, me.subnets), peers=peers))
            await serve(roster, node_id, me, overlay.set_peers)

    async def _persistently(self, ask: Callable[[], Awaitable[Peer]]) -> Peer:
        """What Nomad says, however long it is away."""
        while True:
            try:
                return await ask()
            except (NomadError, NetworkError) as error:
                if not error.recoverable:
                    raise
                _log.warning("the overlay waits for Nomad: %s", error)
                await self._sleep(_AGAIN_S)

    async def _open(self, plan: Plan) -> Overlay:
        self._made = overlay = Overlay(plan, self._state_dir, netns_path=self._netns_path)
        await overlay.open()
        self._joined.set_result(overlay)
        return overlay

    def _former(self) -> Plan | None:
        """What the node was in its last life."""
        try:
            return load(self._state_dir)
        except NotFound:
            return None


def access(block: OverlayNomadBlock, environment: Mapping[str, str]) -> Access:
    """The block's keys before the environment's."""
    told = {"NOMAD_ADDR": block.address, "NOMAD_TOKEN": block.token, "NOMAD_NAMESPACE": block.namespace}
    return Access.from_environment({**environment, **{name: value for name, value in told.items() if value}})


def _node_id(state_dir: Path) -> str:
    """An id that this node keeps for as long as its state directory."""
    path = state_dir / _ID_FILE
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        draft = path.with_suffix(".new")
        draft.write_text(f"{uuid.uuid4()}\n")
        draft.replace(path)
    return path.read_text().strip()
