//! The kernels as the library carries them: always their sources, for NVRTC to compile where the
//! library runs, and when nvcc is at hand their machine code.
//!
//! | variable | meaning |
//! |---|---|
//! | `SFT_NVCC` | the compiler to use; `none` embeds sources only |
//! | `SFT_CUDA_ARCHS` | what to compile for, such as `80 90a ptx80`; all of [`ARCHITECTURES`] if unset |
//! | `CUDA_HOME`, `CUDA_PATH`, `PATH` | where nvcc is looked for, then `target/nvcc` (`scripts/get-nvcc`) |
//!
//! Six architectures take minutes, so a debug build, which the tests are, embeds sources only unless
//! `SFT_CUDA_ARCHS` is set. Compiled kernels are kept under a hash of all that they are made from: an
//! unchanged kernel is not compiled again.

use std::collections::{HashSet, VecDeque};
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// One for each generation of NVIDIA's that can run the kernels, and for those to come the
/// portable form, which the driver compiles as it loads it.
const ARCHITECTURES: &str = "80 86 89 90a 100 120 ptx80";

const FLAGS: [&str; 3] = ["-std=c++17", "-O3", "-fatbin"];

/// Writes `OUT_DIR/kernels.rs`.
pub fn embed() {
    for variable in ["SFT_NVCC", "SFT_CUDA_ARCHS", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    println!("cargo::rerun-if-changed=kernels");

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let kernels = sources();
    let mut table = String::from("pub const SOURCES: &[(&str, &str)] = &[\n");
    for Kernel { op, source } in &kernels {
        writeln!(table, "    ({op:?}, {source:?}),").unwrap();
    }
    table.push_str("];\n\npub const COMPILED: &[(&str, &str, &[u8])] = &[\n");
    for (op, architecture, path) in compile(&kernels, &out) {
        writeln!(
            table,
            "    ({op:?}, {architecture:?}, aligned!({:?})),",
            path.display().to_string()
        )
        .unwrap();
    }
    table.push_str("];\n");
    fs::write(out.join("kernels.rs"), table).expect("OUT_DIR can be written");
}

struct Kernel {
    op: String,
    /// With the headers of the folder in place of the lines that include them.
    source: String,
}

fn sources() -> Vec<Kernel> {
    let entries = fs::read_dir("kernels").expect("the folder kernels/ can be read");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    paths.sort();
    let kernel = |path: PathBuf| {
        let mut source = String::new();
        expand(&path, &mut HashSet::new(), &mut source);
        Kernel {
            op: path.file_stem().unwrap().to_str().unwrap().to_owned(),
            source,
        }
    };
    paths.into_iter().map(kernel).collect()
}

/// Appends a file, and before what follows their lines the headers that it includes and that were
/// not included yet. Messages of a compiler keep file and line.
fn expand(path: &Path, included: &mut HashSet<PathBuf>, to: &mut String) {
    let name = path.file_name().unwrap().to_str().unwrap();
    writeln!(to, "#line 1 \"{name}\"").unwrap();
    for (index, line) in read(path).lines().enumerate() {
        let header = line
            .strip_prefix("#include \"")
            .and_then(|rest| rest.strip_suffix('"'))
            .filter(|header| header.ends_with(".cuh"));
        if let Some(header) = header {
            let header = path.with_file_name(header);
            if included.insert(header.clone()) {
                expand(&header, included, to);
            }
            writeln!(to, "#line {} \"{name}\"", index + 2).unwrap();
        } else if line != "#pragma once" {
            writeln!(to, "{line}").unwrap();
        } else {
            writeln!(to).unwrap();
        }
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Operation, architecture and file of everything that was compiled.
fn compile(kernels: &[Kernel], out: &Path) -> Vec<(String, String, PathBuf)> {
    let asked = env::var("SFT_CUDA_ARCHS").ok();
    let release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    if asked.is_none() && !release {
        return Vec::new();
    }
    let Some(nvcc) = find_nvcc() else {
        if env::var("SFT_NVCC").is_ok_and(|nvcc| nvcc == "none") {
            return Vec::new();
        }
        let need = "no nvcc found (CUDA_HOME, CUDA_PATH, PATH, scripts/get-nvcc)";
        assert!(
            asked.is_none(),
            "{need}, but SFT_CUDA_ARCHS asks for kernels"
        );
        println!("cargo::warning={need}: kernels will be compiled where they run, by NVRTC");
        return Vec::new();
    };
    let version = output_of(Command::new(&nvcc).arg("--version"));
    let known = output_of(Command::new(&nvcc).arg("--list-gpu-arch"));
    let mut architectures = Vec::new();
    for name in asked
        .as_deref()
        .unwrap_or(ARCHITECTURES)
        .split([' ', ',', ';'])
        .filter(|name| !name.is_empty())
    {
        let digits = name.strip_prefix("ptx").unwrap_or(name);
        let number = digits.trim_end_matches('a');
        assert!(
            number.parse::<u32>().is_ok_and(|number| number >= 80),
            "SFT_CUDA_ARCHS: `{name}` is not an architecture such as 80, 90a or ptx80"
        );
        if known
            .lines()
            .any(|line| line == format!("compute_{number}"))
        {
            architectures.push(name);
        } else {
            assert!(
                asked.is_none(),
                "{} cannot compile for {name}",
                nvcc.display()
            );
            println!(
                "cargo::warning={} cannot compile for {name}",
                nvcc.display()
            );
        }
    }

    // Seven times smaller. The option came with the compiler that knew this architecture first.
    let mut flags = FLAGS.to_vec();
    if known.lines().any(|line| line == "compute_120") {
        flags.push("-compress-mode=size");
    }

    // Beside the folder `build` of the profile, so that a change of features keeps it.
    let cache = out.ancestors().nth(3).unwrap_or(out).join("sft-kernels");
    fs::create_dir_all(&cache).expect("the target folder can be written");
    let mut jobs = VecDeque::new();
    let mut compiled = Vec::new();
    for kernel in kernels {
        for &architecture in &architectures {
            let mut hash = DefaultHasher::new();
            (&kernel.source, architecture, &flags, &version).hash(&mut hash);
            let name = format!("{}-{architecture}-{:016x}.fatbin", kernel.op, hash.finish());
            let path = cache.join(name);
            if !path.exists() {
                jobs.push_back((kernel, architecture, path.clone()));
            }
            compiled.push((kernel.op.clone(), architecture.to_owned(), path));
        }
    }
    // Those of the longest sources first, so that no long one is left for the end.
    jobs.make_contiguous()
        .sort_by_key(|(kernel, _, _)| std::cmp::Reverse(kernel.source.len()));
    let workers = env::var("NUM_JOBS").ok().and_then(|jobs| jobs.parse().ok());
    let jobs = Mutex::new(jobs);
    let next = || jobs.lock().unwrap().pop_front();
    std::thread::scope(|scope| {
        for _ in 0..workers.unwrap_or(1) {
            scope.spawn(|| {
                while let Some((kernel, architecture, path)) = next() {
                    compile_one(&nvcc, &flags, kernel, architecture, &path);
                }
            });
        }
    });
    compiled
}

fn compile_one(nvcc: &Path, flags: &[&str], kernel: &Kernel, architecture: &str, to: &Path) {
    let (virtual_, real) = match architecture.strip_prefix("ptx") {
        Some(number) => (number, format!("compute_{number}")),
        None => (architecture, format!("sm_{architecture}")),
    };
    let unfinished = to.with_extension(format!("{}.tmp", std::process::id()));
    let source = unfinished.with_extension("cu");
    fs::write(&source, &kernel.source).expect("the target folder can be written");
    output_of(
        Command::new(nvcc)
            .args(flags)
            .arg(format!("-gencode=arch=compute_{virtual_},code={real}"))
            .arg("-o")
            .args([&unfinished, &source]),
    );
    let _ = fs::remove_file(&source);
    fs::rename(&unfinished, to).expect("the target folder can be written");
}

fn find_nvcc() -> Option<PathBuf> {
    if let Some(nvcc) = env::var_os("SFT_NVCC") {
        let nvcc = PathBuf::from(nvcc);
        if nvcc.as_os_str() == "none" {
            return None;
        }
        assert!(
            nvcc.is_file(),
            "SFT_NVCC: there is no {} (`none` for building without)",
            nvcc.display()
        );
        return Some(nvcc);
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(env::var_os);
    let mut folders: Vec<PathBuf> = homes.map(|home| PathBuf::from(home).join("bin")).collect();
    folders.extend(env::split_paths(&env::var_os("PATH").unwrap_or_default()));
    folders.push(Path::new(&env::var_os("CARGO_MANIFEST_DIR")?).join("target/nvcc/cuda/bin"));
    let nvcc = format!("nvcc{}", env::consts::EXE_SUFFIX);
    folders
        .into_iter()
        .map(|folder| folder.join(&nvcc))
        .find(|nvcc| nvcc.is_file())
}

/// What a command prints; the build fails with it where the command does.
fn output_of(command: &mut Command) -> String {
    let shown = format!("{command:?}");
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{shown}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{shown} failed (SFT_NVCC=none builds without nvcc):\n{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}
