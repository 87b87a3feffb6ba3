"""What is declared in Python is what sft.h declares, and only a library that fits is accepted."""

import os
import re
import subprocess
import sys
import unittest
from ctypes import c_bool, c_char_p, c_double, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from enum import IntEnum
from typing import Any

import libsft
from libsft import Export, LibraryError, LogLevel, Status, StopReason, _native

from .support import ROOT, with_package

HEADER = re.sub(r"/\*.*?\*/", "", (ROOT / "include/sft.h").read_text(), flags=re.DOTALL)

TYPES = {
    "uint32_t": c_uint32,
    "int32_t": c_int32,
    "sft_status": c_int32,
    "uint64_t": c_uint64,
    "double": c_double,
    "size_t": c_size_t,
    "bool": c_bool,
    "void": None,
    "const char *": c_char_p,
    "char *": c_void_p,  # given away: the pointer is needed to free it
}


class Header(unittest.TestCase):
    def test_every_function_is_declared_with_its_number_of_arguments_and_its_result(self) -> None:
        found = {}
        for result, name, arguments in re.findall(
            r"^([\w ]+?\**) ?\b(sft_\w+)\(([^;]*?)\);", HEADER, flags=re.MULTILINE
        ):
            count = 0 if arguments.strip() in ("", "void") else arguments.count(",") + 1
            found[name] = (result.strip(), count)
        self.assertGreater(len(found), 30)
        self.assertEqual(set(found), set(_native.FUNCTIONS))
        for name, (result, count) in found.items():
            declared, arguments = _native.FUNCTIONS[name]
            self.assertEqual(len(arguments), count, name)
            if result.startswith("struct"):
                self.assertIs(declared, c_void_p, name)
            else:
                self.assertIs(declared, TYPES[result.replace("char*", "char *")], name)

    def test_every_struct_has_the_fields_of_the_header(self) -> None:
        structs = {
            "sft_step_report": _native.StepReportStruct,
            "sft_checkpoint_report": _native.CheckpointReportStruct,
            "sft_memory_plan": _native.MemoryPlanStruct,
            "sft_batch": _native.BatchStruct,
            "sft_eval_report": _native.EvalReportStruct,
            "sft_snapshot": _native.SnapshotStruct,
        }
        found = dict(re.findall(r"typedef struct (\w+) \{(.*?)\}", HEADER, flags=re.DOTALL))
        self.assertEqual(set(found), set(structs))
        for name, body in found.items():
            fields: list[tuple[str, Any]] = []
            for kind, star, field in re.findall(r"([\w ]+?) (\*?)(\w+);", body):
                kind = kind.strip()
                pointer = c_char_p if kind == "const char" else c_void_p
                fields.append((field, pointer if star else TYPES[kind]))
            self.assertEqual(list(structs[name]._fields_), fields, name)

    def test_every_number_has_a_name(self) -> None:
        def named(prefix: str, kind: type[IntEnum]) -> None:
            found = re.findall(rf"#define {prefix}(\w+) (\d+)", HEADER)
            self.assertGreater(len(found), 1, prefix)
            self.assertEqual({name: int(number) for name, number in found}, {m.name: int(m) for m in kind})

        named("SFT_STOP_", StopReason)
        named("SFT_LOG_", LogLevel)
        named("SFT_EXPORT_", Export)
        statuses = dict(re.findall(r"#define SFT_(OK|STOPPED|ERR_\w+) (\d+)", HEADER))
        self.assertEqual({n: int(s) for n, s in statuses.items()}, {m.name: int(m) for m in Status})

    def test_versions_are_those_of_the_header(self) -> None:
        self.assertIn(f'#define SFT_VERSION "{libsft.__version__}"', HEADER)
        self.assertIn(f"#define SFT_ABI_VERSION {libsft.ABI_VERSION}\n", HEADER)


class Numbers(unittest.TestCase):
    def test_a_number_of_a_newer_library_is_kept(self) -> None:
        self.assertEqual(int(StopReason(77)), 77)
        self.assertEqual(str(StopReason(77)), "unknown_77")
        self.assertEqual(f"{StopReason.MAX_STEPS:>12}", "   max_steps")
        error = libsft._errors.error_of(299, "text")
        self.assertIsInstance(error, libsft.ConfigError)
        self.assertEqual(error.status, 299)

    def test_each_status_has_a_class_of_its_own(self) -> None:
        kinds = [type(libsft._errors.error_of(status, "")) for status in Status if status >= 100]
        self.assertEqual(len(set(kinds)), 21)
        for status in Status:
            if status >= 100:
                self.assertEqual(libsft._errors.error_of(status, "text").status, status)
                self.assertEqual(str(libsft._errors.error_of(status, "text")), "text")


class FakeFunction:
    def __init__(self, value: int) -> None:
        self.value = value

    def __call__(self) -> int:
        return self.value


class Loading(unittest.TestCase):
    def imported(self, library: str) -> str:
        """What importing the package says with LIBSFT_LIBRARY set."""
        run = subprocess.run(
            [sys.executable, "-c", "import libsft; print(libsft.library_path())"],
            env=with_package(LIBSFT_LIBRARY=library),
            capture_output=True,
            text=True,
        )
        return (run.stdout or run.stderr).splitlines()[-1]

    def test_the_variable_names_a_file_or_a_folder(self) -> None:
        path = libsft.library_path()
        if not os.path.isabs(path):
            self.skipTest("the library is the system's")
        self.assertEqual(self.imported(path), path)
        self.assertEqual(self.imported(os.path.dirname(path)), path)

    def test_a_library_that_is_named_and_not_there_is_not_replaced_by_another(self) -> None:
        said = self.imported("/no/such/libsft.so")
        self.assertIn("LibraryError", said)
        self.assertIn("/no/such/libsft.so", said)
        self.assertIn("LIBSFT_LIBRARY", said)

    def test_another_library_is_refused(self) -> None:
        self.assertIn("is not libsft", self.imported("libc.so.6"))

    def test_another_abi_version_is_refused_with_both_numbers(self) -> None:
        class Newer:
            sft_abi_version = FakeFunction(libsft.ABI_VERSION + 1)

        with self.assertRaises(LibraryError) as caught:
            _native.declare(Newer(), "some.so")
        self.assertIn(f"version {libsft.ABI_VERSION + 1}", str(caught.exception))
        self.assertIn(f"version {libsft.ABI_VERSION}:", str(caught.exception))

    def test_a_library_that_lacks_a_function_is_refused_by_its_name(self) -> None:
        class Older:
            sft_abi_version = FakeFunction(libsft.ABI_VERSION)
            sft_version = FakeFunction(0)

        with self.assertRaises(LibraryError) as caught:
            _native.declare(Older(), "some.so")
        self.assertIn("sft_build_info", str(caught.exception))


if __name__ == "__main__":
    unittest.main()
