"""The table of bindings/scenarios.md, and the smallest host of the README."""

import os
import re
import subprocess
import tempfile
from pathlib import Path

import libsft

from .support import ROOT, InFolder, sft


class Scenarios(InFolder):
    def run_script(self, name: str, folder: str) -> str:
        path = Path(libsft.library_path())
        if not path.is_absolute() or path.name != "libsft.so":
            self.skipTest("the scripts take the folder of a libsft.so")
        return subprocess.run(
            [ROOT / "bindings/python" / name, folder],
            env={**os.environ, "SFT_LIBRARIES": str(path.parent)},
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ).stdout

    def test_the_table_and_the_readme(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            prepare = ROOT / "bindings/scenarios/prepare"
            subprocess.run([prepare, folder, sft().resolve()], check=True, stdout=subprocess.DEVNULL)
            table = re.sub(r" ~(\w+)=\S+", r" ~\1=*", self.run_script("run-scenarios", folder))
            self.assertEqual(table, (ROOT / "bindings/scenarios/expected.txt").read_text())
            self.assertIn("max_steps", self.run_script("run-readme", folder))
            self.assertTrue(Path(folder, "tuned/model.safetensors").exists())
