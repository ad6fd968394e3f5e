"""Images of containerd's own store, which unpacks Windows layers: by ``ctr images`` and ``ctr content``."""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final

from zlayer_driver.backends.hcs_ctr import Ctr
from zlayer_driver.errors import NotFound, PullFailed, WrongPlatform
from zlayer_driver.image.policy import must_fetch
from zlayer_driver.model import OS, Auth, ImageRecord, PullPolicy, PullSource, Report
from zlayer_driver.readings import ImageDetails, Pruned

SNAPSHOTTER: Final = "windows"
_ARCHITECTURES: Final = {"amd64": "amd64", "x86_64": "amd64", "arm64": "arm64", "aarch64": "arm64"}
_INDEXES: Final = ("application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json")


class CtrImages:
    """``build`` is the node's, such as ``10.0.20348``: of an image for several, the one for this is taken. ``insecure``: see the config."""

    def __init__(self, ctr: Ctr, *, build: str, insecure: Collection[str]) -> None:
        self._ctr = ctr
        self._build = build
        self._insecure = insecure
        self._arch = _ARCHITECTURES.get(platform.machine().lower(), platform.machine().lower())

    async def pull(
        self,
        image: str,
        *,
        policy: PullPolicy,
        auth: Auth | None,
        report: Report | None = None,
        source: PullSource = PullSource.LOCAL_FIRST,
    ) -> None:
        """Credentials are in ctr's command line while it runs: it takes them in no other way."""
        if await must_fetch(image, policy, source, self.has_image, report):
            plain = ["--plain-http"] if image.partition("/")[0] in self._insecure else []
            user = ["--user", f"{auth.username}:{auth.password}"] if auth else []
            options = ["--snapshotter", SNAPSHOTTER, "--platform", f"{OS.WINDOWS}/{self._arch}", *plain, *user]
            await self._ctr.ask("images", "pull", *options, image, failed=partial(PullFailed, image), timeout_s=0)

    async def list_images(self) -> Sequence[ImageRecord]:
        rows = [line.split() for line in (await self._ctr.ask("images", "list")).splitlines()[1:]]
        return [ImageRecord(row[0], row[2]) for row in rows]

    async def has_image(self, image: str) -> bool:
        return any(record.reference == image for record in await self.list_images())

    async def config(self, image: str) -> Mapping[str, Any]:
        """The image's config document; `WrongPlatform` for an image of another system."""
        digest = next((record.digest for record in await self.list_images() if record.reference == image), None)
        if digest is None:
            raise NotFound(image, "containerd has no such image")
        document = await self._ctr.json(digest)
        if document.get("mediaType") in _INDEXES or "manifests" in document:
            document = await self._ctr.json(self._of_this_node(image, document["manifests"]))
        config: Mapping[str, Any] = await self._ctr.json(document["config"]["digest"])
        if config.get("os") != OS.WINDOWS:
            raise WrongPlatform("hcs", OS.WINDOWS, str(config.get("os")), image)
        return config

    def _of_this_node(self, image: str, manifests: Sequence[Mapping[str, Any]]) -> str:
        known = [(entry.get("platform", {}), entry["digest"]) for entry in manifests]
        fitting = [(where, digest) for where, digest in known if (where.get("os"), where.get("architecture")) == (OS.WINDOWS, self._arch)]
        if not fitting:
            raise WrongPlatform("hcs", f"{OS.WINDOWS}/{self._arch}", ", ".join(str(where.get("os")) for where, _ in known), image)
        same = (digest for where, digest in fitting if same_build(where.get("os.version", ""), self._build))
        return str(next(same, fitting[0][1]))

    async def inspect_image(self, image: str) -> ImageDetails:
        config = await self.config(image)
        return ImageDetails(image, str(config["os"]), config)

    async def tag_image(self, source: str, target: str) -> None:
        await self._known(source)
        await self._ctr.ask("images", "tag", "--force", source, target)

    async def remove_image(self, image: str, *, force: bool) -> None:
        """A container that runs from the image keeps its layers, so there is nothing to force."""
        del force
        await self._known(image)
        await self._ctr.ask("images", "delete", "--sync", image)

    async def prune_images(self) -> Pruned:
        before = await self.list_images()
        await self._ctr.ask("images", "prune", "--all")
        left = {record.reference for record in await self.list_images()}
        return Pruned(tuple(record.reference for record in before if record.reference not in left))

    async def _known(self, image: str) -> None:
        """For ctr only warns of an image that it does not have."""
        if not await self.has_image(image):
            raise NotFound(image, "containerd has no such image")


def same_build(one: str, other: str) -> bool:
    """Whether two Windows versions (``10.0.20348.1970``) share the kernel that process isolation needs."""
    return one.split(".")[:3] == other.split(".")[:3]
