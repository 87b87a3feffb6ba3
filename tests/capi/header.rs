//! `include/sft.h` is what the sources say, and compiles everywhere.

use crate::toolchain::{cc, check, cxx, root, stdout};
use std::process::Command;

/// The header as the sources have it now.
fn generate() -> String {
    let mut config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    config.after_includes = Some(format!(
        "\n#include <stdbool.h>\n#include <stddef.h>\n#include <stdint.h>\n\n\
         /** The version of the library that this header belongs to. */\n\
         #define SFT_VERSION \"{}\"\n\
         #define SFT_VERSION_MAJOR {}\n\
         #define SFT_VERSION_MINOR {}\n\
         #define SFT_VERSION_PATCH {}",
        env!("CARGO_PKG_VERSION"),
        env!("CARGO_PKG_VERSION_MAJOR"),
        env!("CARGO_PKG_VERSION_MINOR"),
        env!("CARGO_PKG_VERSION_PATCH"),
    ));
    // The order of the header's functions.
    let files = [
        "version",
        "status",
        "string",
        "callback",
        "canceller",
        "config",
        "report",
        "plan",
        "session",
        "evaluation",
    ];
    let mut builder = cbindgen::Builder::new().with_config(config);
    for file in files {
        builder = builder.with_src(root().join("src/capi").join(file).with_extension("rs"));
    }
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn the_committed_header_is_what_the_sources_say() {
    let path = root().join("include/sft.h");
    let generated = generate();
    if std::env::var_os("SFT_WRITE_HEADER").is_some() {
        std::fs::write(&path, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == generated,
        "include/sft.h is not what src/capi says: run scripts/gen-header"
    );
}

#[test]
fn the_header_compiles_as_c_and_cpp_in_two_units_of_one_program() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let version = "#include <sft.h>\n#include <sft.h>\n\
                   int major(void);\n\
                   int major(void) { return SFT_VERSION_MAJOR + (int)sizeof(sft_step_report) * 0; }\n";
    std::fs::write(at("unit.c"), version).unwrap();
    std::fs::write(
        at("unit.cpp"),
        format!("extern \"C\" {{ int major(void); }}\n{version}"),
    )
    .unwrap();
    let main = "#include <sft.h>\nMAJOR\n\
                int main(void) { sft_status ok = SFT_OK; return ok == major() ? 0 : 1; }\n";
    let c = main.replace("MAJOR", "int major(void);");
    let cpp = main.replace("MAJOR", "extern \"C\" int major(void);");
    std::fs::write(at("main.c"), c).unwrap();
    std::fs::write(at("main.cpp"), cpp).unwrap();
    for (compiler, suffix) in [(cc as fn() -> Command, "c"), (cxx, "cpp")] {
        for unit in ["unit", "main"] {
            let source = at(&format!("{unit}.{suffix}"));
            let object = at(&format!("{unit}.{suffix}.o"));
            check(compiler().arg("-c").arg(source).arg("-o").arg(object));
        }
    }
    for (a, b) in [("c", "c"), ("cpp", "cpp"), ("cpp", "c")] {
        let program = at(&format!("{a}-{b}"));
        let (unit, main) = (at(&format!("unit.{a}.o")), at(&format!("main.{b}.o")));
        check(cxx().arg(unit).arg(main).arg("-o").arg(&program));
        // 0.x: the major version is SFT_OK's number.
        stdout(&mut Command::new(program));
    }
}

/// The declarations of the header, each as `name` and its C parameters.
pub fn functions() -> Vec<(String, Vec<String>)> {
    let header = std::fs::read_to_string(root().join("include/sft.h")).unwrap();
    let mut code = String::new();
    let mut rest = header.as_str();
    while let Some(start) = rest.find("/*") {
        code.push_str(&rest[..start]);
        rest = &rest[start + rest[start..].find("*/").unwrap() + 2..];
    }
    code.push_str(rest);
    let lines: Vec<&str> = code
        .lines()
        .filter(|l| !l.starts_with('#') && !l.contains("extern \"C\""))
        .collect();
    let mut functions = Vec::new();
    for statement in lines.join(" ").split(';') {
        let statement = statement.split_whitespace().collect::<Vec<_>>().join(" ");
        let declares = !statement.contains("typedef") && !statement.contains('{');
        if let (true, Some((head, parameters))) = (declares, statement.split_once('(')) {
            let name = head.rsplit([' ', '*']).next().unwrap();
            let parameters = parameters.trim_end_matches(')').split(',');
            let parameters = parameters.map(|p| p.trim().to_owned());
            functions.push((
                name.to_owned(),
                parameters.filter(|p| p != "void").collect(),
            ));
        }
    }
    functions
}

#[test]
fn every_function_field_and_constant_is_explained() {
    let header = std::fs::read_to_string(root().join("include/sft.h")).unwrap();
    let lines: Vec<&str> = header.lines().map(str::trim).collect();
    let mut explained = 0;
    for (i, line) in lines.iter().enumerate().skip(1) {
        let declaration = line.ends_with(';') && !line.starts_with('}') && !line.starts_with('*');
        let constant = line.starts_with("#define SFT_") && line.split(' ').count() > 2;
        let start = line.contains('(') || !line.ends_with(");");
        let versions = ["MAJOR", "MINOR", "PATCH"].iter().any(|v| line.contains(v));
        if (declaration || constant) && start && !versions {
            assert!(lines[i - 1].ends_with("*/"), "not explained: {line}");
            explained += 1;
        }
    }
    assert!(explained > 80, "only {explained} declarations seen");
    for word in ["[`", "Option", "&mut", "# Safety", "usize"] {
        assert!(!header.contains(word), "{word:?} is no C");
    }
}
