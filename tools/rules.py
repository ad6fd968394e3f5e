"""Draws the choice, ``docs/rules.svg``: each rule with an example, and what `choose` says to it on three nodes. ``python -m tools.rules``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.sax.saxutils import escape

from zlayer_driver.choice import NodeShape, Request, Rule, choose
from zlayer_driver.errors import DriverError
from zlayer_driver.model import ISOLATION_LABEL, OS, ImageFacts, Isolation, Platform, Target

TARGET = Path(__file__).parents[1] / "docs" / "rules.svg"
IMAGE = "registry.internal/app:1"
NODES: Mapping[str, NodeShape] = {
    "Linux, with VMs": NodeShape(OS.LINUX, frozenset({Target.PRIMARY, Target.DELEGATE})),
    "macOS, with guests": NodeShape(OS.DARWIN, frozenset(Target)),
    "Windows, with WSL2": NodeShape(OS.WINDOWS, frozenset({Target.PRIMARY, Target.DELEGATE})),
}
_NOTHING = ImageFacts()
EXAMPLES: Mapping[Rule, tuple[str, Request, ImageFacts]] = {
    Rule.TASK_RUNTIME: ('task: runtime = "vm"', Request(service="app", image=IMAGE, runtime=Isolation.VM), _NOTHING),
    Rule.TASK_LABEL: ("task: label isolation = vz", Request(service="app", image=IMAGE, labels={ISOLATION_LABEL: "vz"}), _NOTHING),
    Rule.IMAGE_ISOLATION: ("image: label isolation = vm", Request(service="app", image=IMAGE), ImageFacts(OS.LINUX, isolation="vm")),
    Rule.IMAGE_MARKER: ("image: marker vz", Request(service="app", image=IMAGE), ImageFacts(OS.DARWIN, marker="vz")),
    Rule.TASK_PLATFORM: ("task: platform windows", Request(service="app", image=IMAGE, platform=Platform(OS.WINDOWS)), _NOTHING),
    Rule.IMAGE_OS: ("image: built for linux", Request(service="app", image=IMAGE), ImageFacts(OS.LINUX)),
    Rule.DEFAULT: ("nothing is said", Request(service="app", image=IMAGE), _NOTHING),
}
_ROW, _TOP, _LEFT, _COLUMN = 44, 54, 430, 170
_COLOURS = {"primary": "#1a7f37", "delegate": "#8250df", "vz": "#bf8700", "vz_linux": "#0969da"}


def picture() -> str:
    """The picture, as SVG."""
    width, height = _LEFT + _COLUMN * len(NODES), _TOP + _ROW * len(EXAMPLES) + 14
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="sans-serif">'
    return "\n".join([head, f'<rect width="{width}" height="{height}" fill="#ffffff"/>', *_titles(), *_rows(width), "</svg>\n"])


def _titles() -> Iterator[str]:
    yield _text(16, 30, "the first rule that names a target", "#57606a")
    for place, name in enumerate(NODES):
        yield _text(_LEFT + _COLUMN * place, 30, name, "#57606a")


def _rows(width: int) -> Iterator[str]:
    for number, (rule, (example, request, facts)) in enumerate(EXAMPLES.items(), 1):
        y = _TOP + _ROW * (number - 1)
        yield f'<rect x="8" y="{y}" width="{width - 16}" height="{_ROW - 6}" rx="6" fill="#f6f8fa"/>'
        yield _text(20, y + 24, f"{number} {rule}", "#1f2328", bold=True)
        yield _text(190, y + 24, example, "#1f2328")
        for place, node in enumerate(NODES.values()):
            said, why = _said(request, facts, node)
            yield _text(_LEFT + _COLUMN * place, y + 24, said if why in (rule, "") else f"{said} ({why})", _COLOURS.get(said, "#cf222e"))


def _said(request: Request, facts: ImageFacts, node: NodeShape) -> tuple[str, str]:
    """What is chosen, and by which rule; or why nothing is."""
    try:
        choice = choose(request, facts, node)
    except DriverError as error:
        return {"RouteToPeer": "another node"}.get(error.kind, "an error"), ""
    return choice.target, choice.rule


def _text(x: int, y: int, text: str, colour: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y}" font-size="14" fill="{colour}"{weight}>{escape(text)}</text>'


if __name__ == "__main__":
    TARGET.write_text(picture(), encoding="utf-8")
