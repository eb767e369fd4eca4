"""Builds the native engine, where there is a C++ compiler; everything else is in pyproject.toml."""

import os
import platform
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

NATIVE = "ssl_views/native"
X86 = {  # instruction set: (floats per vector, compiler flags), from the plainest to the widest
    "sse2": (4, []),
    "avx2": (8, ["-mavx2", "-mfma"]),
    "avx512": (16, "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mtune=icelake-server".split()),
}
OTHER = {"generic": (4, [])}  # NEON on ARM
FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-ffp-contract=off",  # weights as torch computes them
    "-fvisibility=hidden",
    "-w",  # compilers warn of their own headers and of the size of vectors
]


class BuildNative(build_ext):
    """Compiles views.cpp once per instruction set and links a plain shared library."""

    def build_extension(self, ext: Extension) -> None:
        """Compile for every instruction set, and link."""
        target = self.get_ext_fullpath(ext.name)
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        stale = [target]  # a library of other sources must not outlive a failure
        if self.inplace or self.editable_mode:
            stale.append(self.get_ext_filename(ext.name))
        for library in stale:
            Path(library).unlink(missing_ok=True)
        isas = X86 if platform.machine() in ("x86_64", "AMD64") else OTHER
        listed = " ".join(f"DO({isa})" for isa in isas)
        folder = str(Path(self.build_temp) / "native")
        objects = self.compiler.compile(
            [f"{NATIVE}/dispatch.cpp"],
            output_dir=folder,
            macros=[("SSL_VIEWS_ISAS(DO)", listed)],
            extra_postargs=FLAGS,
        )
        for isa, (lanes, flags) in isas.items():
            objects += self.compiler.compile(
                [f"{NATIVE}/views.cpp"],
                output_dir=f"{folder}/{isa}",
                macros=[("ISA", isa), ("LANES", str(lanes))],
                extra_postargs=FLAGS + flags,
            )
        threads = [] if sys.platform == "darwin" else ["-pthread"]
        self.compiler.link_shared_object(objects, target, extra_postargs=threads, target_lang="c++")

    def get_ext_filename(self, fullname: str) -> str:
        """Name the library without a tag of the Python version: it does not use Python."""
        return str(Path(*fullname.split("."))) + (sysconfig.get_config_var("SHLIB_SUFFIX") or ".so")


class AnyPython(bdist_wheel):
    """Tags the wheel for a platform, and for every Python version."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags for Python, its ABI and the platform."""
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "ssl_views.native._views",
            [f"{NATIVE}/views.cpp", f"{NATIVE}/dispatch.cpp"],
            depends=[f"{NATIVE}/views.h"],
            optional="SSL_VIEWS_REQUIRE_NATIVE" not in os.environ,  # a release has to have it
        )
    ],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": AnyPython},
)
