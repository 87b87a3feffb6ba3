//! What must not change by accident: exported symbols, struct layouts, numbers.

use crate::header::functions;
use crate::toolchain::{Library, library_folder, program, root, stdout};
use std::collections::BTreeSet;
use std::fmt::Write;
use std::process::Command;

#[test]
fn the_shared_library_exports_the_functions_of_the_header_and_nothing_else() {
    let library = library_folder().join("libsft.so");
    let listing = stdout(
        Command::new("nm")
            .args(["-D", "--defined-only"])
            .arg(library),
    );
    let exported: BTreeSet<&str> = listing
        .lines()
        .filter_map(|line| line.split_whitespace().last())
        .collect();
    let functions = functions();
    let declared: BTreeSet<&str> = functions.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(exported, declared);
    let list: Vec<&str> = exported.into_iter().collect();
    insta::with_settings!({snapshot_path => "snapshots", prepend_module_to_snapshot => false}, {
        insta::assert_snapshot!("symbols", list.join("\n"));
    });
}

#[test]
fn every_function_of_the_header_has_a_version_in_the_installed_library() {
    let map = std::fs::read_to_string(root().join("bindings/c/sft.map")).unwrap();
    let mut versioned: Vec<&str> = map
        .lines()
        .filter_map(|line| line.trim().strip_suffix(';'))
        .filter(|name| name.starts_with("sft_"))
        .collect();
    versioned.sort_unstable();
    let functions = functions();
    let mut declared: Vec<&str> = functions.iter().map(|(name, _)| name.as_str()).collect();
    declared.sort_unstable();
    assert_eq!(versioned, declared);
}

/// Programs look for this name when they start, so it changes only where they must be linked anew.
#[test]
#[cfg(target_os = "linux")]
fn programs_ask_for_the_library_by_its_major_version() {
    let soname = concat!("[libsft.so.", env!("CARGO_PKG_VERSION_MAJOR"), "]");
    let library = library_folder().join("libsft.so");
    let said = stdout(Command::new("readelf").arg("-d").arg(library));
    let line = said.lines().find(|line| line.contains("(SONAME)"));
    assert!(line.unwrap().ends_with(soname), "{line:?}");
}

/// Each struct of the header with its fields.
fn structs() -> Vec<(String, Vec<String>)> {
    let header = std::fs::read_to_string(root().join("include/sft.h")).unwrap();
    let mut structs = Vec::new();
    let mut fields = None;
    for line in header.lines() {
        if line.starts_with("typedef struct") && line.ends_with('{') {
            fields = Some(Vec::new());
        } else if let Some(name) = line.strip_prefix("} ") {
            let name = name.trim_end_matches(';').to_owned();
            structs.extend(fields.take().map(|fields| (name, fields)));
        } else if let (Some(fields), Some(field)) = (&mut fields, line.strip_suffix(';')) {
            fields.push(field.rsplit([' ', '*']).next().unwrap().to_owned());
        }
    }
    structs
}

#[test]
#[cfg(target_pointer_width = "64")]
fn structs_and_numbers_are_where_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let mut body = String::new();
    for (name, fields) in structs() {
        writeln!(body, "SIZE({name})").unwrap();
        // Padding would be bytes that nobody has set.
        let sizes = fields.iter().map(|f| format!("sizeof((({name} *)0)->{f})"));
        let sizes = sizes.collect::<Vec<_>>().join(" + ");
        writeln!(
            body,
            "_Static_assert({sizes} == sizeof({name}), \"padding\");"
        )
        .unwrap();
        for field in fields {
            writeln!(body, "FIELD({name}, {field})").unwrap();
        }
    }
    let header = std::fs::read_to_string(root().join("include/sft.h")).unwrap();
    for constant in header
        .lines()
        .filter_map(|l| l.strip_prefix("#define SFT_"))
    {
        match constant.split_once(' ') {
            Some((name, _)) if !name.starts_with("VERSION") => {
                writeln!(body, "NUMBER(SFT_{name})").unwrap();
            }
            _ => {}
        }
    }
    let source = folder.path().join("layout.c");
    let text = format!(
        "#include <sft.h>\n#include <stdio.h>\n\
         #define SIZE(t) printf(\"%s: %zu bytes\\n\", #t, sizeof(t));\n\
         #define FIELD(t, f) printf(\"  %zu %s\\n\", offsetof(t, f), #f);\n\
         #define NUMBER(n) printf(\"%s = %d\\n\", #n, (int)(n));\n\
         int main(void) {{\n{body}return 0;\n}}\n"
    );
    std::fs::write(&source, text).unwrap();
    let program = program(&source, Library::Shared, folder.path());
    insta::with_settings!({snapshot_path => "snapshots", prepend_module_to_snapshot => false}, {
        insta::assert_snapshot!("layout", stdout(&mut Command::new(program)));
    });
}
