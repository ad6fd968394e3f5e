"""The three files in a container's /etc that are its node's business: hosts, hostname and resolv.conf."""

from __future__ import annotations

from pathlib import Path

from zlayer_driver.errors import InvalidSpec
from zlayer_driver.model import Network

_LOCAL = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def write(directory: Path, network: Network, hostname: str) -> None:
    """Makes ``directory``; the files are readable for every user of the container."""
    directory.mkdir()
    for name, text in (("hosts", hosts(network, hostname)), ("hostname", f"{hostname}\n"), ("resolv.conf", resolv_conf(network))):
        (directory / name).write_text(text)
        (directory / name).chmod(0o644)


def hosts(network: Network, hostname: str) -> str:
    """The node's own under host networking, else loopback and the container itself; the task's further lines last."""
    base = _of_node("/etc/hosts") if network.mode == "host" else f"{_LOCAL}127.0.1.1\t{hostname}\n"
    further = "".join(f"{_word(address)}\t{_word(name)}\n" for name, address in network.extra_hosts)
    return f"{base}{further}"


def resolv_conf(network: Network) -> str:
    """The node's, unless the task names anything itself."""
    if not (network.dns_servers or network.dns_searches or network.dns_options):
        return _of_node("/etc/resolv.conf")
    lines = [f"nameserver {_word(server)}" for server in network.dns_servers]
    for keyword, words in (("search", network.dns_searches), ("options", network.dns_options)):
        if words:
            lines.append(f"{keyword} {' '.join(_word(word) for word in words)}")
    return "\n".join(lines) + "\n"


def _of_node(path: str) -> str:
    try:
        text = Path(path).read_text(errors="replace")
    except OSError:
        return ""
    return text if not text or text.endswith("\n") else f"{text}\n"


def _word(text: str) -> str:
    """One word of a line: nothing may add a line of its own."""
    if not text or any(character.isspace() or character == "\0" for character in text):
        raise InvalidSpec(
            f"{text!r} is no host name, address or option", hint="see the task's dns_* keys and extra_hosts, and the group's network"
        )
    return text
