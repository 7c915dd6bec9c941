"""Everything but the C++ and CUDA part stands in pyproject.toml."""

import os
import sys

from setuptools import setup

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # PEP 517 builds do not put this folder there

from build_kernels import BuildKernels, extensions

setup(ext_modules=extensions(), cmdclass={"build_ext": BuildKernels})
