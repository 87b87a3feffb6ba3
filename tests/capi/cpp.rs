//! The C++ header compiles wherever it says it does. What it does is tested by bindings/cpp/run-scenarios.

use crate::toolchain::{Library, check, compiler, link, root, stdout, tiny_model};
use std::process::Command;

const STANDARDS: [&str; 2] = ["-std=c++17", "-std=c++20"];

fn cxx(standard: &str) -> Command {
    let mut command = compiler("CXX", "c++", standard);
    command.arg("-I").arg(root().join("bindings/cpp/include"));
    command
}

#[test]
fn the_cpp_header_compiles_with_exceptions_and_without_in_two_units_of_one_program() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let include = "#include <sft/sft.hpp>\n#include <sft/sft.hpp>\n";
    let one = "int other(); int main() { return sft::abi_matches() ? other() : 1; }\n";
    let two =
        "int other() { sft::Config config; return !config.try_set(\"max_steps\", 1).ok(); }\n";
    std::fs::write(at("one.cpp"), format!("{include}{one}")).unwrap();
    std::fs::write(at("two.cpp"), format!("{include}{two}")).unwrap();
    for standard in STANDARDS {
        for exceptions in ["-fexceptions", "-fno-exceptions"] {
            let mut command = cxx(standard);
            command
                .arg(exceptions)
                .args([at("one.cpp"), at("two.cpp")])
                .arg("-o")
                .arg(at("program"));
            link(&mut command, Library::Shared);
            check(&mut command);
            check(&mut Command::new(at("program")));
        }
    }
}

#[test]
fn an_exception_of_a_callback_reaches_the_host_from_both_libraries() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("host.cpp");
    std::fs::write(
        &source,
        r#"#include <sft/sft.hpp>
           #include <cstdio>
           int main(int, char **arguments) {
               sft::Config config;
               config.set("model_name_or_path", arguments[1]).set("output_dir", arguments[2]);
               config.set("max_steps", 3).set("save_strategy", "no");
               config.on_progress([](const sft::StepReport &) { throw 7; });
               sft::Session session = config.start();
               const std::vector<std::int32_t> tokens{5, 6, 7};
               try {
                   session.step_batch({{tokens, {}, {}}});
               } catch (int thrown) {
                   std::printf("%d %s\n", thrown, sft::name(session.stop_reason()));
               }
           }"#,
    )
    .unwrap();
    for library in [Library::Shared, Library::Static] {
        let program = folder.path().join(format!("host-{library:?}"));
        let mut command = cxx("-std=c++17");
        command.arg(&source).arg("-o").arg(&program);
        link(&mut command, library);
        check(&mut command);
        let out = folder.path().join(format!("{library:?}"));
        let said = stdout(Command::new(program).arg(tiny_model()).arg(out));
        assert_eq!(said, "7 callback\n");
    }
}
