"""A Nomad that speaks real HTTP on loopback: nodes, jobs, dispatch, pages and blocking queries, as far as placement asks.

`tests/unit/test_nomad_fake.py` holds its answers to those recorded from a real agent.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Json = Any
_GROUP = {"Complete": 0, "Failed": 0, "Lost": 0, "Queued": 0, "Running": 0, "Starting": 0, "Unknown": 0}


class Refusal(Exception):
    """An answer that is no JSON; status 0 closes the connection without one."""

    def __init__(self, status: int, text: str = "") -> None:
        super().__init__(text)
        self.status = status


@dataclass
class FakeNomad:
    """``before`` and ``after`` are called with each POST's path around its effect, and may raise `Refusal`."""

    address: str = ""
    nodes: list[Json] = field(default_factory=list)
    jobs: dict[str, Json] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    index: int = 10
    calls: list[tuple[str, str, Mapping[str, str], Mapping[str, str]]] = field(default_factory=list)
    ran: Counter[str] = field(default_factory=Counter)
    holds: bool = False
    outcome: Callable[[str], str] = lambda _group: "Complete"
    before: Callable[[str], None] = lambda _path: None
    after: Callable[[str], None] = lambda _path: None
    changed: threading.Condition = field(default_factory=threading.Condition)
    closing: bool = False

    def answer(self, method: str, path: str, query: Mapping[str, str], body: Json) -> tuple[Json, str]:
        """What to say, and the token of the next page."""
        parts = path.strip("/").split("/")[1:]
        match (method, parts[0]):
            case "GET", "nodes":
                return self._page(self.nodes, query)
            case "GET", "node":
                return _found([node for node in self.nodes if node["ID"] == parts[1]], "node not found"), ""
            case "GET", "jobs":
                self._wait(query)
                wanted = [self.jobs[name] for name in sorted(self.jobs) if name.startswith(query.get("prefix", ""))]
                return self._page([_listed(job) for job in wanted], query)
            case "GET", "job":
                return _found([job for name, job in self.jobs.items() if name == "/".join(parts[1:])], "job not found"), ""
        self.before(path)
        with self.changed:
            said = self._dispatch("/".join(parts[1:-1]), query, body) if parts[-1] == "dispatch" else self._register(body)
        self.after(path)
        return said, ""

    def finish(self) -> None:
        """All jobs that were held back run to their end."""
        with self.changed:
            self.holds = False
            for job in self.jobs.values():
                self._run(job)
            self._change()

    def _wait(self, query: Mapping[str, str]) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.closing or self.index > int(query.get("index", 0)))

    def _change(self) -> None:
        self.index += 1
        self.changed.notify_all()

    def _page(self, items: list[Json], query: Mapping[str, str]) -> tuple[Json, str]:
        start = next((at for at, item in enumerate(items) if item["ID"] == query.get("next_token", "").partition(".")[2]), 0)
        end = start + int(query.get("per_page", len(items)) or 1)
        return items[start:end], f"default.{items[end]['ID']}" if end < len(items) else ""

    def _register(self, body: Json) -> Json:
        job = body["Job"]
        if " " in job["ID"]:
            raise Refusal(500, "1 error occurred:\n\t* Job ID contains a space\n\n")
        if body.get("EnforceIndex") and not body["JobModifyIndex"] and job["ID"] in self.jobs:
            raise Refusal(500, "Enforcing job modify index 0: job already exists")
        self._add(job)
        told = {"EvalCreateIndex": self.index, "EvalID": str(uuid.uuid4()), "Index": self.index, "JobModifyIndex": self.index}
        return {**told, "KnownLeader": False, "LastContact": 0, "NextToken": "", "Warnings": ""}

    def _dispatch(self, name: str, query: Mapping[str, str], body: Json) -> Json:
        parent = _found([job for job in self.jobs.values() if job["ID"] == name], "parameterized job not found", 500)
        declared = parent.get("ParameterizedJob")
        if not declared:
            raise Refusal(500, f'Specified job "{name}" is not a parameterized job')
        required, optional = declared.get("MetaRequired") or [], declared.get("MetaOptional") or []
        if odd := [key for key in body["Meta"] if key not in {*required, *optional}]:
            raise Refusal(500, f"Dispatch request included unpermitted metadata keys: {_go(odd)}")
        if missing := [key for key in required if key not in body["Meta"]]:
            raise Refusal(500, f"Dispatch did not provide required meta keys: {_go(missing)}")
        token = query.get("idempotency_token", "")
        if token not in self.tokens:
            self.tokens[token] = f"{name}/dispatch-{len(self.tokens):010}"
            self._add({**parent, "ID": self.tokens[token], "ParameterizedJob": None, "ParentID": name})
        told = {"DispatchedJobID": self.tokens[token], "EvalCreateIndex": self.index, "EvalID": "", "Index": self.index}
        return {**told, "JobCreateIndex": self.index}

    def _add(self, job: Json) -> None:
        counts = {group["Name"]: dict(_GROUP, Queued=int(not job.get("ParameterizedJob"))) for group in job["TaskGroups"]}
        self.jobs[job["ID"]] = {**job, "Status": "running", "Counts": counts}
        if not self.holds and not job.get("ParameterizedJob"):
            self._run(self.jobs[job["ID"]])
        self._change()

    def _run(self, job: Json) -> None:
        if job["Status"] != "dead" and not job.get("ParameterizedJob"):
            job["Status"] = "dead"
            for group in job["Counts"]:
                self.ran[f"{job['ID']}/{group}"] += 1
                job["Counts"][group] = dict(_GROUP, **{self.outcome(group): 1})


def _go(names: list[str]) -> str:
    return f"[{' '.join(names)}]"


def _found(items: list[Json], text: str, status: int = 404) -> Json:
    if not items:
        raise Refusal(status, text)
    return items[0]


def _listed(job: Json) -> Json:
    """A job as lists show it."""
    summary = {"Children": {"Dead": 0, "Pending": 0, "Running": 0}, "JobID": job["ID"], "Namespace": "default", "Summary": job["Counts"]}
    return {
        "ID": job["ID"],
        "Name": job.get("Name", job["ID"]),
        "Datacenters": job.get("Datacenters"),
        "Type": job["Type"],
        "Namespace": "default",
        "ParentID": job.get("ParentID", ""),
        "ParameterizedJob": bool(job.get("ParameterizedJob")),
        "Status": job["Status"],
        "JobSummary": summary,
    }


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    nomad: FakeNomad

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.nomad.calls.append((self.command, url.path, query, dict(self.headers)))
        try:
            body, token = self.nomad.answer(self.command, url.path, query, json.loads(raw) if raw else None)
        except Refusal as refusal:
            if not refusal.status:
                self.close_connection = True
                return
            self._send(refusal.status, "text/plain; charset=utf-8", str(refusal).encode(), {})
        else:
            headers = {"X-Nomad-Index": str(self.nomad.index), **({"X-Nomad-Nexttoken": token} if token else {})}
            self._send(200, "application/json", json.dumps(body).encode(), headers)

    def _send(self, status: int, kind: str, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed in the middle is part of the tests."""


@contextmanager
def fake_nomad() -> Iterator[FakeNomad]:
    nomad = FakeNomad()
    with _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"nomad": nomad})) as server:
        nomad.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield nomad
        finally:
            with nomad.changed:
                nomad.closing = True
                nomad.changed.notify_all()
            server.shutdown()
            thread.join()
