"""docs/migrating-from-trl.md: every key of its tables does what the table says, and both of "ours" run."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import libsft
from libsft import Config

from .support import ROOT, InFolder, prepared, sft, with_package

PAGE = (ROOT / "docs/migrating-from-trl.md").read_text()


def table(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, without its head."""
    section = PAGE.split(f"### {heading}\n", 1)[1].split("\n#", 1)[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    assert len(rows) > 2, heading
    return rows[2:]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    assert found, language
    return found.group(1)


def accepts(key: str, value: Any) -> bool:
    """Whether the library takes the key with that value as one which changes nothing."""
    with Config() as config, Config() as fresh:
        config.merge({key: value})
        return config.to_json() == fresh.to_json()


class Tables(InFolder):
    def setUp(self) -> None:
        super().setUp()
        with Config() as config:
            self.keys = set(config.to_dict())

    def test_every_key_that_is_named_as_ours_is_one_and_none_is_left_out(self) -> None:
        same = {name for row in table("The same name, meaning and default") for name in names(row[0])}
        here = {name for row in table("Only here") for name in names(row[0])}
        self.assertEqual(same | here, self.keys)
        self.assertEqual(same & here, set())

    def test_values_that_are_said_to_be_refused_are(self) -> None:
        refused = {
            "train_sampling_strategy": ["batch_rebalance"],
            "loss_type": ["dft"],
            "lr_scheduler_type": ["reduce_lr_on_plateau", "greedy"],
            "report_to": ["wandb"],
        }
        for key, values in refused.items():
            for value in values:
                with self.subTest(key=key), self.assertRaises(libsft.UnsupportedError):
                    Config({key: value})
        with self.assertRaises(libsft.UnsupportedError):
            Config("base.json", output_dir="out/x", max_steps=1, use_peft=True).start()

    def test_names_that_differ_are_taken_or_refused_with_the_name_to_write(self) -> None:
        for theirs, ours, taken in table("Names that differ"):
            given = names(theirs)[0]
            key, _, value = names(ours)[0].partition(": ")
            self.assertIn(key, self.keys)
            with self.subTest(given=given):
                if taken == "yes":
                    name, _, text = given.partition(": ")
                    with Config() as config, Config() as fresh:
                        config.merge({name: True if text or key != "val_size" else 0.5})
                        changed = {k for k, v in config.to_dict().items() if v != fresh[k]}
                        # Its default is on, so that only off shows.
                        if key == "gradient_checkpointing":
                            config.merge({name: False})
                            changed = {k for k, v in config.to_dict().items() if v != fresh[k]}
                        self.assertEqual(changed, {key})
                        if value:
                            self.assertEqual(config[key], value)
                elif taken:
                    with self.assertRaises(libsft.UnknownKeyError) as caught:
                        Config({given: 1})
                    self.assertIn(f"`{key}", str(caught.exception))

    def test_what_is_accepted_changes_nothing_whatever_its_value(self) -> None:
        for row in table("Accepted, and nothing to set"):
            for key in names(row[0]):
                for value in (True, False, 7, "text", None, [1], {"a": 1}):
                    with self.subTest(key=key, value=value):
                        self.assertTrue(accepts(key, value))

    def test_what_is_not_there_takes_its_harmless_values_alone(self) -> None:
        for keys, accepted, _ in table("Not there"):
            harmless = [json.loads(value) for value in names(accepted)]
            for key in names(keys):
                for value in [*harmless, None]:
                    with self.subTest(key=key, value=value):
                        self.assertTrue(accepts(key, value))
                with self.subTest(key=key), self.assertRaises(libsft.UnsupportedError):
                    Config({key: "something else"})

    def test_every_key_of_the_peer_that_the_library_knows_is_in_a_table(self) -> None:
        source = (ROOT / "src/config/peer.rs").read_text()
        known = set(re.findall(r'\b(?:any|only)\(\s*"(\w+)"', source))
        renamed = set(re.findall(r'^\s*\(?\s*"(\w+)",\s*"write', source, flags=re.MULTILINE)) | set(
            re.findall(r'\("(\w+)", "write', source)
        )
        self.assertGreater(len(known), 100)
        self.assertGreater(len(renamed), 8)
        listed = {
            name
            for heading in ("Accepted, and nothing to set", "Not there")
            for row in table(heading)
            for name in names(row[0])
        }
        self.assertEqual(known - {"use_cpu"}, listed)
        old = {names(row[0])[0] for row in table("Names that differ")}
        self.assertEqual(renamed - old, set())


class SideBySide(InFolder):
    def test_both_of_ours_say_the_same_and_leave_the_same_model(self) -> None:
        folder = prepared() / "out"
        (folder / "cli").mkdir(parents=True)
        environment = with_package(XDG_CACHE_HOME=str(folder / "cache"))
        for name in ("model", "rows.jsonl", "eval.jsonl"):
            for run in ("cli", "python"):
                (folder / run).mkdir(exist_ok=True)
                os.symlink(prepared() / name, folder / run / name)

        Path("out/cli/run.yaml").write_text(block("yaml"))
        with Config("out/cli/run.yaml") as config:
            configured = config.to_dict()
        subprocess.run(
            [sft().resolve(), "train", "--config", "run.yaml"],
            cwd="out/cli",
            env=environment,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        Path("out/python/host.py").write_text(block("python"))
        said = subprocess.run(
            [sys.executable, "host.py"],
            cwd="out/python",
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        reason, steps, best = said.split()
        self.assertEqual(reason, "plateau", "early stopping ended it")
        self.assertLess(int(steps), configured["max_steps"])
        models = [Path("out", run, "tuned/model.safetensors").read_bytes() for run in ("cli", "python")]
        self.assertEqual(models[0], models[1])
        for run in ("cli", "python"):
            for name in ("config.json", "train_log.jsonl", "run.json"):
                self.assertTrue(Path("out", run, "tuned", name).exists(), name)
        self.assertTrue(Path("out/cli/tuned/loss.svg").exists())

        # TRL's script beside them asks for the same: each of its keys is a key of the configuration.
        theirs = dict(re.findall(r"^        (\w+)=(.+),$", block("py"), flags=re.MULTILINE))
        self.assertGreater(len(theirs), 8)
        for key, value in theirs.items():
            self.assertEqual(configured[key], json.loads(value.replace("True", "true")), key)
