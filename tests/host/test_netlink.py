"""The netlink socket against the real kernel, and namespaces as such."""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import AsyncIterator
from ipaddress import IPv4Network, ip_address
from pathlib import Path

import pytest

from zlayer_driver.host import netlink_messages as messages
from zlayer_driver.host import netns, nftables
from zlayer_driver.host.netlink import Batch, Socket, Template

pytestmark = pytest.mark.needs("root", "linux")

OWN = Path("/proc/thread-self/ns/net")


@pytest.fixture
async def worker(tmp_path: Path, no_fd_leak: object) -> AsyncIterator[netns.Worker]:
    """A thread in a namespace of its own."""
    path = tmp_path / "ns"
    netns.make(path)
    worker = netns.Worker(str(path))
    yield worker
    worker.close()
    netns.remove(path)


async def test_the_first_failure_of_a_batch_is_told_and_the_rest_is_done(worker: netns.Worker) -> None:
    def work() -> tuple[OSError, bool]:
        with Socket() as sock:
            batch = Batch.join([messages.link_gone("none0"), messages.link_gone("none1"), messages.link_up(1)])
            with pytest.raises(OSError, match="delete link none0") as caught:
                sock.send(batch)
            sock.send(Batch(b"", ()))
            return caught.value, messages.links(sock)["lo"].up

    failure, up = await worker.run(work)
    assert (failure.errno, up) == (errno.ENODEV, True)


async def test_thousands_of_messages_may_be_sent_at_once(worker: netns.Worker) -> None:
    def work() -> None:
        with Socket() as sock:
            sock.send(Batch.join([messages.link_up(1)] * 5000))

    await worker.run(work)


async def test_a_transaction_is_done_whole_or_not_at_all(worker: netns.Worker) -> None:
    def work() -> bool:
        with pytest.raises(FileNotFoundError, match="delete the nftables table never"):
            nftables.change([nftables.table("one"), nftables.table_gone("never"), nftables.table("two")])
        return nftables.has_table("one")

    assert not await worker.run(work)


async def test_a_transaction_that_the_kernel_does_not_take_is_refused_once(worker: netns.Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nftables, "_NFTABLES", 1)  # connection tracking, which knows no transactions: as where nftables is missing
    with pytest.raises(OSError, match="make the nftables table one") as caught:
        await worker.run(nftables.change, [nftables.table("one"), nftables.table("two")])
    assert caught.value.errno == errno.EOPNOTSUPP


async def test_the_kernels_own_reason_is_told(worker: netns.Worker) -> None:
    def work() -> None:
        with Socket() as sock:
            for name in ("vx0", "vx1"):
                sock.send(messages.vxlan(name, messages.Vxlan(7, "127.0.0.1", 4789, 1), mtu=1400, mac="02:00:00:00:00:01"))

    with pytest.raises(FileExistsError, match=r"VNI already exists\): 'make the VXLAN device vx1'"):
        await worker.run(work)


async def test_a_long_dump_comes_whole(worker: netns.Worker) -> None:
    subnets = list(IPv4Network("10.0.0.0/8").subnets(new_prefix=20))[1:1001]

    def work() -> set[str]:
        with Socket() as sock:
            sock.send(messages.bridge("br0", mtu=1500, mac="02:00:00:00:00:01"))
            link = messages.links(sock)["br0"].index
            sock.send(Batch.join([messages.link_up(link), messages.address(link, ip_address("10.0.0.1"), 24)]))
            for start in range(0, len(subnets), 100):
                sock.send(
                    Batch.join([messages.route(subnet, link=link, gateway=ip_address("10.0.0.2")) for subnet in subnets[start:][:100]])
                )
            return set(messages.routes(sock, link))

    assert await worker.run(work) == {str(subnet) for subnet in subnets}


def test_a_dump_under_which_things_changed_is_asked_for_again() -> None:
    """The test answers in the kernel's place, which marks such a dump by chance."""
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock = Socket()
    sock.close()
    sock._socket = ours
    with sock, kernel:
        for flags, payload in ((0x12, b"torn"), (0x02, b"sound")):  # NLM_F_MULTI, and NLM_F_DUMP_INTR
            parts = ((16, payload.ljust(8)), (3, bytes(4)))  # RTM_NEWLINK, NLMSG_DONE
            kernel.send(b"".join(struct.pack("=IHHII", 16 + len(part), kind, flags, 0, 0) + part for kind, part in parts))
        assert sock.dump(Batch(b"ask", ("ask",))) == [b"sound".ljust(8)]


def test_a_template_takes_values_of_the_right_length_only() -> None:
    template = Template(Batch(b"..AAAA..BB..AAAA", ("do",)), {"a": b"AAAA", "b": b"BB"})
    assert template.fill({"a": b"1234", "b": b"xy"}) == Batch(b"..1234..xy..1234", ("do",))
    with pytest.raises(ValueError, match="a takes 4 bytes"):
        template.fill({"a": b"123", "b": b"xy"})
    with pytest.raises(ValueError, match="no blank"):
        Template(Batch(b"..", ("do",)), {"a": b"AAAA"})


async def test_the_event_loops_thread_never_changes_its_namespace(worker: netns.Worker) -> None:
    here = OWN.readlink()
    there = await worker.run(OWN.readlink)
    assert there != here
    assert OWN.readlink() == here


async def test_failures_come_back_from_the_thread_and_leave_it_alive(worker: netns.Worker) -> None:
    with pytest.raises(FileNotFoundError):
        await worker.run(Path("/nowhere").readlink)
    assert await worker.run(lambda: 7) == 7


async def test_a_worker_that_cannot_enter_says_so(no_fd_leak: object) -> None:
    worker = netns.Worker("/dev/null")
    for _ in range(2):
        with pytest.raises(OSError, match="enter a network namespace"):
            await worker.run(lambda: None)
    worker.close()


async def test_work_goes_on_when_its_caller_is_cancelled(worker: netns.Worker, caplog: pytest.LogCaptureFixture) -> None:
    done: list[int] = []

    def fails() -> None:
        done.append(1)
        raise OSError(errno.EPERM, "no")

    task = asyncio.create_task(worker.run(fails))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await worker.run(lambda: None)
    assert done == [1]
    assert "failed while its caller was cancelled" in caplog.text


async def test_a_namespace_is_made_once_and_removed_once(tmp_path: Path) -> None:
    path = tmp_path / "below" / "ns"
    assert netns.make(path)
    assert not netns.make(path)
    assert netns.is_alive(str(path))
    netns.remove(path)
    netns.remove(path)
    assert not netns.is_alive(str(path))
    path.touch()  # as a crash between file and mount leaves it
    assert netns.make(path)
    netns.remove(path)
