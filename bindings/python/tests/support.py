"""A folder with the data of the scenarios, made once, in which each test runs."""

import atexit
import os
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path
from typing import Any, Optional

import libsft
from libsft import Config

ROOT = Path(__file__).resolve().parents[3]
_made: Optional[Path] = None


def sft() -> Path:
    """The command, which makes models: $SFT, or beside the library, or where cargo leaves it."""
    named = os.environ.get("SFT")
    if named:
        return Path(named)
    library = Path(os.environ.get("LIBSFT_LIBRARY", ""))
    beside = (library if library.is_dir() else library.parent) / "sft"
    return beside if beside.exists() else ROOT / "target/release/sft"


def prepared() -> Path:
    global _made
    if _made is None:
        _made = Path(tempfile.mkdtemp(prefix="libsft-tests-"))
        atexit.register(shutil.rmtree, _made, ignore_errors=True)
        prepare = ROOT / "bindings/scenarios/prepare"
        subprocess.run([prepare, _made, sft().resolve()], check=True, stdout=subprocess.DEVNULL)
    return _made


def with_package(**more: str) -> dict[str, str]:
    """The environment of a second process that uses the same package and library."""
    path = libsft.library_path()
    library = {"LIBSFT_LIBRARY": path} if os.path.isabs(path) else {}
    return {**os.environ, "PYTHONPATH": str(Path(libsft.__file__).parents[1]), **library, **more}


class InFolder(unittest.TestCase):
    def setUp(self) -> None:
        before = os.getcwd()
        os.chdir(prepared())
        self.addCleanup(os.chdir, before)
        shutil.rmtree("out", ignore_errors=True)

    def configured(self, **keys: Any) -> Config:
        """A configuration on the data of the scenarios, closed at the end of the test."""
        config = Config("base.json", **{"output_dir": "out/test", "max_steps": 3, **keys})
        self.addCleanup(config.close)
        return config
