"""Backends that packages register: found by name, and a broken one is an error with its name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zlayer_driver import backends
from zlayer_driver.backends.fake import FakeBackend
from zlayer_driver.config import PluginConfig
from zlayer_driver.contract import Backend
from zlayer_driver.errors import ConfigError, InternalError
from zlayer_driver.image.store import ImageStore
from zlayer_driver.model import OS, Target

Register = Callable[..., None]

_GOOD = """
from zlayer_driver.backends import Entry
from zlayer_driver.backends.fake import FakeBackend
from zlayer_driver.model import OS, Target
ENTRY = Entry(OS.LINUX, Target.PRIMARY, __name__)
def make(context):
    return FakeBackend(name=__name__)
"""


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Register:
    """Installs a distribution with one backend: its dist-info directory, and its module."""
    monkeypatch.syspath_prepend(tmp_path)

    def install(name: str, code: str, *, package: str = "") -> None:
        module = f"registered_{package or name}"
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{module}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[zlayer_driver.backends]\n{name} = {module}:ENTRY\n")
        monkeypatch.delitem(sys.modules, module, raising=False)

    return install


def _build(tmp_path: Path, **config: str) -> Backend | None:
    store = ImageStore(tmp_path / "images")
    return backends.build(backends.Context(PluginConfig(**config), store, OS.LINUX)).get(Target.PRIMARY)


def test_named_backend_takes_the_target(tmp_path: Path, register: Register) -> None:
    register("good", _GOOD)
    assert isinstance(_build(tmp_path, primary="good"), FakeBackend)
    assert backends.faults()["good"] == ""


def test_packages_are_not_looked_through_unless_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def looked(**_: str) -> None:
        raise AssertionError

    monkeypatch.setattr(backends, "entry_points", looked)
    assert _build(tmp_path) is not None
    assert _build(tmp_path, primary="podman") is not None


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("1/0", "ZeroDivisionError"),
        ("other = 1", "AttributeError"),
        ("ENTRY = 'text'", "is a str, not an Entry"),
    ],
)
def test_broken_registration_is_named(tmp_path: Path, register: Register, code: str, fault: str) -> None:
    register("broken", code)
    register("good", _GOOD)
    with pytest.raises(ConfigError, match="'broken' of package registered_broken") as caught:
        _build(tmp_path, primary="broken")
    assert fault in str(caught.value)
    assert fault in backends.faults()["broken"]
    assert backends.faults()["good"] == ""
    assert _build(tmp_path) is not None


def test_two_packages_with_one_name(tmp_path: Path, register: Register) -> None:
    register("twice", _GOOD, package="one")
    register("twice", _GOOD, package="two")
    with pytest.raises(ConfigError, match="package registered_one and package registered_two"):
        _build(tmp_path, primary="twice")
    assert "registered_one" in backends.faults()["twice"]


def test_name_of_our_own(register: Register) -> None:
    register("podman", _GOOD)
    assert "has the name of one of our own" in backends.faults()["podman"]


def test_unknown_name_and_wrong_target(tmp_path: Path, register: Register) -> None:
    register("good", _GOOD)
    with pytest.raises(ConfigError, match=r"no backend 'absent'.*docker, good, podman"):
        _build(tmp_path, primary="absent")
    with pytest.raises(ConfigError, match="'good' cannot be delegate of a linux node: it is primary of linux nodes"):
        _build(tmp_path, delegate="good")


def test_module_that_makes_no_backend(tmp_path: Path, register: Register) -> None:
    register("hollow", _GOOD.replace("FakeBackend(name=__name__)", "object()"))
    with pytest.raises(InternalError, match="registered_hollow makes a object without"):
        _build(tmp_path, primary="hollow")
