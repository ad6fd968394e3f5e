"""gRPC services by their descriptors: what a server offers and a client calls, with no generated stubs in between.

A service is an object whose methods carry the names of the RPCs in lower case with underscores (``StartTask`` is `start_task`).
A unary method takes the request and returns the reply, or raises one of `zlayer_driver.errors`; a streaming one is an
asynchronous generator. An RPC that the object lacks is answered with «unimplemented».
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from zlayer_driver.errors import DriverError, InternalError
from zlayer_driver.wire import status

_UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))

_log = logging.getLogger(__name__)
_Context = grpc.aio.ServicerContext[Any, Any]


def python_name(rpc: str) -> str:
    """``StartTask`` as ``start_task``; ``GRPCBroker`` as ``grpc_broker``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", rpc).lower()


class Services(grpc.GenericRpcHandler):
    """The RPCs of a server. Services may be added while it runs."""

    def __init__(self) -> None:
        self._handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        self._calls: set[asyncio.Task[Any]] = set()

    def add(self, descriptor: ServiceDescriptor, service: object) -> None:
        for method in descriptor.methods:
            call = getattr(service, python_name(method.name), None)
            if call is not None:
                self._handlers[f"/{descriptor.full_name}/{method.name}"] = self._handler(method, call)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        return self._handlers.get(handler_call_details.method)

    async def unwound(self) -> None:
        """Returns when no call is at work: gRPC cancels calls at its end, and does not wait until they have undone what they began."""
        if self._calls:
            await asyncio.wait(self._calls)

    def _handler(self, method: MethodDescriptor, call: Callable[..., Any]) -> grpc.RpcMethodHandler[Any, Any]:
        wrap = self._streaming if method.server_streaming else self._unary
        kind = f"{_arity(method.client_streaming)}_{_arity(method.server_streaming)}_rpc_method_handler"
        build: Callable[..., grpc.RpcMethodHandler[Any, Any]] = getattr(grpc, kind)
        return build(
            wrap(method.name, call),
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )

    def _unary(self, name: str, call: Callable[[Any], Awaitable[Message]]) -> Callable[[Any, _Context], Awaitable[Message]]:
        async def answer(request: Any, context: _Context) -> Message:
            self._track()
            try:
                return await call(request)
            except Exception as error:  # noqa: BLE001  # the last frame of a request: the plugin lives on, the caller gets a sentence
                return await _refuse(name, error, context)

        return answer

    def _streaming(self, name: str, call: Callable[[Any], AsyncIterator[Message]]) -> Callable[[Any, _Context], AsyncIterator[Message]]:
        async def answer(request: Any, context: _Context) -> AsyncIterator[Message]:
            self._track()
            try:
                async for reply in call(request):
                    yield reply
            except Exception as error:  # noqa: BLE001  # as above
                await _refuse(name, error, context)

        return answer

    def _track(self) -> None:
        """Each call has a task of its own, which gRPC made."""
        if task := asyncio.current_task():
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)


def server(services: Services) -> grpc.aio.Server:
    """Not bound to a port yet. Message sizes are unlimited both ways, as they are at Nomad's end."""
    return grpc.aio.server(handlers=[services], options=_UNLIMITED)


def channel(path: str) -> grpc.aio.Channel:
    """To the unix socket at ``path``."""
    return grpc.aio.insecure_channel(f"unix:{path}", options=(*_UNLIMITED, ("grpc.default_authority", "unused")))


def _arity(streaming: bool) -> str:
    return "stream" if streaming else "unary"


async def _refuse(name: str, error: Exception, context: _Context) -> Message:
    """Ends the call with the error's status. The traceback of a fault of ours goes to the log, never to the caller."""
    if isinstance(error, DriverError):
        _log.info("request refused", extra={"rpc": name, "error": str(error)})
    else:
        _log.error("request failed", exc_info=error, extra={"rpc": name})
        error = InternalError(f"{name} failed with {type(error).__name__}", hint="this is a bug; the agent's log has the details")
    code, message, trailer = status.encode(error)
    return await context.abort(code, message, trailer)


class Client:
    """The RPCs of one service on a channel, by their lower-case names: ``await client("start_task", request)``."""

    def __init__(self, channel: grpc.aio.Channel, descriptor: ServiceDescriptor) -> None:
        self._calls = {python_name(method.name): _call(channel, descriptor, method) for method in descriptor.methods}

    def __call__(self, name: str, request: Any) -> Any:
        """The gRPC call object: awaitable where the reply is one message, an asynchronous iterator where it is a stream."""
        return self._calls[name](request)


def _call(channel: grpc.aio.Channel, service: ServiceDescriptor, method: MethodDescriptor) -> Callable[[Any], Any]:
    build: Callable[..., Callable[[Any], Any]] = getattr(channel, f"{_arity(method.client_streaming)}_{_arity(method.server_streaming)}")
    return build(
        f"/{service.full_name}/{method.name}",
        request_serializer=GetMessageClass(method.input_type).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
