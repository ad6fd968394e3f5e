"""The engine's own image store: ``/images``. Registries, mirrors and certificates are the engine's config, not ours."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from zlayer_driver import fastpath
from zlayer_driver.backends.engine_api import LIBPOD, Api, Doc
from zlayer_driver.backends.engine_framing import documents
from zlayer_driver.errors import EngineError, InvalidSpec, NotFound, PullFailed
from zlayer_driver.image.policy import must_fetch
from zlayer_driver.model import Auth, ImageRecord, PullPolicy, PullProgress, PullSource, Report
from zlayer_driver.readings import ImageDetails, Pruned

_CONFLICT = 409
_SERVER_ERROR = 500
_IN_USE = "in use"


class EngineImages:
    """The abilities of `zlayer_driver.contract` that are about images; a backend inherits them."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def pull(
        self,
        image: str,
        *,
        policy: PullPolicy,
        auth: Auth | None,
        report: Report | None = None,
        source: PullSource = PullSource.LOCAL_FIRST,
    ) -> None:
        if await must_fetch(image, policy, source, self.has_image, report):
            await self._pull(image, auth, report or (lambda _step: None))

    async def _pull(self, image: str, auth: Auth | None, report: Report) -> None:
        try:
            async with self._api.stream("POST", "/images/create", query={"fromImage": image}, headers=_login(image, auth)) as answer:
                async for step in documents(answer.aiter_bytes()):
                    if error := step.get("error"):
                        raise PullFailed(image, _without(auth, str(error)))
                    if layer := str(step.get("id", "")):
                        progress = step.get("progressDetail") or {}
                        report(PullProgress(image, "download", layer, int(progress.get("current", 0)), progress.get("total")))
        except NotFound as error:
            raise PullFailed(image, _without(auth, error.reason)) from None
        except EngineError as error:
            raise PullFailed(image, _without(auth, error.reason), hint=error.hint, recoverable=error.recoverable) from None
        await self._image(image)

    async def list_images(self) -> Sequence[ImageRecord]:
        found = await self._api.call("GET", "/images/json")
        return [record for doc in found for record in _records(doc)]

    async def has_image(self, image: str) -> bool:
        try:
            await self._image(image)
        except NotFound:
            return False
        return True

    async def inspect_image(self, image: str) -> ImageDetails:
        doc = await self._image(image)
        return ImageDetails(str(doc["Id"]), str(doc["Os"]), doc)

    async def tag_image(self, source: str, target: str) -> None:
        name = fastpath.parse(target)
        if name.tag is None:
            raise InvalidSpec(f"{target!r} names no tag to give", hint="use a reference such as example.org/app:v1")
        query = {"repo": f"{name.registry}/{name.repository}", "tag": name.tag}
        await self._api.call("POST", f"/images/{_quoted(source)}/tag", query=query)

    async def remove_image(self, image: str, *, force: bool) -> None:
        try:
            await self._api.call("DELETE", f"/images/{_quoted(image)}", query={"force": int(force)})
        except EngineError as error:
            if error.status == _CONFLICT or (error.status == _SERVER_ERROR and _IN_USE in error.reason):
                raise InvalidSpec(f"image {image!r} is in use: {error.reason}", hint="destroy its containers, or force it") from None
            raise

    async def prune_images(self) -> Pruned:
        """All that no container of the engine uses, whoever pulled it."""
        before = {record.reference for record in await self.list_images()}
        if self._api.engine.is_podman:
            reports = await self._api.call("POST", f"{LIBPOD}/images/prune", query={"all": "true"})
            reclaimed = sum(int(report["Size"]) for report in reports)
        else:
            reclaimed = int((await self._api.call("POST", "/images/prune", query={"filters": '{"dangling":["false"]}'}))["SpaceReclaimed"])
        gone = before - {record.reference for record in await self.list_images()}
        return Pruned(tuple(sorted(gone)), reclaimed)

    async def _image(self, image: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = await self._api.call("GET", f"/images/{_quoted(image)}/json")
        return found


def _quoted(image: str) -> str:
    return quote(image, safe="/:@")


def _records(doc: Doc) -> list[ImageRecord]:
    """One for each name; an image that was pulled by digest alone has that as its name."""
    digests = {name: digest for name, _, digest in (text.partition("@") for text in doc.get("RepoDigests") or ())}
    tags = [tag for tag in doc.get("RepoTags") or () if not tag.startswith("<none>")]
    names = tags or [text for text in doc.get("RepoDigests") or () if not text.startswith("<none>")]
    size = int(doc["Size"])
    return [ImageRecord(fastpath.canonical(name), digests.get(_repository(name)), size) for name in names]


def _repository(name: str) -> str:
    """Without tag and digest; a colon before the last slash is a port's."""
    name = name.partition("@")[0]
    return name[: name.rindex(":")] if ":" in name.rpartition("/")[2] else name


def _login(image: str, auth: Auth | None) -> dict[str, str]:
    """What the engine passes on to the registry (URL-safe base64 of JSON)."""
    if auth is None:
        return {}
    server = fastpath.parse(image).registry
    document = {"username": auth.username, "password": auth.password, "serveraddress": server}
    return {"X-Registry-Auth": base64.urlsafe_b64encode(json.dumps(document).encode()).decode()}


def _without(auth: Auth | None, text: str) -> str:
    return text.replace(auth.password, "***") if auth and auth.password else text
