"""The wheel's tag: no compiled Python code, so any Python 3; the library that it holds decides the platform."""

import os

from setuptools import Distribution, setup

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # setuptools before 70
    from wheel.bdist_wheel import bdist_wheel

#: Set by build-wheel, such as manylinux_2_34_x86_64; without it the wheel holds no library.
platform = os.environ.get("LIBSFT_WHEEL_PLATFORM")


class LibraryDistribution(Distribution):
    def has_ext_modules(self):
        return bool(platform)  # to site-packages of the platform


class library_wheel(bdist_wheel):
    def get_tag(self):
        return ("py3", "none", platform) if platform else super().get_tag()


setup(distclass=LibraryDistribution, cmdclass={"bdist_wheel": library_wheel})
