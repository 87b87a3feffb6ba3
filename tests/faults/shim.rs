//! The preloaded library: compiling it, telling it what to do, reading what it saw.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The library, compiled once.
pub fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        // Two test processes may compile at once: each has its own name, the rename is atomic.
        let built = folder.join(format!("faults-{}.so", std::process::id()));
        let library = folder.join("faults.so");
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
        let output = Command::new(compiler)
            .args([
                "-std=gnu11",
                "-Wall",
                "-Wextra",
                "-Werror",
                "-O1",
                "-shared",
                "-fPIC",
            ])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/shim.c"))
            .arg("-o")
            .arg(&built)
            .arg("-ldl")
            .output()
            .expect("a C compiler is needed");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        std::fs::rename(built, &library).unwrap();
        library
    })
}

/// What is to happen at the `at`-th operation, as `shim.c` explains it.
#[derive(Clone, Debug)]
pub struct Fault {
    pub at: u64,
    /// An error, `short`, `kill-before`, `kill-middle` or `kill-after`.
    pub what: &'static str,
    /// None: all operations that change something.
    pub ops: Option<String>,
    /// None: all paths of the run.
    pub path: Option<String>,
    /// It happens at all later ones too.
    pub sticky: bool,
}

impl Fault {
    pub fn kill(at: u64, what: &'static str) -> Self {
        Self {
            at,
            what,
            ops: None,
            path: None,
            sticky: false,
        }
    }
}

/// Preloads the library into `command`: paths under `folder` are watched, `trace` is written.
pub fn preload(command: &mut Command, folder: &Path, trace: &Path, fault: Option<&Fault>) {
    command
        .env("LD_PRELOAD", library())
        .env("FAULTS_UNDER", folder)
        .env("FAULTS_TRACE", trace);
    let Some(fault) = fault else { return };
    command
        .env("FAULTS_AT", fault.at.to_string())
        .env("FAULTS_DO", fault.what);
    if let Some(ops) = &fault.ops {
        command.env("FAULTS_OPS", ops);
    }
    if let Some(path) = &fault.path {
        command.env("FAULTS_PATH", path);
    }
    if fault.sticky {
        command.env("FAULTS_STICKY", "1");
    }
}

/// One operation that the library saw, in the order in which they were done.
#[derive(Clone, Debug)]
pub struct Op {
    /// Its number, if it counted.
    pub number: Option<u64>,
    pub name: String,
    /// `ok`, the name of an errno, `injected`, `killed before` or `killed after`.
    pub result: String,
    /// What the call returned.
    pub value: i64,
    pub path: PathBuf,
    /// Where a rename or a link leads.
    pub other: PathBuf,
}

impl Op {
    pub fn is(&self, name: &str) -> bool {
        self.name == name && self.took_effect()
    }

    pub fn took_effect(&self) -> bool {
        self.result == "ok" || self.result == "killed after"
    }
}

/// The operations in the file `trace`; none if it was never made.
pub fn read_trace(trace: &Path) -> Vec<Op> {
    let text = std::fs::read_to_string(trace).unwrap_or_default();
    let op = |line: &str| {
        let mut fields = line.split('\t');
        let mut field = || fields.next().unwrap_or_default();
        Op {
            number: field().parse().ok(),
            name: field().to_owned(),
            result: field().to_owned(),
            value: field().parse().unwrap_or(-1),
            path: field().into(),
            other: field().into(),
        }
    };
    text.lines().map(op).collect()
}
