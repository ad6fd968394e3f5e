"""Builds the compiled hot path, ``zlayer_driver._fastpath``, and the guest agent of VMs; everything else is in pyproject.toml.

``ZLAYER_CYTHON_TRACE=1`` builds it for line coverage, ``ZLAYER_SANITIZE=1`` with the address and undefined-behaviour sanitizers.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

TRACE = os.environ.get("ZLAYER_CYTHON_TRACE") == "1"
SANITIZE = os.environ.get("ZLAYER_SANITIZE") == "1"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g"]

extension = Extension(
    "*",
    ["zlayer_driver/_fastpath/*.pyx"],
    depends=[str(path) for path in sorted(Path("zlayer_driver/_fastpath").glob("*.h"))],
    include_dirs=["."],
    libraries=["sqlite3"],
    define_macros=[("CYTHON_TRACE", "1")] if TRACE else [],
    extra_compile_args=["-O3", "-fno-strict-aliasing", "-Wno-unused-function", *(SANITIZERS if SANITIZE else [])],
    extra_link_args=SANITIZERS if SANITIZE else [],
)

AGENT = "zlayer_driver/guest"


class Build(build_ext):
    """Builds the agent beside the extension: a static program, so that it runs as the only one of its guest."""

    def run(self) -> None:
        super().run()
        if sys.platform != "linux":
            return
        target = Path("." if self.inplace else self.build_lib, AGENT, "agent")
        target.parent.mkdir(parents=True, exist_ok=True)
        sources = [str(path) for path in sorted(Path(AGENT).glob("*.c"))]
        command = [*shlex.split(os.environ.get("CC", "cc")), "-static", "-Os", "-s", "-Wall", "-Wextra", "-o", str(target), *sources]
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            self.warn(f"the guest agent is not built, so this installation runs no VMs: {error}")

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), *([] if sys.platform != "linux" else [str(Path(self.build_lib, AGENT, "agent"))])]


setup(cmdclass={"build_ext": Build}, ext_modules=cythonize([extension], language_level=3, compiler_directives={"linetrace": TRACE}))
