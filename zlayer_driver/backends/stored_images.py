"""The abilities of a backend whose containers run from our image store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from typing import Protocol

from zlayer_driver.errors import NotFound
from zlayer_driver.image.policy import confined
from zlayer_driver.image.values import Image
from zlayer_driver.model import Auth, ImageRecord, PullPolicy, PullSource, Report
from zlayer_driver.readings import ImageDetails, Pruned


class Images(Protocol):
    """What is needed of an image store; `zlayer_driver.image.store.ImageStore` has it."""

    def hold(self) -> AbstractContextManager[None]: ...

    def get(self, image: str) -> Image: ...

    def list(self) -> Sequence[ImageRecord]: ...

    async def pull(self, image: str, *, policy: PullPolicy, auth: Auth | None, report: Report | None = None) -> object: ...

    async def tag(self, source: str, target: str) -> object: ...

    async def remove(self, image: str) -> None: ...

    async def remove_unused(self) -> Pruned: ...


class StoredImages:
    """A container keeps the layers that it runs from, so nothing need be forced."""

    def __init__(self, store: Images) -> None:
        self._store = store

    async def pull(
        self,
        image: str,
        *,
        policy: PullPolicy,
        auth: Auth | None,
        report: Report | None = None,
        source: PullSource = PullSource.LOCAL_FIRST,
    ) -> None:
        await self._store.pull(image, policy=confined(policy, source), auth=auth, report=report)

    async def list_images(self) -> Sequence[ImageRecord]:
        return await asyncio.to_thread(self._store.list)

    async def has_image(self, image: str) -> bool:
        with suppress(NotFound):
            return bool(self._store.get(image))
        return False

    async def inspect_image(self, image: str) -> ImageDetails:
        found = await asyncio.to_thread(self._store.get, image)
        return ImageDetails(found.digest, found.config.os, asdict(found.config))

    async def tag_image(self, source: str, target: str) -> None:
        await self._store.tag(source, target)

    async def remove_image(self, image: str, *, force: bool) -> None:
        del force
        await self._store.remove(image)

    async def prune_images(self) -> Pruned:
        return await self._store.remove_unused()

    def image_store(self) -> object:
        return self._store
