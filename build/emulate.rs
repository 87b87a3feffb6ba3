//! Compiles the kernels as C++ for the CPU, with the emulator that runs them (`kernels/host/`). Where
//! `SFT_EMULATE_CXX` is `none` it compiles nothing: enough for lints, which link nothing.

use std::path::{Path, PathBuf};
use std::{env, fs, thread};

/// Where the kernels stand, and those that test the emulator itself.
const FOLDERS: [&str; 2] = ["kernels", "kernels/host"];

/// Makes `libsft_emulated.a`, several objects at a time.
pub fn build() {
    println!("cargo::rerun-if-env-changed=SFT_EMULATE_CXX");
    if env::var("SFT_EMULATE_CXX").is_ok_and(|compiler| compiler == "none") {
        return;
    }
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap());
    let mut sources = vec![];
    let mut registrations = String::new();
    for folder in FOLDERS {
        println!("cargo::rerun-if-changed={folder}");
        for path in files(&root.join(folder)) {
            println!("cargo::rerun-if-changed={}", path.display());
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("cpp") => sources.push(path),
                Some("cu") => {
                    let name = path.file_stem().unwrap().to_str().unwrap();
                    sources.push(wrapper(&path, name, &out));
                    registrations += &format!("extern \"C\" void sft_emulated_{name}();\n");
                }
                _ => {}
            }
        }
    }
    sources.push(references(&registrations, &out));

    let objects: Vec<PathBuf> = thread::scope(|scope| {
        let root = &root;
        let workers = env::var("NUM_JOBS").map_or(1, |jobs| jobs.parse().unwrap_or(1));
        let share = sources.len().div_ceil(workers);
        let compilations: Vec<_> = (sources.chunks(share))
            .map(|sources| {
                scope.spawn(move || compiler(root).files(sources).compile_intermediates())
            })
            .collect();
        (compilations.into_iter())
            .flat_map(|compilation| {
                compilation
                    .join()
                    .expect("a kernel does not compile as C++")
            })
            .collect()
    });
    compiler(&root).objects(objects).compile("sft_emulated");
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = (fs::read_dir(folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files
}

/// A C++ file of a kernel file, with a function that the linker can be told to need: the objects
/// stand in an archive, and one that nobody refers to would be left out with its kernels.
fn wrapper(kernel: &Path, name: &str, out: &Path) -> PathBuf {
    let text = format!(
        "#include {:?}\nextern \"C\" void sft_emulated_{name}() {{}}\n",
        kernel.to_str().unwrap()
    );
    write(out.join(format!("emulated_{name}.cpp")), &text)
}

/// The function that refers to all of those.
fn references(registrations: &str, out: &Path) -> PathBuf {
    let calls = registrations.replace("extern \"C\" void ", "    ");
    let text = format!("{registrations}extern \"C\" void sft_emulator_link() {{\n{calls}}}\n");
    write(out.join("emulated.cpp"), &text)
}

/// Leaves a file alone that has this text already, so that it is not newer than its object.
fn write(path: PathBuf, text: &str) -> PathBuf {
    if fs::read_to_string(&path).ok().as_deref() != Some(text) {
        fs::write(&path, text).unwrap();
    }
    path
}

/// Products and sums are not fused, so that the numbers are the same on every host. AVX2 and no more:
/// valgrind, which some tests run under, knows no AVX-512.
fn compiler(root: &Path) -> cc::Build {
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++17")
        .opt_level(2)
        .debug(false)
        .define("SFT_EMULATE", None)
        .include(root.join("kernels"))
        .flag_if_supported(instruction_set())
        .flag_if_supported("-ffp-contract=off")
        .flag_if_supported("-ftls-model=initial-exec")
        .flag_if_supported("-Wno-unknown-pragmas")
        // A kernel file is the wrapper's own, so its unnamed namespaces are as well.
        .flag_if_supported("-Wno-subobject-linkage");
    build
}

/// What the kernels are compiled for: they run where they are built.
fn instruction_set() -> &'static str {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
        return "-march=x86-64-v3";
    }
    "-O2"
}
