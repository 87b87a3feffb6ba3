//! C programs that use the library as a host would, against libsft.so and libsft.a.

use crate::toolchain::*;
use std::path::Path;
use std::process::Command;

fn run(source: &Path, rows_needed: bool, more: &[&str]) -> Vec<String> {
    BOTH.map(|library| {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(program(source, library, folder.path()));
        command.arg(tiny_model());
        if rows_needed {
            command.arg(rows(folder.path(), 8));
        }
        command.arg(folder.path().join("out")).args(more);
        let output = check(&mut command);
        let said = String::from_utf8(output.stdout).unwrap();
        if source.ends_with("train.c") {
            let model = folder.path().join("out/final");
            sft::model::ModelSpec::from_dir(&model).unwrap();
            assert!(model.join("model.safetensors").is_file());
        } else {
            // Only that example prints its log there: the library itself never does.
            assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        }
        said
    })
    .into()
}

#[test]
fn the_train_example_stops_at_its_target_and_saves_the_model() {
    for said in run(&example("train.c"), true, &["5.0", "200"]) {
        assert!(said.contains("stopped: target_reached\n"), "{said}");
    }
}

#[test]
fn the_feed_tokens_example_stops_by_the_metric_of_the_host() {
    let said = run(&example("feed_tokens.c"), false, &[]);
    for said in &said {
        assert!(said.contains("stopped: target_reached\n"), "{said}");
        assert!(said.contains("over 24 tokens"), "{said}");
    }
    assert_eq!(said[0], said[1], "the two libraries train to the same bits");
}

#[test]
fn the_cancel_example_is_stopped_by_its_other_thread() {
    for said in run(&example("cancel.c"), true, &[]) {
        assert!(said.contains("step 3 "), "{said}");
        assert!(said.ends_with("stopped: cancelled\n"), "{said}");
    }
}

#[test]
fn the_promises_of_the_header_hold() {
    run(&test_source("promises.c"), true, &[]);
}

#[test]
fn two_hundred_runs_leave_no_memory_behind() {
    run(&test_source("lifecycle.c"), true, &["200", "8192"]);
}

#[test]
fn valgrind_finds_nothing_in_a_life_of_all_handles() {
    let Ok(valgrind) = Command::new("valgrind").arg("--version").output() else {
        return; // not installed
    };
    assert!(valgrind.status.success());
    let folder = tempfile::tempdir().unwrap();
    let program = program(&test_source("lifecycle.c"), Library::Shared, folder.path());
    check(
        Command::new("valgrind")
            .args(["--quiet", "--error-exitcode=9", "--leak-check=full"])
            .args([
                "--errors-for-leak-kinds=definite",
                "--show-leak-kinds=definite",
            ])
            .arg(program)
            .arg(tiny_model())
            .arg(rows(folder.path(), 2))
            .arg(folder.path().join("out"))
            .args(["2", "1000000"]),
    );
}

/// The code block of bindings/c/README.md that holds a whole program.
fn readme_host() -> String {
    let readme = std::fs::read_to_string(root().join("bindings/c/README.md")).unwrap();
    let block = readme.split("```c\n").nth(1).expect("a C program");
    block.split("```").next().unwrap().to_owned()
}

#[test]
fn the_smallest_host_of_the_readme_works_and_is_small() {
    let host = readme_host();
    assert!(host.lines().count() <= 30);
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("host.c");
    std::fs::write(&source, host).unwrap();
    let rows = rows(folder.path(), 8);
    std::fs::rename(rows, folder.path().join("rows.jsonl")).unwrap();
    std::os::unix::fs::symlink(tiny_model(), folder.path().join("model")).unwrap();
    for library in BOTH {
        let program = program(&source, library, folder.path());
        let said = stdout(Command::new(program).current_dir(folder.path()));
        assert!(said.contains("max_steps"), "{said}");
        assert!(folder.path().join("tuned/model.safetensors").is_file());
        std::fs::remove_dir_all(folder.path().join("tuned")).unwrap();
    }
}

#[test]
fn the_makefile_builds_the_examples_and_installs() {
    let Ok(make) = Command::new("make").arg("--version").output() else {
        return; // not installed
    };
    assert!(make.status.success());
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let make = |target: &str, link: &str| {
        check(
            Command::new("make")
                .arg("-C")
                .arg(root().join("bindings/c"))
                .arg(target)
                .arg(format!("LINK={link}"))
                .arg(format!("LIBRARIES={}", library_folder().display()))
                .arg(format!("BUILD={}", at(link).display()))
                .arg("CFLAGS=-Wall -Wextra -Werror")
                .arg(format!("LDLIBS={}", EMULATOR_LIBRARIES.join(" ")))
                .arg(format!("PREFIX={}", at("prefix").display())),
        );
    };
    for link in ["shared", "static"] {
        make("all", link);
        for example in ["train", "feed_tokens", "cancel"] {
            let output = Command::new(at(link).join(example)).output().unwrap();
            assert_eq!(output.status.code(), Some(2), "the usage of {example}");
        }
    }
    make("install", "shared");
    let major = env!("CARGO_PKG_VERSION_MAJOR");
    for file in [
        "include/sft.h",
        "include/sft/sft.hpp",
        "lib/libsft.so",
        &format!("lib/libsft.so.{major}"),
        concat!("lib/libsft.so.", env!("CARGO_PKG_VERSION")),
        "lib/libsft.a",
        "lib/cmake/sft/sftConfig.cmake",
        "lib/cmake/sft/sftConfigVersion.cmake",
    ] {
        assert!(at("prefix").join(file).is_file(), "{file}");
    }
    let cmake = at("prefix/lib/cmake/sft/sftConfig.cmake");
    let cmake = std::fs::read_to_string(cmake).unwrap();
    assert!(!cmake.contains('@'), "{cmake}");
    let pc = std::fs::read_to_string(at("prefix/lib/pkgconfig/sft.pc")).unwrap();
    assert!(pc.contains(concat!("Version: ", env!("CARGO_PKG_VERSION"), "\n")));
    assert!(!pc.contains('@'), "{pc}");
}
