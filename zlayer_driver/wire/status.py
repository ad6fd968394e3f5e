"""Errors as gRPC statuses, and back: the one place that translates.

Every status carries Nomad's ``RecoverableError`` as its detail, because without one the client takes a failed start as final but a
failed statistics stream as worth retrying for ever. ``UNAVAILABLE`` and ``CANCELLED`` are never sent: the client takes either as
the death of the plugin and waits three seconds for it.
"""

from __future__ import annotations

import grpc
from google.protobuf.message import DecodeError

from zlayer_driver.errors import ConfigError, DriverError, InternalError, InvalidSpec, NotFound, TimedOut, Unsupported
from zlayer_driver.wire._gen.status_pb2 import Status
from zlayer_driver.wire._gen.structs_pb2 import RecoverableError

DETAILS = "grpc-status-details-bin"
# Message and details travel in one trailer block, which gRPC limits to 8 KiB at its most careful peers. Beyond ASCII the message takes thrice.
_MAX_BYTES = 1500

# By the nearest class of an error's ancestry. A recoverable one is FAILED_PRECONDITION, whatever its class.
_CODES: dict[type[BaseException], grpc.StatusCode] = {
    ConfigError: grpc.StatusCode.INVALID_ARGUMENT,
    InvalidSpec: grpc.StatusCode.INVALID_ARGUMENT,
    NotFound: grpc.StatusCode.NOT_FOUND,
    Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    TimedOut: grpc.StatusCode.DEADLINE_EXCEEDED,
    InternalError: grpc.StatusCode.INTERNAL,
    DriverError: grpc.StatusCode.UNKNOWN,
}

Trailer = tuple[tuple[str, str | bytes], ...]


def encode(error: DriverError) -> tuple[grpc.StatusCode, str, Trailer]:
    """Code, one line of text, and the trailing metadata."""
    code = next(_CODES[kind] for kind in type(error).__mro__ if kind in _CODES)
    if error.recoverable:
        code = grpc.StatusCode.FAILED_PRECONDITION
    message = one_line(str(error))
    status = Status(code=code.value[0], message=message)
    status.details.add().Pack(RecoverableError(recoverable=error.recoverable))
    return code, message, ((DETAILS, status.SerializeToString()),)


def one_line(text: str) -> str:
    """Text fit for an event or a status: no line breaks, no NUL, no half of a surrogate pair, and cut in the middle where it is too long."""
    raw = " ".join(text.replace("\0", "\\0").split()).encode(errors="backslashreplace")
    if len(raw) <= _MAX_BYTES:
        return raw.decode()
    half = _MAX_BYTES // 2
    return f"{raw[:half].decode(errors='ignore')} … {raw[-half:].decode(errors='ignore')}"


def decode(error: grpc.aio.AioRpcError) -> DriverError:
    """What a caller makes of a failed call; ``recoverable`` is that of the detail, if one is there."""
    text = error.details() or str(error.code())
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        return DriverError(f"the plugin does not answer: {text}", recoverable=True)
    detail = RecoverableError()
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS and isinstance(value, bytes):
            _unpack(value, detail)
    return DriverError(text, recoverable=detail.recoverable)


def _unpack(raw: bytes, detail: RecoverableError) -> None:
    try:
        for packed in Status.FromString(raw).details:
            packed.Unpack(detail)
    except DecodeError as error:
        raise InternalError(f"the plugin sent a damaged status: {error}") from error
