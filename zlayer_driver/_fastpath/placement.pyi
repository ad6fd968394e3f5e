from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, Self, TypeVar, final

from zlayer_driver.errors import DriverError
from zlayer_driver.model import ImageFacts, Isolation, Platform

class _Request(Protocol):
    @property
    def runtime(self) -> Isolation | None: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def platform(self) -> Platform | None: ...

_R = TypeVar("_R", bound=_Request)
_T = TypeVar("_T")

def choose_many(requests: Iterable[_R], facts: Iterable[ImageFacts], choose: Callable[[_R, ImageFacts], _T]) -> list[_T | DriverError]: ...

@final
class JobLines:
    def __new__(
        cls, ask: Callable[[bytes, int, bool], tuple[bytes, int, bool]], know: Callable[[str], tuple[bytes, int] | None]
    ) -> Self: ...
    @property
    def counts(self) -> list[int]: ...
    def answer(self, chunk: bytes | memoryview, first: int) -> bytes: ...
    def answer_into(self, chunk: bytes | memoryview, first: int, answers: bytearray) -> int: ...

def line_count(chunk: bytes | memoryview) -> int: ...
