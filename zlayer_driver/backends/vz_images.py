"""The images of tart 2.32: whole macOS machines in OCI registries.

::

    tart pull REFERENCE [--insecure]
    tart list --source oci --format json
    tart delete REFERENCE

``list`` gives a JSON array of ``{Name, Size}``, the latter in whole GB. Credentials are variables, for one registry.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from zlayer_driver import fastpath
from zlayer_driver.backends.tool import ToolBackend
from zlayer_driver.errors import DriverError, InternalError, NotFound, PullFailed
from zlayer_driver.image.policy import must_fetch
from zlayer_driver.model import Auth, ImageRecord, PullPolicy, PullSource, Report

_GB = 10**9


class TartImages(ToolBackend):
    """A machine is a clone of its image, which it no longer needs."""

    async def pull(
        self,
        image: str,
        *,
        policy: PullPolicy,
        auth: Auth | None,
        report: Report | None = None,
        source: PullSource = PullSource.LOCAL_FIRST,
    ) -> None:
        if not await must_fetch(image, policy, source, self.has_image, report):
            return
        registry = fastpath.parse(image).registry
        env = {"TART_REGISTRY_HOSTNAME": registry} if auth else {}
        if auth:
            env |= {"TART_REGISTRY_USERNAME": auth.username, "TART_REGISTRY_PASSWORD": auth.password}
        plain = ("--insecure",) if registry.partition(":")[0] in ("localhost", "127.0.0.1") else ()
        await self._tool.ask("pull", image, *plain, failed=partial(PullFailed, image), env=env, timeout_s=0)

    async def list_images(self) -> Sequence[ImageRecord]:
        listed = await self._tool.ask_json("list", "--source", "oci", "--format", "json", failed=InternalError)
        return [ImageRecord(fastpath.canonical(image["Name"]), size_bytes=int(image["Size"]) * _GB) for image in listed]

    async def has_image(self, image: str) -> bool:
        return any(record.reference == image for record in await self.list_images())

    async def remove_image(self, image: str, *, force: bool) -> None:
        del force
        await self._tool.ask("delete", image, failed=partial(_not_removed, image))


def _not_removed(image: str, reason: str) -> DriverError:
    if "does not exist" in reason:
        return NotFound(image, reason)
    return InternalError(f"cannot remove image {image!r}: {reason}")
