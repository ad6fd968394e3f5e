"""Builds the compiled hot path, ``zlayer_driver._fastpath``, and two small programs in C; everything else is in pyproject.toml.

``ZLAYER_CYTHON_TRACE=1`` builds it for line coverage, ``ZLAYER_SANITIZE=1`` with the address and undefined-behaviour sanitizers.
"""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

TRACE = os.environ.get("ZLAYER_CYTHON_TRACE") == "1"
SANITIZE = os.environ.get("ZLAYER_SANITIZE") == "1"
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g"]

# Where nothing compiles, the readable twin serves. Windows has compilers, and none of the headers.
COMPILER = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
COMPILES = sys.platform != "win32" and shutil.which(COMPILER[0]) is not None

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

# By target: sources, and what an installation without it lacks.
PROGRAMS = {
    "zlayer_driver/guest/agent": ("zlayer_driver/guest/*.c", "runs no VMs"),
    "zlayer_driver/host/enter": ("zlayer_driver/host/enter.c", "executes commands in containers by the runtime's own, slower command"),
    "zlayer_driver/host/gate": ("zlayer_driver/host/gate.c", "starts containers by the runtime's own, slower command"),
    "zlayer_driver/host/init": ("zlayer_driver/host/init.c", "has no init for tasks that ask for one"),
}


class Build(build_ext):
    """Builds the programs beside the extension, static: one is alone in its guest, the other is to start at once.

    What is built in place is complete before it goes there, so that nobody who starts meanwhile loads half of it.
    """

    def run(self) -> None:
        self.fresh: list[str] = []
        super().run()
        for program, (sources, lack) in PROGRAMS.items() if sys.platform == "linux" else ():
            target = Path("." if self.inplace else self.build_lib, program)
            target.parent.mkdir(parents=True, exist_ok=True)
            found = [str(path) for path in sorted(Path().glob(sources))]
            command = [*COMPILER, "-static", "-Os", "-s", "-Wall", "-Wextra", "-o", f"{target}.new", *found]
            try:
                subprocess.run(command, check=True)
                self.fresh.append(str(target))
            except (OSError, subprocess.CalledProcessError) as error:
                self.warn(f"{program} is not built, so this installation {lack}: {error}")
        for path in self.fresh:
            Path(f"{path}.new").replace(path)

    def copy_file(self, infile: Any, outfile: Any, *args: Any, **named: Any) -> Any:
        self.fresh.append(str(outfile))
        return super().copy_file(infile, f"{outfile}.new", *args, **named)

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), *(str(Path(self.build_lib, program)) for program in PROGRAMS if sys.platform == "linux")]


modules = cythonize([extension], language_level=3, compiler_directives={"linetrace": TRACE}) if COMPILES else []
setup(cmdclass={"build_ext": Build}, ext_modules=modules)
