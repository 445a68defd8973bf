"""The one thing that pyproject.toml cannot say: how the kernel for CPUs is compiled, and that it may fail."""

from __future__ import annotations

import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError

OPENMP = ["-fopenmp"]


class BuildKernels(build_ext):
    """Compiles with OpenMP, and without it where the compiler has none."""

    def build_extension(self, ext: Extension) -> None:
        """Compile one extension; setuptools goes on without it if this fails, because it is optional."""
        plain = list(ext.extra_compile_args)
        try:
            ext.extra_compile_args, ext.extra_link_args = plain + OPENMP, OPENMP
            super().build_extension(ext)
        except CCompilerError:
            ext.extra_compile_args, ext.extra_link_args = plain, []
            super().build_extension(ext)


KERNEL = Extension(
    "rdrop.kernels._native",
    sources=["src/rdrop/kernels/_native.cpp"],
    depends=["src/rdrop/kernels/_row.h"],
    extra_compile_args=["-std=gnu++17", "-O3", "-ffp-contract=fast", "-fno-exceptions", "-fno-rtti"],
    py_limited_api=True,
    optional=True,  # without a compiler the package still works, with the kernels in torch
)

# Microsoft's compiler has neither the vectors nor the attributes that the kernel is written in.
setup(
    ext_modules=[] if sys.platform == "win32" else [KERNEL],
    cmdclass={"build_ext": BuildKernels},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
