"""The recordings' calls, made on a composite of ours, and what comes back in the recordings' form."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

from tests.replay.recorder import KINDS, stream
from tests.replay.words import Json, Row, displayed, error_told, moment_told, spec_of
from zlayer_driver import contract
from zlayer_driver.composite import Composite
from zlayer_driver.contract import SecretsProvider
from zlayer_driver.errors import DriverError
from zlayer_driver.model import Auth, ExecResult, PullPolicy, PullProgress, PullSource, Resources
from zlayer_driver.readings import ExecEvent, ExecOptions, GuestOverlay, LogChunk, LogLine, LogOptions, Outcome, UsageSample, WaitCondition

GUEST_ADDRESS = "10.9.0.7"  # of the config that every recorded push_overlay_config pushed
PROVIDER = "prov-1"
Call = Callable[[Composite, str, Row], Awaitable[Json]]


@dataclass
class Made:
    """A call that was made: its result in the recordings' form, and the error of ours, if it failed."""

    result: Json
    error: DriverError | None = None


async def make(composite: Composite, method: str, task: str, args: Row) -> Made:
    image = args.get("image") or args.get("spec", {}).get("image", "")
    try:
        return Made({"ok": await CALLS[method](composite, task, args)})
    except DriverError as error:
        return Made({"err": error_told(error, image)}, error)


def dispatch_told(composite: Composite) -> Json:
    return {displayed(handle.task_id): str(handle.target) for handle in composite.handles()}


async def _exec(composite: Composite, task: str, args: Row) -> Json:
    return _exec_told(await composite.exec(task, args["cmd"], timeout_s=0))


async def _exec_pty(composite: Composite, task: str, args: Row) -> Json:
    await composite.forward(task, contract.CanStreamExec.stream_exec, ["x"], tty=True)


async def _prune_containers(composite: Composite, task: str, args: Row) -> Json:
    await composite.prune(contract.CanPruneContainers.prune_containers)


def _exec_told(result: ExecResult) -> Json:
    return [result.exit.code, result.stdout.decode(), result.stderr.decode()]


def _event_told(event: ExecEvent) -> str:
    return f"Exit({event.exit_code})" if event.exit_code is not None else f'{event.channel.capitalize()}("{event.data.decode()}")'


def _outcome_told(outcome: Outcome) -> Json:
    finished = moment_told(outcome.finished_at)
    return {"exit_code": outcome.code, "reason": outcome.reason, "signal": outcome.signal, "finished_at": finished}


def _line_told(line: LogLine) -> Json:
    return {"message": line.message, "stream": line.channel, "timestamp": moment_told(line.at)}


def _chunk_told(chunk: LogChunk) -> Json:
    return {"stream": chunk.channel, "bytes_hex": chunk.data.hex(), "timestamp": moment_told(chunk.at)}


def _sample_told(sample: UsageSample, called_at: datetime) -> Json:
    return {
        "cpu_total_ns": sample.cpu_total_ns,
        "cpu_system_ns": sample.cpu_system_ns,
        "online_cpus": sample.online_cpus,
        "mem_used_bytes": sample.memory_bytes,
        "mem_limit_bytes": sample.memory_limit_bytes,
        "net_rx_bytes": sample.net_rx_bytes,
        "net_tx_bytes": sample.net_tx_bytes,
        "blkio_read_bytes": sample.block_read_bytes,
        "blkio_write_bytes": sample.block_write_bytes,
        "pids_current": sample.pids,
        "pids_limit": sample.pids_limit,
        "timestamp": "NOW" if called_at <= sample.at <= datetime.now(UTC) else moment_told(sample.at),
    }


async def _create(composite: Composite, task: str, args: Row) -> Json:
    await composite.create(spec_of(task, args["spec"]))


async def _exec_with_opts(composite: Composite, task: str, args: Row) -> Json:
    options = ExecOptions(args["user"], args["cwd"], dict(pair.split("=", 1) for pair in args["env"]))
    return _exec_told(await composite.exec(task, args["cmd"], timeout_s=0, options=options))


async def _exec_stream(composite: Composite, task: str, args: Row) -> Json:
    events = await composite.forward(task, contract.CanStreamExec.stream_exec, args["cmd"], tty=False)
    return [_event_told(event) async for event in events]


async def _logs_stream(composite: Composite, task: str, args: Row) -> Json:
    return [_chunk_told(chunk) async for chunk in await composite.stream_logs(task, LogOptions(**args))]


async def _stats_stream(composite: Composite, task: str, args: Row) -> Json:
    called_at = datetime.now(UTC)
    return [_sample_told(sample, called_at) async for sample in await composite.stream_usage(task)]


async def _usage(composite: Composite, task: str, args: Row) -> Json:
    usage = await composite.read(task, contract.HasUsage.usage)
    return {"cpu_usage_usec": usage.cpu_us, "memory_bytes": usage.memory_bytes, "memory_limit": usage.memory_limit_bytes}


async def _update(composite: Composite, task: str, args: Row) -> Json:
    return {"warnings": await composite.read(task, contract.CanUpdate.update, Resources(memory_bytes=args["memory"]))}


async def _inspect(composite: Composite, task: str, args: Row) -> Json:
    details = await composite.forward(task, contract.HasDetails.inspect)
    return {"exit_code": details.exit_code, "ipv4": details.address}


async def _pull(composite: Composite, task: str, args: Row) -> Json:
    auth = Auth(args["auth"], "secret") if args["auth"] else None
    await composite.pull(args["image"], policy=PullPolicy(args["policy"]), auth=auth, source=PullSource(args["source"]))


async def _pull_stream(composite: Composite, task: str, args: Row) -> Json:
    steps: list[PullProgress] = []
    await composite.pull(args["image"], policy=PullPolicy.IF_NOT_PRESENT, auth=None, report=steps.append)
    words = {
        "resolve": 'Status {{ id: None, status: "Pulling from {0}", progress: None, current: None, total: None }}',
        "done": 'Done {{ reference: "{0}", digest: None }}',
    }
    return [words[step.phase].format(step.image) for step in steps]


async def _list_images(composite: Composite, task: str, args: Row) -> Json:
    found = await composite.list_images()
    return [{"reference": record.reference, "digest": record.digest, "size_bytes": record.size_bytes} for record in found]


async def _prune(composite: Composite, task: str, args: Row) -> Json:
    pruned = await composite.prune(contract.CanPruneImages.prune_images)
    return {"deleted": list(pruned.deleted), "space_reclaimed": pruned.reclaimed_bytes}


async def _inspect_image(composite: Composite, task: str, args: Row) -> Json:
    details = await composite.first(contract.CanInspectImage.inspect_image, args["image"])
    return {"id": details.id, "os": details.os}


async def _overlay_kind(composite: Composite, task: str, args: Row) -> Json:
    kind = composite.overlay_kind(task or None)
    return next(name for name, ours in KINDS.items() if ours is kind)


async def _secrets(composite: Composite, task: str, args: Row) -> Json:
    composite.set_secrets(cast("SecretsProvider", PROVIDER))


async def _image_store(composite: Composite, task: str, args: Row) -> Json:
    return composite.image_store()


async def _list_containers(composite: Composite, task: str, args: Row) -> Json:
    return len(composite.handles())


def _owner(method: Callable[..., Awaitable[Any]], *given: Any, tell: Callable[[Any], Json] = lambda answer: answer) -> Call:
    """A call on the owner, with the recorded arguments' values, or with those given."""

    async def call(composite: Composite, task: str, args: Row) -> Json:
        return tell(await composite.forward(task, method, *(given or args.values())))

    return call


def _first(method: Callable[..., Awaitable[Any]], *given: Any) -> Call:
    async def call(composite: Composite, task: str, args: Row) -> Json:
        return await composite.first(method, *(given or args.values()))

    return call


def _reading(method: Callable[..., Awaitable[Any]]) -> Call:
    async def call(composite: Composite, task: str, args: Row) -> Json:
        return [_line_told(line) for line in await composite.read(task, method, *args.values())]

    return call


CALLS: Mapping[str, Call] = {
    "create_container": _create,
    "start_container": _owner(contract.CanRestart.restart),
    "stop_container": lambda c, task, args: c.stop(task, timeout_s=args["timeout_ms"] / 1000),
    "remove_container": lambda c, task, args: c.destroy(task),
    "container_state": _owner(contract.HasState.state, tell=lambda state: {"state": state}),
    "exec": _exec,
    "exec_with_opts": _exec_with_opts,
    "exec_stream": _exec_stream,
    "wait_container": _owner(contract.Backend.wait, tell=lambda result: result.code),
    "wait_outcome": _owner(contract.HasOutcome.outcome, None, tell=_outcome_told),
    "wait_outcome_with_condition": lambda c, task, args: _owner(
        contract.HasOutcome.outcome, WaitCondition(args["condition"]), tell=_outcome_told
    )(c, task, args),
    "rename_container": _owner(contract.CanRename.rename),
    "get_container_pid": _owner(contract.HasPid.pid),
    "push_overlay_config": _owner(contract.TakesOverlayConfig.push_overlay, GuestOverlay(address=GUEST_ADDRESS)),
    "attach_overlay_ip": _owner(contract.CanAttachOverlay.attach_overlay),
    "detach_overlay_ip": _owner(contract.CanAttachOverlay.detach_overlay),
    "get_container_ip": _owner(contract.HasAddress.address),
    "get_container_port_override": _owner(contract.HasPortOverride.port_override),
    "sync_container_volumes": _owner(contract.CanSyncVolumes.sync_volumes),
    "kill_container": lambda c, task, args: c.signal(task, args["signal"] or ""),
    "inspect_detailed": _inspect,
    "container_logs": _reading(contract.HasLogs.logs),
    "get_logs": _reading(contract.HasLogs.logs),
    "get_container_stats": _usage,
    "update_container_resources": _update,
    "logs_stream": _logs_stream,
    "stats_stream": _stats_stream,
    "overlay_attach_kind": lambda c, task, args: _overlay_kind(c, "", args),
    "overlay_attach_kind_for": _overlay_kind,
    "pull_image_with_policy": _pull,
    "pull_image_stream": _pull_stream,
    "list_images": _list_images,
    "remove_image": lambda c, task, args: c.remove_image(args["image"], force=args["force"]),
    "tag_image": lambda c, task, args: c.first(contract.CanTagImage.tag_image, args["source"], args["target"]),
    "inspect_image_native": _inspect_image,
    "prune_images": _prune,
    "image_store_handles": _image_store,
    "set_secrets_provider": _secrets,
    "list_containers": _list_containers,
    # What the reference forwards to nobody; it recorded no arguments of these, so that any will do.
    "exec_pty": _exec_pty,
    "write_stdin": _owner(contract.CanFeed.write_stdin, b""),
    "close_stdin": _owner(contract.CanFeed.close_stdin),
    "pause_container": _owner(contract.CanPause.pause),
    "unpause_container": _owner(contract.CanPause.resume),
    "top_container": _owner(contract.HasProcesses.processes),
    "changes_container": _owner(contract.HasChanges.changes),
    "port_mappings_container": _owner(contract.HasPorts.ports),
    "archive_get": _owner(contract.CanCopy.copy_out, "/"),
    "archive_put": _owner(contract.CanCopy.copy_in, "/", stream([])),
    "archive_head": _owner(contract.CanCopy.stat, "/"),
    "export_container_fs": _owner(contract.CanExport.export),
    "commit_container": _owner(contract.CanCommit.commit, "x:1"),
    "prune_containers": _prune_containers,
    "image_history": _first(contract.HasImageHistory.image_history),
    "search_images": _first(contract.CanSearchImages.search_images, "x"),
    "save_images": _first(contract.CanMoveImages.save_images, ["x:1"]),
    "load_images": _first(contract.CanMoveImages.load_images, stream([])),
    "import_image": _first(contract.CanMoveImages.import_image, stream([]), "x:1"),
}
