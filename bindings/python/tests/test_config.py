"""Configurations: what goes in comes out, by every door, and errors name their place."""

import copy
import math
import pickle
from pathlib import Path

import libsft
from libsft import Budget, Config, Divergence, NonFinite, Overfit, Plateau, Target

from .support import InFolder


class Keys(InFolder):
    def test_values_are_set_by_their_type(self) -> None:
        config = self.configured()
        config["learning_rate"] = 1
        config["packing"] = True
        config["seed"] = "9"
        config["output_dir"] = Path("out/elsewhere")
        config["lr_scheduler_kwargs.num_cycles"] = 2
        config["eval_dataset_name"] = {"a": "eval.jsonl"}
        config["data_seed"] = 5
        config["data_seed"] = None
        keys = config.to_dict()
        self.assertEqual(keys["learning_rate"], 1.0)
        self.assertIs(keys["packing"], True)
        self.assertEqual(keys["seed"], 9)
        self.assertEqual(keys["output_dir"], "out/elsewhere")
        self.assertEqual(keys["lr_scheduler_kwargs"], {"num_cycles": 2})
        self.assertEqual(keys["eval_dataset_name"], {"a": "eval.jsonl"})
        self.assertIsNone(keys["data_seed"])

    def test_a_mapping_and_keywords_are_merged_in_this_order(self) -> None:
        with Config({"max_steps": 1, "seed": 1}, max_steps=2) as config:
            self.assertEqual((config["max_steps"], config["seed"]), (2, 1))
            self.assertIn("seed", config)
            self.assertIn("seed", list(config))
            self.assertNotIn("sead", config)

    def test_yaml_is_read_as_the_command_reads_it(self) -> None:
        text = """\
# A comment.
learning_rate: 2e-5
eval_strategy: no
eos_token: "5"
stop:
  - {rule: target, metric: score, at_least: 0.5}
  - rule: budget
    max_seconds: 60
lr_scheduler_kwargs: {num_cycles: 3}
"""
        Path("run.yaml").write_text(text)
        with Config("run.yaml") as config:
            keys = config.to_dict()
        self.assertEqual(keys["learning_rate"], 2e-5)
        self.assertEqual(keys["eval_strategy"], "no")
        self.assertEqual(keys["eos_token"], "5")
        self.assertEqual(keys["lr_scheduler_kwargs"], {"num_cycles": 3})
        self.assertEqual([rule["rule"] for rule in keys["stop"]], ["target", "budget"])

    def test_a_file_that_is_wrong_is_named(self) -> None:
        for text, place, word in [
            ("# a run\nlearning_rat: 1\n", "wrong.yaml:2: ", "learning_rate"),
            ("seed: 1\nseed: 2\n", "wrong.yaml:2:", "seed"),
            ("- 1\n", "wrong.yaml: ", "keys and values"),
            ("a: [\n", "wrong.yaml:", ""),
            ('{"seed": ', "wrong.yaml:", ""),
        ]:
            Path("wrong.yaml").write_text(text)
            with self.subTest(text), self.assertRaises(libsft.ConfigError) as caught:
                Config("wrong.yaml")
            self.assertTrue(str(caught.exception).startswith(place), caught.exception)
            self.assertIn(word, str(caught.exception))
        Path("empty.yaml").write_text("# nothing\n\n")
        with Config("empty.yaml") as config, Config() as fresh:
            self.assertEqual(config.to_json(), fresh.to_json())
        with self.assertRaisesRegex(libsft.FileError, "no-such.yaml"):
            Config("no-such.yaml")

    def test_an_error_changes_nothing(self) -> None:
        config = self.configured()
        before = config.to_json()
        with self.assertRaises(libsft.UnknownKeyError):
            config.merge(seed=5, sead=6)
        self.assertEqual(config.to_json(), before)

    def test_values_that_no_key_can_have_are_refused(self) -> None:
        config = self.configured()
        for key, value in [
            ("learning_rate", math.nan),
            ("seed", 2**64),
            ("max_steps", 1.5),
            ("eos_token", "a\0b"),
            ("eos_token", "\ud800"),
            ("stop", [object()]),
        ]:
            with self.subTest(key=key, value=value), self.assertRaises((libsft.SftError, ValueError)):
                config[key] = value
        with self.assertRaises(libsft.ConfigError):
            config.merge(learning_rate=math.inf)

    def test_rules_are_written_as_the_engine_knows_them(self) -> None:
        rules = [
            Target("eval_loss", at_most=1.5, patience=2, min_steps=3, smoothing={"ema": 0.9}),
            Plateau(
                3,
                metric="eval_loss",
                min_delta={"relative": 0.01},
                greater_is_better=False,
                min_steps=1,
            ),
            Plateau(1, reference="hf"),
            NonFinite(patience=2),
            Divergence(metric="train_loss", factor=4, patience=2, min_steps=1, smoothing={"mean": 3}),
            Overfit(patience=3, min_delta=0.1, min_steps=1, smoothing={"median": 3}),
            Budget(max_steps=1, max_epochs=2.0, max_tokens=3, max_seconds=4.0),
        ]
        config = self.configured(stop=rules)
        written = config["stop"]
        self.assertEqual(len(written), len(rules))
        for rule, found in zip(rules, written):
            for key, value in rule.to_dict().items():
                self.assertEqual(found[key], value, key)

    def test_early_stopping_sets_keys_and_no_more(self) -> None:
        with Config(**libsft.EarlyStopping(3, 0.5, metric="score", greater_is_better=True)) as config:
            changed = {k: v for k, v in config.to_dict().items() if v != Config()[k]}
        self.assertEqual(
            changed,
            {
                "early_stopping_patience": 3,
                "early_stopping_threshold": 0.5,
                "metric_for_best_model": "score",
                "greater_is_better": True,
            },
        )
        same = libsft.EarlyStoppingCallback(early_stopping_patience=2)
        self.assertEqual(dict(same), dict(libsft.EarlyStopping(patience=2)))

    def test_a_plan_is_json_too(self) -> None:
        plan = self.configured().plan()
        self.assertLessEqual(plan.lower_bound_bytes, plan.total_bytes)
        self.assertIn(f'"total_bytes":{plan.total_bytes}', self.configured().plan_json())

    def test_a_configuration_cannot_be_copied_or_pickled(self) -> None:
        config = self.configured()
        for way in (copy.copy, copy.deepcopy, pickle.dumps):
            with self.subTest(way=way), self.assertRaises(TypeError):
                way(config)

    def test_an_exception_can_be_pickled(self) -> None:
        with self.assertRaises(libsft.ExistsError) as caught:
            self.configured(output_dir="model", overwrite_output_dir=False).start()
        self.assertIsInstance(caught.exception, FileExistsError)
        again = pickle.loads(pickle.dumps(caught.exception))
        self.assertEqual((str(again), again.status), (str(caught.exception), caught.exception.status))
