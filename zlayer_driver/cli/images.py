"""The commands on this node's images."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from zlayer_driver import fastpath
from zlayer_driver.choice import Request
from zlayer_driver.cli.nodes import on_node
from zlayer_driver.cli.output import command, pull_report, show_record, show_rows
from zlayer_driver.config import PluginConfig
from zlayer_driver.errors import ConfigError, DriverError
from zlayer_driver.image.sources import is_local
from zlayer_driver.image.values import Image
from zlayer_driver.image.view import mount_image, unmount_image
from zlayer_driver.model import PullPolicy, Report, Target
from zlayer_driver.node import Node

_DIRECTORY = click.Path(file_okay=False, path_type=Path)


@click.command()
@click.argument("source")
@click.option("--as", "reference", metavar="REF", help="Name for an image from a file or directory, instead of its own.")
@click.option("--always", is_flag=True, help="Ask the registry even if the image is here.")
@click.option(
    "--auth-file",
    envvar="REGISTRY_AUTH_FILE",
    type=click.Path(exists=True, dir_okay=False, resolve_path=True),
    metavar="FILE",
    help="Docker config.json with credentials for registries.",
)
@click.pass_obj
@command
def pull(config: PluginConfig, source: str, reference: str | None, always: bool, auth_file: str | None, as_json: bool) -> None:
    """Pull an image into this node's stores.

    SOURCE is an image reference, or an image that is on this machine: oci:DIR[:TAG], oci-archive:FILE[:TAG],
    docker-archive:FILE[:NAME], tarball:FILE for a bare root file system, docker-daemon:NAME or podman:NAME out of an engine.
    """
    policy = PullPolicy.ALWAYS if always else PullPolicy.IF_NOT_PRESENT

    async def work(node: Node) -> dict[str, Any]:
        with pull_report() as report:
            found = await _pull(node, source, reference, policy, report)
        return {"image": found.reference, "digest": found.digest, "size_bytes": found.size_bytes, "layers": len(found.layers)}

    if auth_file:
        config = config.model_copy(update={"registry_auth_file": auth_file})
    show_record(on_node(config, work), as_json=as_json)


async def _pull(node: Node, source: str, reference: str | None, policy: PullPolicy, report: Report | None) -> Image:
    if is_local(source):
        return await node.store.import_archive(source, reference, report=report)
    if reference:
        raise ConfigError("--as is for images from files and directories", hint="pull the image, then use tag")
    await node.composite.pull(fastpath.canonical(source), policy=policy, auth=None, report=report)
    return node.store.get(source)


def _missed(target: Target, error: DriverError) -> None:
    click.echo(f"zlayer-driver: without target {target}: {error}", err=True)


@click.command()
@click.pass_obj
@command
def images(config: PluginConfig, as_json: bool) -> None:
    """List the images that this node has."""

    async def work(node: Node) -> list[dict[str, Any]]:
        found = await node.composite.list_images(_missed)
        return [{"image": image.reference, "digest": image.digest, "size_bytes": image.size_bytes} for image in found]

    show_rows(on_node(config, work), as_json=as_json)


@click.command()
@click.argument("image")
@click.argument("reference", metavar="REF")
@click.pass_obj
@command
def tag(config: PluginConfig, image: str, reference: str, as_json: bool) -> None:
    """Give IMAGE the further name REF."""

    async def work(node: Node) -> dict[str, Any]:
        tagged = await node.store.tag(image, reference)
        return {"image": tagged.reference, "digest": tagged.digest}

    show_record(on_node(config, work), as_json=as_json)


@click.command()
@click.argument("image", nargs=-1, required=True)
@click.pass_obj
@command
def rmi(config: PluginConfig, image: Sequence[str], as_json: bool) -> None:
    """Remove each IMAGE by name, and what no other image needs. Containers that run from it go on."""

    async def work(node: Node) -> list[dict[str, Any]]:
        for name in image:
            await node.composite.remove_image(fastpath.canonical(name), force=False, on_miss=_missed)
        return [{"removed": fastpath.canonical(name)} for name in image]

    show_rows(on_node(config, work), as_json=as_json)


@click.command()
@click.option("--idle", "idle_s", type=click.FloatRange(min=0), default=0.0, metavar="SECONDS", help="Only what was not used for so long.")
@click.pass_obj
@command
def prune(config: PluginConfig, idle_s: float, as_json: bool) -> None:
    """Remove all images that no container runs from and no mount shows, and layers that no image needs."""

    async def work(node: Node) -> dict[str, Any]:
        pruned = await node.store.remove_unused(idle_s=idle_s, keep=config.image_gc_keep)
        return {"removed": pruned.deleted, "reclaimed_bytes": pruned.reclaimed_bytes}

    show_record(on_node(config, work), as_json=as_json)


@click.command()
@click.argument("image")
@click.argument("directory", metavar="DIR", type=_DIRECTORY)
@click.pass_obj
@command
def mount(config: PluginConfig, image: str, directory: Path, as_json: bool) -> None:
    """Show the files of IMAGE, read-only, at the empty directory DIR. Needs root."""

    async def work(node: Node) -> dict[str, Any]:
        return {"image": fastpath.canonical(image), "mounted": await asyncio.to_thread(mount_image, node.store, image, directory)}

    show_record(on_node(config, work), as_json=as_json)


@click.command()
@click.argument("directory", metavar="DIR", type=_DIRECTORY)
@click.pass_obj
@command
def umount(config: PluginConfig, directory: Path, as_json: bool) -> None:
    """Undo a mount of an image at DIR. Needs root."""

    async def work(node: Node) -> dict[str, Any]:
        return {"unmounted": directory if await asyncio.to_thread(unmount_image, node.store, directory) else None}

    show_record(on_node(config, work), as_json=as_json)


@click.command()
@click.argument("image")
@click.pass_obj
@command
def inspect(config: PluginConfig, image: str, as_json: bool) -> None:
    """Say what this node's blob caches know of IMAGE, and where it would run. Never asks a registry."""

    async def work(node: Node) -> dict[str, Any]:
        fastpath.parse(image)  # so that a text that is no reference is said to be none
        canonical = fastpath.canonical(image)
        facts = node.image_facts(canonical)
        record: dict[str, Any] = {"image": canonical, "os": facts.os, "marker": facts.marker, "isolation": facts.isolation}
        try:
            choice = node.composite.decide(Request(service=image, image=canonical), facts)
            record |= {"target": choice.target, "rule": choice.rule}
        except DriverError as error:
            record |= {"target": None, "error": str(error)}
        return record

    show_record(on_node(config, work), as_json=as_json)
