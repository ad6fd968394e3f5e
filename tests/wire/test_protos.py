"""The committed modules are what the .proto files say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import zlayer_driver.wire._gen

ROOT = Path(__file__).parents[2]
COMMITTED = Path(zlayer_driver.wire._gen.__file__).parent


def test_generated_modules_are_fresh(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "tools/protos", tmp_path], check=True)
    fresh = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "zlayer_driver/wire/_gen").iterdir()}
    committed = {path.name: path.read_text(encoding="utf-8") for path in COMMITTED.glob("*_pb2.py*")}
    assert fresh == committed, "run tools/protos"
    assert len(fresh) == 2 * len(list((ROOT / "zlayer_driver/wire/proto").glob("*.proto")))
