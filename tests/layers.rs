//! The import law: every file stands on a floor and imports only lower floors, or its own module.

use std::path::{Path, PathBuf};

/// The floors from the ground up. `lib.rs` is the roof.
const FLOORS: [&[&str]; 13] = [
    &["error", "dtype", "rng", "report", "suggest", "number"],
    &["stop", "schedule"],
    &["config"],
    &["io"],
    &["model"],
    &["data"],
    &["ops"],
    &["cuda"],
    &["memory"],
    &["train"],
    &["engine"],
    &["capi"],
    &["bin"],
];

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|modules| modules.contains(&module))
}

fn rust_files(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => rust_files(&path, files),
            false if path.extension().is_some_and(|e| e == "rs") => files.push(path),
            false => {}
        }
    }
}

/// Modules named in `use crate::…` lines and in `crate::…` paths, with their line numbers. What the
/// roof re-exports counts as the module that defines it.
fn imports(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for (at, prefix) in code.match_indices("crate::") {
            let rest = &code[at + prefix.len()..];
            let names: Vec<&str> = match rest.strip_prefix('{') {
                Some(group) => group.trim_end_matches(['}', ';']).split(',').collect(),
                None => vec![rest],
            };
            for name in names {
                let end = |c: char| !c.is_alphanumeric() && c != '_';
                let name = name.trim().split(end).next().unwrap_or_default();
                let module = match name {
                    "Error" | "ErrorKind" | "Result" => "error",
                    other => other,
                };
                found.push((number + 1, module.to_owned()));
            }
        }
    }
    found
}

#[test]
fn imports_point_down() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&source, &mut files);
    let (mut checked, mut upward) = (0, Vec::new());
    for path in &files {
        let relative = path.strip_prefix(&source).unwrap();
        let first = relative
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap();
        let module = first.trim_end_matches(".rs");
        if module == "lib" {
            continue;
        }
        let own = floor(module).unwrap_or_else(|| panic!("{relative:?} stands on no floor"));
        for (line, import) in imports(&std::fs::read_to_string(path).unwrap()) {
            if import == module {
                continue;
            }
            checked += 1;
            match floor(&import) {
                Some(floor) if floor < own => {}
                // Within the binary, `crate` is the binary.
                _ if module == "bin" => {}
                _ => upward.push(format!(
                    "{}:{line}: {module} imports {import}",
                    relative.display()
                )),
            }
        }
    }
    assert!(checked > 50, "only {checked} imports were found");
    assert!(upward.is_empty(), "\n{}", upward.join("\n"));
}

#[test]
fn the_scan_sees_every_form_of_an_import() {
    let text = "use crate::{Error, Result};\nuse crate::ops::Region; // crate::engine\nfn f(x: crate::capi::X) {}";
    let modules: Vec<String> = imports(text).into_iter().map(|(_, m)| m).collect();
    assert_eq!(modules, ["error", "error", "ops", "capi"]);
}

/// What has not run on a GPU is said, kernel file by kernel file.
#[test]
fn the_readme_of_the_kernels_names_every_file() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    let readme = std::fs::read_to_string(folder.join("README.md")).unwrap();
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `"));
    let mut named: Vec<String> = rows
        .filter_map(|row| Some(row.split_once('`')?.0.to_owned()))
        .collect();
    let mut files: Vec<String> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.ends_with(".cu"))
        .collect();
    named.sort();
    files.sort();
    assert_eq!(named, files);
}
