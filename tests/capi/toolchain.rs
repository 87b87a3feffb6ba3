//! Compiling C against the libraries that this very build has made.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Which of the two libraries a program is linked with.
#[derive(Clone, Copy, Debug)]
pub enum Library {
    Shared,
    Static,
}

pub const BOTH: [Library; 2] = [Library::Shared, Library::Static];

/// What a static link needs beside the archive.
pub const STATIC_LIBRARIES: [&str; 4] = ["-lpthread", "-ldl", "-lm", "-lgcc_s"];

/// And what else: the emulated kernels, which only tests have, are C++.
pub const EMULATOR_LIBRARIES: &[&str] = if cfg!(feature = "emulate") {
    &["-lstdc++"]
} else {
    &[]
};

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where cargo has put libsft.so and libsft.a of the profile under test: beside the test itself.
pub fn library_folder() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let folder = test.parent().unwrap().to_path_buf();
    for name in ["libsft.so", "libsft.a"] {
        assert!(folder.join(name).is_file(), "no {name} in {folder:?}");
    }
    folder
}

/// The C compiler with strict warnings.
pub fn cc() -> Command {
    compiler("CC", "cc", "-std=c11")
}

/// The C++ compiler with strict warnings.
pub fn cxx() -> Command {
    compiler("CXX", "c++", "-std=c++17")
}

/// The compiler that `variable` names, else `default`, with strict warnings.
pub fn compiler(variable: &str, default: &str, standard: &str) -> Command {
    let name = std::env::var(variable).unwrap_or_else(|_| default.to_owned());
    let mut command = Command::new(name);
    command
        .args([standard, "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-g"])
        .arg("-I")
        .arg(root().join("include"));
    command
}

/// Runs `command`, which must succeed; what it said otherwise is the failure's message.
pub fn check(command: &mut Command) -> Output {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// What a command wrote to standard output.
pub fn stdout(command: &mut Command) -> String {
    String::from_utf8(check(command).stdout).unwrap()
}

/// A C program, compiled from `source` and linked with `library`; it lies in `folder`.
pub fn program(source: &Path, library: Library, folder: &Path) -> PathBuf {
    let name = source.file_stem().unwrap().to_str().unwrap();
    let program = folder.join(format!("{name}-{library:?}"));
    let mut command = cc();
    command.arg(source).arg("-o").arg(&program);
    link(&mut command, library);
    check(&mut command);
    program
}

/// Adds what links with `library`.
pub fn link(command: &mut Command, library: Library) {
    let libraries = library_folder();
    match library {
        Library::Shared => command
            .arg(format!("-L{}", libraries.display()))
            .arg(format!("-Wl,-rpath,{}", libraries.display()))
            .args(["-lsft", "-lpthread", "-lm"]),
        Library::Static => command
            .arg(libraries.join("libsft.a"))
            .args(STATIC_LIBRARIES)
            .args(EMULATOR_LIBRARIES),
    };
}

pub fn example(name: &str) -> PathBuf {
    root().join("bindings/c/examples").join(name)
}

pub fn test_source(name: &str) -> PathBuf {
    root().join("tests/capi").join(name)
}

pub fn tiny_model() -> PathBuf {
    root().join("tests/fixtures/models/llama-tiny")
}

/// A few real rows as prompt and completion, in `folder`.
pub fn rows(folder: &Path, count: usize) -> PathBuf {
    let source = root().join("tests/fixtures/data/gsm8k_train_small.jsonl");
    let source = std::fs::read_to_string(source).unwrap();
    let mut text = String::new();
    for line in source.lines().take(count) {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let row = serde_json::json!({"prompt": row["question"], "completion": row["answer"]});
        text.push_str(&row.to_string());
        text.push('\n');
    }
    let path = folder.join("rows.jsonl");
    std::fs::write(&path, text).unwrap();
    path
}
