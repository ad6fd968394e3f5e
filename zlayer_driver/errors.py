"""The error tree. Every failure that a user can meet is one of these, and says what, where and what to do.

::

    DriverError
    ├── ConfigError          a plugin block, task block or command line that does not fit
    ├── InvalidSpec          a task that cannot be run as it is described
    │   └── InvalidReference … or text that is no image reference
    ├── Unsupported          no backend here has the ability
    ├── NotFound             a container, task or image that this node does not have
    ├── PullFailed           an image that could not be fetched, verified or unpacked
    ├── CreateFailed         a container that could not be made
    │   └── StartFailed      … or that was made and did not start
    ├── TimedOut             a call that took longer than it was given
    ├── NetworkError         an address, link or namespace that could not be set up
    ├── RouteToPeer          a task for another node: the operating system it needs is not here
    ├── WrongPlatform        an image for another operating system than the backend's
    ├── ServiceError         an HTTP API, out of reach or refusing
    │   ├── NomadError       … Nomad's
    │   └── EngineError      … a container engine's
    ├── CacheError           a blob cache that cannot be read
    │   └── CacheBusy        … just now; the same call may succeed in a moment
    └── InternalError        a broken promise of this project: worth a bug report

``kind`` names the variant in machine-readable output (and in the recordings of the reference system, whose fields the errors carry).
``recoverable`` is true only where the same call may succeed later without anybody changing anything; Nomad restarts a task on it.
"""

from __future__ import annotations

from typing import ClassVar


class DriverError(Exception):
    """Base of all; ``hint`` is one sentence on what to do, or empty."""

    kind: ClassVar[str] = "Internal"
    recoverable: bool = False

    def __init__(self, message: str, *, hint: str = "", recoverable: bool | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if recoverable is not None:
            self.recoverable = recoverable

    def __str__(self) -> str:
        return f"{self.message}: {self.hint}" if self.hint else self.message

    def fields(self) -> dict[str, str]:
        """The data of this error besides its text, by field name."""
        return {}


class ConfigError(DriverError):
    kind = "Configuration"


class InvalidSpec(DriverError):
    kind = "InvalidSpec"


class InvalidReference(InvalidSpec):
    def __init__(self, ref: str, reason: str) -> None:
        shown = ref if len(ref) <= 100 else f"{ref[:97]}..."
        super().__init__(f"{shown!r} is no image reference: {reason}")
        self.ref = ref
        self.reason = reason

    def fields(self) -> dict[str, str]:
        return {"ref": self.ref, "reason": self.reason}


class Unsupported(DriverError):
    kind = "Unsupported"


class NotFound(DriverError):
    kind = "NotFound"

    def __init__(self, container: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"{container!r} not found: {reason}", hint=hint)
        self.container = container
        self.reason = reason

    def fields(self) -> dict[str, str]:
        return {"container": self.container, "reason": self.reason}


class PullFailed(DriverError):
    kind = "PullFailed"

    def __init__(self, image: str, reason: str, *, hint: str = "", recoverable: bool | None = None) -> None:
        super().__init__(f"cannot pull image {image!r}: {reason}", hint=hint, recoverable=recoverable)
        self.image = image
        self.reason = reason

    def fields(self) -> dict[str, str]:
        return {"image": self.image, "reason": self.reason}


class CreateFailed(DriverError):
    kind = "CreateFailed"

    def __init__(self, container: str, reason: str, *, hint: str = "", recoverable: bool | None = None) -> None:
        super().__init__(f"cannot create container {container!r}: {reason}", hint=hint, recoverable=recoverable)
        self.container = container
        self.reason = reason

    def fields(self) -> dict[str, str]:
        return {"id": self.container, "reason": self.reason}


class StartFailed(CreateFailed):
    kind = "StartFailed"


class TimedOut(DriverError):
    kind = "Timeout"
    recoverable = True

    def __init__(self, what: str, timeout_s: float, *, hint: str = "") -> None:
        super().__init__(f"{what} took longer than {timeout_s:g} s", hint=hint)
        self.timeout_s = timeout_s

    def fields(self) -> dict[str, str]:
        return {"timeout_s": f"{self.timeout_s:g}"}


class NetworkError(DriverError):
    kind = "Network"


class RouteToPeer(DriverError):
    """Recoverable: Nomad places the task again, and another node may have what it needs."""

    kind = "RouteToPeer"
    recoverable = True

    def __init__(self, service: str, required_os: str, reason: str) -> None:
        super().__init__(f"{service!r} needs a node that runs {required_os} containers: {reason}")
        self.service = service
        self.required_os = required_os
        self.reason = reason

    def fields(self) -> dict[str, str]:
        return {"service": self.service, "required_os": self.required_os, "reason": self.reason}


class WrongPlatform(DriverError):
    kind = "WrongPlatform"

    def __init__(self, runtime: str, expected: str, actual: str, image: str) -> None:
        super().__init__(f"image {image!r} is for {actual}, and {runtime} runs {expected} images")
        self.runtime = runtime
        self.expected = expected
        self.actual = actual
        self.image = image

    def fields(self) -> dict[str, str]:
        return {"runtime": self.runtime, "expected": self.expected, "actual": self.actual, "image": self.image}


class ServiceError(DriverError):
    """``status`` is the HTTP status, 0 where there was no answer."""

    def __init__(self, what: str, reason: str, *, status: int = 0, hint: str = "", recoverable: bool = False) -> None:
        super().__init__(f"{what}: {reason}", hint=hint, recoverable=recoverable)
        self.reason = reason
        self.status = status

    def fields(self) -> dict[str, str]:
        return {"reason": self.reason, "status": str(self.status)}


class NomadError(ServiceError):
    kind = "Nomad"


class EngineError(ServiceError):
    kind = "Engine"


class CacheError(DriverError):
    kind = "Cache"

    def __init__(self, path: str, reason: str, *, hint: str = "") -> None:
        super().__init__(f"cannot read blob cache {path!r}: {reason}", hint=hint)
        self.path = path
        self.reason = reason

    def fields(self) -> dict[str, str]:
        return {"path": self.path, "reason": self.reason}


class CacheBusy(CacheError):
    recoverable = True


class InternalError(DriverError):
    kind = "Internal"
