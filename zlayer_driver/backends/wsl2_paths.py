"""Windows paths as a WSL distro sees them: the rules of ``wslpath -u`` (microsoft/WSL, `wslpath.cpp` and `util.cpp`)."""

from __future__ import annotations

import re
from typing import Final

from zlayer_driver.errors import InvalidSpec

_DRIVES: Final = "/mnt"  # where drives are mounted unless the distro's wsl.conf says otherwise
_DRIVE: Final = re.compile(r"(?:\\\\\?\\)?([A-Za-z]):\\(.*)", re.DOTALL)
_SHARE: Final = re.compile(r"\\\\wsl(?:\.localhost|\$)\\([^\\]+)(?:\\(.*))?", re.DOTALL | re.IGNORECASE)


def to_linux(path: str, distro: str) -> str:
    r"""``C:\x`` is ``/mnt/c/x``, ``\\wsl.localhost\<distro>\x`` is ``/x``; `InvalidSpec` for what the distro does not see.

    A path that begins with one slash is the distro's own already.
    """
    if "\0" in path:
        raise InvalidSpec("a path holds a NUL byte")
    if path.startswith("/") and not path.startswith("//"):
        return path
    native = path.replace("/", "\\")
    if drive := _DRIVE.fullmatch(native):
        return _joined(f"{_DRIVES}/{drive[1].lower()}", drive[2], path)
    share = _SHARE.fullmatch(native)
    if share and share[1].lower() == distro.lower():
        return _joined("", share[2] or "", path)
    raise InvalidSpec(f"{path!r} is not visible in WSL distro {distro!r}", hint="use a path on a drive of this machine, such as C:\\data")


def _joined(root: str, below: str, path: str) -> str:
    parts: list[str] = []
    for part in below.split("\\"):
        if part == "..":
            if not parts:
                raise InvalidSpec(f"{path!r} leads out of its drive")
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join([root, *parts]) if root or parts else "/"
