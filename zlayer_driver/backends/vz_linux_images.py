"""The images of Apple's ``container`` 1.2.

::

    container image pull --progress none --os linux REFERENCE
    container image list --format json
    container image inspect REFERENCE
    container image tag SOURCE TARGET
    container image delete REFERENCE
    container image prune --all

Both ``list`` and ``inspect`` give a JSON array of ``{id, configuration: {name, descriptor: {digest}}, variants: [{platform: {os}, size}]}``;
``prune`` names what it removes, one ``untagged REFERENCE`` a line. Credentials are those of ``container registry login``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from zlayer_driver import fastpath
from zlayer_driver.backends.tool import ToolBackend
from zlayer_driver.errors import InternalError, NotFound, PullFailed
from zlayer_driver.image.policy import must_fetch
from zlayer_driver.model import Auth, ImageRecord, PullPolicy, PullSource, Report
from zlayer_driver.readings import ImageDetails, Pruned


class ContainerImages(ToolBackend):
    async def pull(
        self,
        image: str,
        *,
        policy: PullPolicy,
        auth: Auth | None,
        report: Report | None = None,
        source: PullSource = PullSource.LOCAL_FIRST,
    ) -> None:
        del auth
        if not await must_fetch(image, policy, source, self.has_image, report):
            return
        failed = partial(PullFailed, image, hint="for a private registry, run: container registry login")
        await self._tool.ask("image", "pull", "--progress", "none", "--os", "linux", image, failed=failed, timeout_s=0)

    async def list_images(self) -> Sequence[ImageRecord]:
        listed = await self._tool.ask_json("image", "list", "--format", "json", failed=InternalError)
        return [_record(image) for image in listed]

    async def has_image(self, image: str) -> bool:
        try:
            await self._inspected(image)
        except NotFound:
            return False
        return True

    async def inspect_image(self, image: str) -> ImageDetails:
        found = await self._inspected(image)
        return ImageDetails(str(found["id"]), str(found["variants"][0]["platform"]["os"]), found)

    async def tag_image(self, source: str, target: str) -> None:
        await self._tool.ask("image", "tag", source, target, failed=partial(NotFound, source))

    async def remove_image(self, image: str, *, force: bool) -> None:
        """A container keeps what it runs from, so there is nothing to force."""
        del force
        await self._inspected(image)
        await self._tool.ask("image", "delete", image, failed=partial(_not_removed, image))

    async def prune_images(self) -> Pruned:
        told = await self._tool.ask("image", "prune", "--all", failed=InternalError, timeout_s=0)
        return Pruned(tuple(line.removeprefix("untagged ") for line in told.splitlines() if line.startswith("untagged ")))

    async def _inspected(self, image: str) -> dict[str, Any]:
        found = await self._tool.ask_json("image", "inspect", image, failed=partial(NotFound, image))
        return dict(found[0])


def _record(image: dict[str, Any]) -> ImageRecord:
    configuration = image["configuration"]
    size = sum(int(variant["size"]) for variant in image["variants"])
    return ImageRecord(fastpath.canonical(configuration["name"]), configuration["descriptor"]["digest"], size)


def _not_removed(image: str, reason: str) -> InternalError:
    return InternalError(f"cannot remove image {image!r}: {reason}")
