"""Calls of the contract on a backend in another process, as lines of JSON both ways; ``id`` numbers the calls.

::

    → {"id": 1, "call": "start", "with": {"spec": {…}}}   a method and its arguments by name
    ← {"id": 1, "gives": …}                               what it returned; ``null`` where that is an iterator
    ← {"id": 1, "raises": "NotFound", "state": {…}}       an error of ours, whole
    → {"id": 1, "next": true}                             asks that iterator for an item
    ← {"id": 1, "item": …}                                or ``"end": true``
    ← {"id": 1, "want": true}                             asks for an item of an iterator that is an argument
    → {"id": 1, "input": …}                               or ``"end": true``
    ← {"id": 1, "report": …}                              a step of a pull
    → {"id": 1, "cancel": true}                           the call, or its iterator

Whoever gives items waits to be asked for each, so that neither side piles up what the other does not take. Values are those of
`zlayer_driver.model` and `zlayer_driver.readings`, by the annotations of the methods; bytes are in base64.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Protocol, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter

from zlayer_driver import errors
from zlayer_driver.contract import ABILITIES, Backend
from zlayer_driver.model import Handle, PullProgress, Report


class Relayed(Protocol):
    """Beside those of the contract."""

    async def lacking_relays(self, handle: Handle) -> Sequence[str]:
        """Which outputs of the container nobody passes on, of ``out`` and ``err``; told to one asker only, who is to see to it."""
        ...


Method = Callable[..., Any]
Message = dict[str, Any]
LINE_BYTES: Final = 1 << 26
_BYTES: Final = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
_METHODS: Final[Mapping[str, Method]] = {
    name: method for protocol in (Backend, Relayed, *ABILITIES) for name, method in vars(protocol).items() if inspect.isfunction(method)
}


class Kind:
    """Values of one type, to and from what `json` knows."""

    def __init__(self, annotation: Any) -> None:
        self._adapter = TypeAdapter[Any](tuple[annotation], config=_BYTES)  # in a tuple, for the config is not for a dataclass itself

    def plain(self, value: Any) -> Any:
        return self._adapter.dump_python((value,), mode="json")[0]

    def value(self, plain: Any) -> Any:
        return self._adapter.validate_json(json.dumps([plain]))[0]


PROGRESS: Final = Kind(PullProgress)


@dataclass(frozen=True, slots=True)
class Signature:
    """A method of the contract. ``inputs`` names the argument that is an iterator, ``report`` the one that hears of progress; empty: none.

    ``gives`` is what it returns, or, where it ``streams``, what its iterator gives.
    """

    arguments: Mapping[str, Kind]
    inputs: str
    input: Kind
    report: str
    gives: Kind
    streams: bool


@cache
def signature(name: str) -> Signature:
    """`KeyError` for what is no method of the contract."""
    hints = get_type_hints(_METHODS[name])
    returned = hints.pop("return")
    streamed = _items(returned)
    inputs = next(((key, item) for key, hint in hints.items() if (item := _items(hint)) is not None), ("", None))
    report = next((key for key, hint in hints.items() if Report in (hint, *get_args(hint))), "")
    arguments = {key: Kind(hint) for key, hint in hints.items() if key not in (inputs[0], report)}
    return Signature(arguments, inputs[0], Kind(inputs[1]), report, Kind(returned if streamed is None else streamed), streamed is not None)


def _items(hint: Any) -> Any:
    """What an iterator gives, where ``hint`` is one, or one or ``None``."""
    return next((get_args(part)[0] for part in (hint, *get_args(hint)) if get_origin(part) is AsyncIterator), None)


def pack(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def failure(error: errors.DriverError) -> Message:
    return {"raises": type(error).__name__, "state": vars(error)}


def raised(message: Message) -> errors.DriverError:
    """The error that `failure` described."""
    kind = getattr(errors, message["raises"])
    error: errors.DriverError = kind.__new__(kind, message["state"]["message"])
    vars(error).update(message["state"])
    return error
