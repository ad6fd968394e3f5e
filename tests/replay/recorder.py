"""The recordings' runtime: it has every ability, answers as a row programs it, and notes each call in the recordings' words."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from tests.replay.words import Json, displayed, moment, programmed
from zlayer_driver import contract
from zlayer_driver.contract import Backend
from zlayer_driver.model import ExecResult, Exit, Fingerprint, Health, ImageRecord, Target, TaskState
from zlayer_driver.readings import (
    Channel,
    ContainerDetails,
    ExecEvent,
    ImageDetails,
    LogChunk,
    LogLine,
    LogOptions,
    Outcome,
    OverlayKind,
    Pruned,
    Usage,
    UsageSample,
)

RECORDED_AT = "2026-01-02T03:04:05.006Z"
KINDS = {
    "HostNetns": OverlayKind.HOST_NETNS,
    "HostIp": OverlayKind.HOST_IP,
    "GuestManaged": OverlayKind.GUEST_MANAGED,
    "HostProxy": OverlayKind.HOST_PROXY,
}
Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Heard:
    """How a call on one of our methods is noted and answered.

    ``name`` is theirs; ``note`` their arguments but for the id; ``usual`` the n-th runtime's answer where a row programs none, in
    their form; ``give`` makes ours of theirs.
    """

    name: str
    note: Callable[[Arguments], Json] = lambda a: {}
    usual: Callable[[int, str], Json] = lambda n, role: None
    give: Callable[[Json], Any] = lambda answer: answer


def _logs(options: LogOptions) -> Json:
    names = ("follow", "since", "stderr", "stdout", "tail", "timestamps", "until")
    return {name: getattr(options, name) for name in names}


def _line(entry: Json) -> LogLine:
    return LogLine(Channel(entry["stream"]), entry["message"], moment(entry.get("timestamp", RECORDED_AT)))


async def stream(items: Sequence[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


def _event(text: str) -> ExecEvent:
    kind, _, value = text.removesuffix(")").partition("(")
    return ExecEvent(exit_code=int(value)) if kind == "Exit" else ExecEvent(Channel(kind.lower()), value.strip('"').encode())


def _sample(n: int) -> Json:
    names = ("cpu_system_ns", "online_cpus", "memory_bytes", "memory_limit_bytes", "net_rx_bytes", "net_tx_bytes")
    values = (11, 8, 13, 17, 19, 23)
    blocks = {"block_read_bytes": 29, "block_write_bytes": 31, "pids": 37, "pids_limit": 41}
    return {"cpu_total_ns": 7 * n, **dict(zip(names, values, strict=True)), **blocks}


def _outcome(answer: Json) -> Outcome:
    finished = answer["finished_at"]
    return Outcome(answer["exit_code"], answer["reason"], answer["signal"], finished and moment(finished))


def _ended(code: int, *, signal: str | None = None, at: str | None = None) -> Json:
    return {"exit_code": code, "reason": "signal" if signal else "exited", "signal": signal, "finished_at": at}


_EXEC = Heard(
    "exec",
    lambda a: {"cmd": list(a["argv"])},
    lambda n, role: [n, f"{role}-out", f"{role}-err"],
    lambda x: ExecResult(Exit(x[0]), x[1].encode(), x[2].encode()),
)
HEARD: Mapping[str, Callable[[Arguments], Heard] | Heard] = {
    "start": Heard("create_container", lambda a: {"image": a["spec"].image}, give=lambda _: {}),
    "recover": Heard("recover"),
    "restart": Heard("start_container"),
    "stop": Heard("stop_container", lambda a: {"timeout_ms": round(a["timeout_s"] * 1000)}),
    "destroy": Heard("remove_container"),
    "state": Heard("container_state", usual=lambda n, role: {"state": "running"}, give=lambda x: TaskState(x["state"])),
    "exec": lambda a: (
        Heard(
            "exec_with_opts",
            lambda a: {
                "cmd": list(a["argv"]),
                "cwd": a["options"].work_dir,
                "user": a["options"].user,
                "env": [f"{key}={value}" for key, value in a["options"].env.items()],
            },
            lambda n, role: [10 + n, f"{role}-out", f"{role}-err"],
            _EXEC.give,
        )
        if a["options"]
        else _EXEC
    ),
    "stream_exec": lambda a: Heard(
        "exec_pty" if a["tty"] else "exec_stream",
        lambda a: {} if a["tty"] else {"cmd": list(a["argv"])},
        lambda n, role: [f'Stdout("{role}-s")', f"Exit({20 + n})"],
        lambda x: stream([_event(text) for text in x]),
    ),
    "wait": Heard("wait_container", usual=lambda n, role: 30 + n, give=Exit),
    "outcome": lambda a: (
        Heard(
            "wait_outcome_with_condition",
            lambda a: {"condition": a["condition"]},
            lambda n, role: _ended(50 + n),
            _outcome,
        )
        if a["condition"]
        else Heard("wait_outcome", usual=lambda n, role: _ended(40 + n, signal=f"SIG{role}", at=RECORDED_AT), give=_outcome)
    ),
    "rename": Heard("rename_container", lambda a: {"new_name": a["name"]}),
    "pid": Heard("get_container_pid", usual=lambda n, role: 100 * n),
    "push_overlay": Heard("push_overlay_config", lambda a: {"overlay_ip": a["overlay"].address}),
    "attach_overlay": Heard("attach_overlay_ip", lambda a: {"ip": a["address"]}),
    "detach_overlay": Heard("detach_overlay_ip"),
    "address": Heard("get_container_ip", usual=lambda n, role: f"10.0.0.{n}"),
    "port_override": Heard("get_container_port_override", usual=lambda n, role: 9000 + n),
    "sync_volumes": Heard("sync_container_volumes"),
    "signal": Heard("kill_container", lambda a: {"signal": a["signal"] or None}),
    "inspect": Heard(
        "inspect_detailed",
        usual=lambda n, role: {"exit_code": n, "ipv4": f"10.1.0.{n}"},
        give=lambda x: ContainerDetails(x["ipv4"], x["exit_code"]),
    ),
    "logs": lambda a: (
        Heard(
            "get_logs",
            usual=lambda n, role: [{"message": f"{role}-getlog", "stream": "stderr", "timestamp": RECORDED_AT}],
            give=lambda x: [_line(entry) for entry in x],
        )
        if a["tail"] is None
        else Heard(
            "container_logs",
            lambda a: {"tail": a["tail"]},
            lambda n, role: [{"message": f"{role}-log", "stream": "stdout", "timestamp": RECORDED_AT}],
            lambda x: [_line(entry) for entry in x],
        )
    ),
    "usage": Heard(
        "get_container_stats",
        usual=lambda n, role: {"cpu_usage_usec": 1000 * n, "memory_bytes": 4096 * n, "memory_limit": 8192 * n},
        give=lambda x: Usage(x["cpu_usage_usec"], x["memory_bytes"], x["memory_limit"]),
    ),
    "update": Heard(
        "update_container_resources",
        lambda a: {"memory": a["resources"].memory_bytes},
        lambda n, role: {"warnings": [f"{role}-warn"]},
        lambda x: x["warnings"],
    ),
    "stream_logs": Heard(
        "logs_stream",
        lambda a: _logs(a["options"]),
        lambda n, role: [f"{role}-native"],
        lambda x: stream([LogChunk(Channel.STDOUT, text.encode()) for text in x]),
    ),
    "stream_usage": Heard(
        "stats_stream", usual=lambda n, role: _sample(n), give=lambda x: stream([UsageSample(at=moment(RECORDED_AT), **x)])
    ),
    "overlay_kind": Heard("overlay_attach_kind", usual=lambda n, role: "HostNetns", give=lambda x: KINDS[x]),
    "pull": Heard(
        "pull_image_with_policy",
        lambda a: {"image": a["image"], "policy": a["policy"], "source": a["source"], "auth": a["auth"] and a["auth"].username},
    ),
    "list_images": Heard(
        "list_images",
        usual=lambda n, role: [],
        give=lambda x: [ImageRecord(entry["reference"], entry["digest"], entry["size_bytes"]) for entry in x],
    ),
    "remove_image": Heard("remove_image", lambda a: {"image": a["image"], "force": a["force"]}),
    "tag_image": Heard("tag_image", lambda a: {"source": a["source"], "target": a["target"]}),
    "inspect_image": Heard(
        "inspect_image_native",
        lambda a: {"image": a["image"]},
        lambda n, role: {"id": f"{role}-id", "os": "darwin"},
        lambda x: ImageDetails(x["id"], x["os"]),
    ),
    "prune_images": Heard(
        "prune_images",
        usual=lambda n, role: {"deleted": [f"{role}-img"], "space_reclaimed": 100 * n},
        give=lambda x: Pruned(tuple(x["deleted"]), x["space_reclaimed"]),
    ),
    "prune_containers": Heard("prune_containers", give=lambda _: Pruned()),
    "image_store": Heard("image_store_handles"),
    "set_secrets": Heard("set_secrets_provider", lambda a: {"provider": a["provider"]}),
    "write_stdin": Heard("write_stdin"),
    "close_stdin": Heard("close_stdin"),
    "pause": Heard("pause_container"),
    "resume": Heard("unpause_container"),
    "processes": Heard("top_container"),
    "changes": Heard("changes_container"),
    "ports": Heard("port_mappings_container"),
    "copy_out": Heard("archive_get"),
    "copy_in": Heard("archive_put"),
    "stat": Heard("archive_head"),
    "export": Heard("export_container_fs"),
    "commit": Heard("commit_container"),
    "image_history": Heard("image_history", lambda a: {"image": a["image"]}),
    "search_images": Heard("search_images"),
    "save_images": Heard("save_images"),
    "load_images": Heard("load_images"),
    "import_image": Heard("import_image"),
    "sweep": Heard("sweep"),
}


@dataclass
class Recorder:
    """One runtime; ``trace`` is shared by those of one composite. ``program`` is this runtime's part of a row's."""

    role: Target
    trace: list[Json]
    program: Mapping[str, Sequence[Json]] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)

    @property
    def name(self) -> str:
        return f"recorder-{self.role}"

    async def probe(self) -> Fingerprint:
        return Fingerprint(Health.HEALTHY)

    def answer(self, method: str, arguments: dict[str, Any]) -> Any:
        """Notes the call and gives the programmed answer, or raises the programmed error."""
        entry = HEARD[method]
        heard = entry if isinstance(entry, Heard) else entry(arguments)
        self.trace.append({"rt": self.role, "m": heard.name, "args": {**_about(arguments), **heard.note(arguments)}})
        items = self.program.get(heard.name)
        position, self.calls[heard.name] = self.calls[heard.name], self.calls[heard.name] + 1
        if not items:
            return heard.give(heard.usual(1 + list(Target).index(self.role), self.role))
        item = items[min(position, len(items) - 1)]
        if "err" in item:
            raise programmed(item["err"])
        return heard.give(item["ok"])


def _about(arguments: Arguments) -> Json:
    if handle := arguments.get("handle"):
        return {"id": displayed(handle.task_id)}
    return {"id": displayed(arguments["spec"].id)} if "spec" in arguments else {}


def _recorded(method: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(method)

    def note(self: Recorder, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        bound.apply_defaults()
        return self.answer(method.__name__, dict(list(bound.arguments.items())[1:]))

    async def note_later(self: Recorder, *args: Any, **kwargs: Any) -> Any:
        return note(self, *args, **kwargs)

    return note_later if inspect.iscoroutinefunction(method) else note


for _protocol in (*contract.ABILITIES, Backend):
    for _name, _method in vars(_protocol).items():
        if inspect.isfunction(_method) and _name in HEARD:
            setattr(Recorder, _name, _recorded(_method))


def recorders(attached: Sequence[str], program: Mapping[str, Mapping[str, Sequence[Json]]], trace: list[Json]) -> dict[Target, Backend]:
    """The runtimes of a row."""
    found = {Target(role): Recorder(Target(role), trace, program.get(role, {})) for role in attached}
    return cast("dict[Target, Backend]", found)
