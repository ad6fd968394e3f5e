"""``python -m tests.fuzz TARGET [--seconds N] [--seed N]``: fuzzes one target; an input that breaks it is printed and ends the run."""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fuzz.mutation import mutations

if TYPE_CHECKING:
    from tests.fuzz.targets import Target


def blind(target: Target, seconds: float, seed: int, scratch: Path) -> int:
    """Runs mutants until time is up; how many."""
    end = time.monotonic() + seconds
    for count, data in enumerate(mutations(target.seeds(), seed)):
        if time.monotonic() > end:
            return count
        try:
            target.run(data, scratch)
        except BaseException:
            (Path(tempfile.gettempdir()) / "fuzz-input").write_bytes(data)
            sys.stderr.write(f"broken by {data[:2000]!r}\n")
            raise
    return 0


def guided(name: str, seconds: float, scratch: Path) -> None:
    """By coverage of the readable twin, and of the compiled one where it was built for that; both have to agree."""
    atheris: Any = import_module("atheris")
    with atheris.instrument_imports(include=["zlayer_driver._fastpath_py"]):
        target: Target = import_module("tests.fuzz.targets").TARGETS[name]
    corpus = scratch / "corpus"
    corpus.mkdir()
    for i, seed in enumerate(target.seeds()):
        (corpus / str(i)).write_bytes(seed)
    atheris.Setup([sys.argv[0], f"-max_total_time={int(seconds)}", str(corpus)], lambda data: target.run(data, scratch))
    atheris.Fuzz()


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", help="a name in tests.fuzz.targets.TARGETS")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--blind", action="store_true", help="mutate without coverage even if atheris is there")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        if find_spec("atheris") and not options.blind:
            guided(options.target, options.seconds, Path(scratch))
            return
        target = import_module("tests.fuzz.targets").TARGETS[options.target]
        count = blind(target, options.seconds, options.seed, Path(scratch))
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    sys.stdout.write(f"{options.target}: {count} inputs, peak memory {peak_mib} MiB\n")


if __name__ == "__main__":
    main(sys.argv[1:])
