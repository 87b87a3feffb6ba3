//! Every crate that the library is built with may be shipped in closed and open programs alike.

use serde_json::Value;
use std::process::Command;

/// Permissive licences without conditions on the host program.
const ALLOWED: [&str; 14] = [
    "MIT",
    "MIT-0",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "CC0-1.0",
    "Unicode-3.0",
    "Unlicense",
    "BSL-1.0",
    "0BSD",
];

/// Tools of the tests: nothing of them is in what is shipped.
const TOOLS: [(&str, &str); 1] = [("cbindgen", "MPL-2.0")];

/// Whether an SPDX expression leaves a choice of allowed licences. `OR` binds weaker than `AND`, and
/// `/` is the old spelling of `OR`.
fn acceptable(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    // Parentheses: the innermost group is replaced by a licence that says whether it is acceptable.
    if let Some(close) = expression.find(')') {
        let open = expression[..close].rfind('(').expect("parentheses match");
        let verdict = if acceptable(&expression[open + 1..close]) {
            "MIT"
        } else {
            "refused"
        };
        let folded = format!(
            "{}{verdict}{}",
            &expression[..open],
            &expression[close + 1..]
        );
        return acceptable(&folded);
    }
    expression
        .split(" OR ")
        .any(|all| all.split(" AND ").all(|one| ALLOWED.contains(&one.trim())))
}

#[test]
fn every_dependency_has_an_allowed_licence() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 50);
    let refused: Vec<String> = packages
        .iter()
        .filter(|package| {
            let name = package["name"].as_str().unwrap();
            let licence = package["license"].as_str().unwrap_or_default();
            !acceptable(licence) && !TOOLS.contains(&(name, licence))
        })
        .map(|package| {
            format!(
                "{} {}: {}",
                package["name"], package["version"], package["license"]
            )
        })
        .collect();
    assert!(refused.is_empty(), "\n{}", refused.join("\n"));
}

#[test]
fn an_expression_is_read_as_spdx_says() {
    assert!(acceptable("MIT OR GPL-3.0"));
    assert!(acceptable("(MIT OR GPL-3.0) AND Unicode-3.0"));
    assert!(acceptable("MIT/Apache-2.0"));
    assert!(!acceptable("MIT AND GPL-3.0"));
    assert!(!acceptable("GPL-3.0-or-later"));
    assert!(!acceptable("(GPL-2.0 OR MPL-2.0) AND MIT"));
}
