//! Wrong arguments in every function: never a crash, always an error. The program is generated from
//! the header, so that a new function is in it at once.

use crate::header::functions;
use crate::toolchain::{BOTH, program, rows, test_source, tiny_model};
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

/// The wrong values of a parameter, and whether each must by itself be refused.
struct Wrong {
    value: &'static str,
    refused: bool,
}

fn wrong(parameter: &str) -> Vec<Wrong> {
    let refused = |value| Wrong {
        value,
        refused: true,
    };
    let harmless = |value| Wrong {
        value,
        refused: false,
    };
    let kind = parameter
        .rsplit_once([' ', '*'])
        .map_or(parameter, |(kind, _)| kind)
        .trim_start_matches("const ")
        .trim_start_matches("struct ")
        .replace([' ', '*'], "");
    let pointers = parameter.matches('*').count();
    match (kind.as_str(), pointers) {
        ("sft_config", 1) => handles(["freed_config", "session", "canceller"]),
        ("sft_session", 1) => handles(["freed_session", "config", "canceller"]),
        // No canceller is a wish that can be granted.
        ("sft_canceller", 1) => handles(["freed_canceller", "session", "config"])
            .into_iter()
            .map(|w| Wrong {
                refused: w.value != "NULL",
                ..w
            })
            .collect(),
        ("char", 1) if parameter.starts_with("const") => {
            vec![refused("NULL"), refused("\"\\xff\\xfe\"")]
        }
        ("char", 1) => vec![
            harmless("NULL"),
            harmless("(char *)freed_string"),
            harmless("(char *)&word"),
        ],
        ("char" | "sft_session", 2) => vec![refused("NULL"), refused("(void *)1")],
        ("sft_step_report" | "sft_eval_report", 1) => {
            vec![
                harmless("NULL"),
                refused("(void *)no_size"),
                refused("(void *)1"),
            ]
        }
        ("sft_snapshot" | "sft_memory_plan", 1) => {
            vec![
                refused("NULL"),
                refused("(void *)no_size"),
                refused("(void *)1"),
            ]
        }
        ("sft_batch", 1) => vec![
            refused("NULL"),
            refused("(void *)no_size"),
            refused("(void *)1"),
        ],
        // The length that goes with a pointer: more than there can be, or the least for the pointer to be read.
        ("size_t", 0) => vec![harmless("1"), harmless("SIZE_MAX")],
        ("int32_t", 0) => vec![
            harmless("-1"),
            harmless("77"),
            harmless("INT32_MIN"),
            harmless("INT32_MAX"),
        ],
        ("int64_t", 0) => vec![harmless("INT64_MIN")],
        ("double", 0) => vec![harmless("NAN"), harmless("INFINITY")],
        ("void", 1)
        | ("sft_progress_fn" | "sft_checkpoint_fn" | "sft_log_fn" | "sft_drop_fn", 0) => {
            vec![harmless("NULL")]
        }
        _ => panic!("this test has no wrong value for a parameter `{parameter}`"),
    }
}

fn handles(others: [&'static str; 3]) -> Vec<Wrong> {
    ["NULL", "&word", "1", "~(uintptr_t)0"]
        .into_iter()
        .chain(others)
        .map(|value| Wrong {
            value,
            refused: true,
        })
        .collect()
}

/// The calls of one function with every combination of wrong values, the first being `first` if given.
fn calls(body: &mut String, name: &str, parameters: &[String], live_handle: Option<&str>) {
    let sets: Vec<Vec<Wrong>> = parameters.iter().map(|p| wrong(p)).collect();
    let mut index = vec![0; sets.len()];
    loop {
        let mut arguments = Vec::new();
        let mut must_refuse = false;
        for (i, set) in sets.iter().enumerate() {
            let wrong = &set[index[i]];
            let pointer = parameters[i].contains('*') && !parameters[i].contains("char");
            match live_handle {
                Some(live) if i == 0 => arguments.push(live.to_owned()),
                _ if pointer => {
                    let kind = parameters[i].rsplit_once('*').unwrap().0;
                    must_refuse |= wrong.refused;
                    arguments.push(format!("({kind}*)(uintptr_t)({})", wrong.value));
                }
                _ => {
                    must_refuse |= wrong.refused;
                    arguments.push(wrong.value.to_owned());
                }
            }
        }
        let call = format!("{name}({})", arguments.join(", "));
        let handle_first = parameters[0].contains('*') && parameters[0].contains("sft_");
        match name {
            "sft_canceller_cancel" | "sft_string_free" => writeln!(body, "{call};"),
            "sft_should_stop" => writeln!(body, "EXPECT({call});"),
            "sft_stop_reason" => writeln!(body, "EXPECT({call} == SFT_STOP_NONE);"),
            "sft_status_name" | "sft_stop_reason_name" => {
                writeln!(body, "EXPECT(!strcmp({call}, \"unknown\"));")
            }
            _ if name.ends_with("_free") => writeln!(body, "{call};"),
            _ if name.ends_with("last_error") => writeln!(body, "EXPECT(strlen({call}) > 10);"),
            _ if name.ends_with("last_error_copy") => writeln!(body, "COPIED({call});"),
            _ if handle_first && live_handle.is_none() => {
                writeln!(body, "REFUSED_AT_ONCE({call});")
            }
            _ if handle_first && must_refuse => writeln!(body, "REFUSED({call});"),
            _ => writeln!(body, "SURVIVED({call});"),
        }
        .unwrap();
        // The next combination; a live handle stays.
        let skip = usize::from(live_handle.is_some());
        let Some(at) = (skip..sets.len()).find(|&i| {
            index[i] += 1;
            if index[i] == sets[i].len() {
                index[i] = 0;
            }
            index[i] != 0
        }) else {
            return;
        };
        debug_assert!(at < sets.len());
    }
}

#[test]
fn no_wrong_argument_of_any_function_crashes() {
    let mut body = String::new();
    for (name, parameters) in functions() {
        if parameters.is_empty() {
            continue;
        }
        calls(&mut body, &name, &parameters, None);
        let of = |kind: &str| parameters[0].replace("const ", "").starts_with(kind);
        let looks = ["sft_should_stop", "sft_stop_reason"].contains(&name.as_str());
        if !name.ends_with("_free") && !name.ends_with("_last_error") && !looks {
            if of("struct sft_config ") {
                calls(&mut body, &name, &parameters, Some("config"));
            } else if of("struct sft_session ") {
                calls(&mut body, &name, &parameters, Some("session"));
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let frame = std::fs::read_to_string(test_source("misuse.c.in")).unwrap();
    // Kept: scripts/sanitize runs it too.
    let source = Path::new(env!("CARGO_TARGET_TMPDIR")).join("misuse.c");
    std::fs::write(&source, frame.replace("@CALLS@", &body)).unwrap();
    for library in BOTH {
        let program = program(&source, library, folder.path());
        let output = Command::new(program)
            .arg(tiny_model())
            .arg(rows(folder.path(), 8))
            .arg(folder.path().join(format!("out-{library:?}")))
            .current_dir(folder.path())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", output.status);
        assert_eq!(said, "");
        let said = String::from_utf8_lossy(&output.stdout);
        let made: usize = said.trim().parse().unwrap();
        // Six rounds: alone, elsewhere, two at once, inside, and elsewhere meanwhile.
        assert!(made > 6 * 500, "only {made} calls were made");
    }
}
