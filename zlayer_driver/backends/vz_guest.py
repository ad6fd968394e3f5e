"""What a shell in a macOS guest does for a container: ``tart exec`` knows commands, and nothing of users, directories or variables.

The script of the container's own command comes on the shell's standard input, so that no variable is in anybody's list of processes. It
leaves in ``.zlayer`` in the home directory of the guest's agent

::

    env     what to do before any command of the container: variables and the directory
    as      what runs a command as the container's user, empty for the agent's own
    pid     of the container's process

The shell waits for that process, since the agent cannot tell a death by a signal from any other failure.
"""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from zlayer_driver.backends.supervised.spec import command_line
from zlayer_driver.errors import InvalidSpec
from zlayer_driver.image.values import ImageConfig
from zlayer_driver.model import TaskSpec
from zlayer_driver.readings import ExecOptions

SHELL: Final = "/bin/sh"
_ENV, _AS, _PID = (f'"$HOME/.zlayer/{name}"' for name in ("env", "as", "pid"))
_THERE = f"until [ -s {_PID} ]; do sleep 0.1; done"  # the pid comes last: all else is there once it is
_MACHINE_IMAGE = ImageConfig(os="darwin", arch="", diff_ids=())  # it names no command


def script(spec: TaskSpec, env: Mapping[str, str], path: Path) -> Path:
    """Writes the script of the container's command."""
    mark = f"zlayer-{secrets.token_hex(8)}"
    lines = [
        'umask 077; mkdir -p "$HOME/.zlayer"',
        f"cat >{_ENV} <<'{mark}'\n{_before(env, spec.work_dir)}\n{mark}",
        f"printf %s {shlex.quote(_as(spec.user))} >{_AS}",
        f"{_entered(_as(spec.user), '', command_line(spec, _MACHINE_IMAGE))} &",
        f"echo $! >{_PID}; wait $!; exit $?",
    ]
    path.touch(0o600)
    path.write_text("\n".join(lines) + "\n")
    return path


def entering(argv: Sequence[str], told: ExecOptions) -> list[str]:
    """A further command of the container, once there is one."""
    become = _as(told.user) if told.user else f"$(cat {_AS})"
    return [SHELL, "-c", f"{_THERE}; exec {_entered(become, _before(told.env, told.work_dir), argv)}"]


def signalling(name: str) -> list[str]:
    """A command that sends a signal to the container's process, once there is one."""
    return [SHELL, "-c", f'{_THERE}; as="$(cat {_AS})"; ${{as:+sudo -n --}} kill -s {name} "$(cat {_PID})"']


def _entered(become: str, before: str, argv: Sequence[str]) -> str:
    inner = shlex.quote(f'\n{before}\nexec "$@"')
    return f'{become} {SHELL} -c "$(cat {_ENV})"{inner} {SHELL} {shlex.join(argv)}'


def _before(env: Mapping[str, str], work_dir: str) -> str:
    faulty = [name for name in env if not (name.isascii() and name.isidentifier())]
    if faulty or any("\0" in value for value in env.values()):
        raise InvalidSpec(f"a shell cannot set the variables {', '.join(faulty) or 'with a NUL byte'}")
    exports = [f"export {name}={shlex.quote(value)}" for name, value in env.items()]
    return "\n".join([*exports, *((f"cd {shlex.quote(work_dir)} || exit 126",) if work_dir else ())])


def _as(user: str) -> str:
    """What runs a command as a user of the guest; numbers are told apart by sudo's ``#``."""
    if not user:
        return ""
    name, _, group = (f"#{part}" if part.isdecimal() else part for part in user.partition(":"))
    return shlex.join(["sudo", "-n", "-u", name, *(("-g", group) if group else ()), "--"])
