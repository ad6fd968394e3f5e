from typing import Self, final

__pyx_capi__: dict[str, object]

@final
class Followed:
    def __new__(cls, path: str) -> Self: ...
    @property
    def path(self) -> str: ...
