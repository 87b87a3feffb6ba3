//! Kernels compiled where they run, by NVIDIA's run-time compiler, and kept on disk.

use std::ffi::CString;
use std::path::PathBuf;

use cudarc::nvrtc::{result, sys};

/// Flags beside the architecture.
const FLAGS: &[&str] = &["--std=c++17"];
const OLDEST: (i32, i32) = (12, 0);

/// Machine code (a cubin, or PTX for a device that the compiler does not know yet) of one source.
pub(super) struct Compiled {
    pub image: Vec<u8>,
    /// Whether it comes from the disk; if it does not load, compile again with `fresh`.
    pub cached: bool,
}

/// Compiles a self-contained source for a device, or finds it on disk.
///
/// # Errors
/// Why it cannot: no compiler, one that is too old, the compiler's messages.
pub(super) fn compile(
    op: &str,
    source: &str,
    capability: (u32, u32),
    fresh: bool,
) -> Result<Compiled, String> {
    let version = version()?;
    let target = target(capability, &architectures()?).ok_or_else(|| {
        format!(
            "NVRTC {}.{} compiles for no architecture that compute capability {}.{} runs",
            version.0, version.1, capability.0, capability.1
        )
    })?;
    let file = cache_folder().map(|folder| folder.join(file_name(op, source, &target, version)));
    if let Some(file) = file.as_ref().filter(|_| !fresh)
        && let Ok(image) = std::fs::read(file)
    {
        return Ok(Compiled {
            image,
            cached: true,
        });
    }
    let image = run(op, source, &target, FLAGS)?;
    if let Some(file) = file {
        // A cache that cannot be written costs time at the next start, nothing else.
        let _ = store(&file, &image);
    }
    Ok(Compiled {
        image,
        cached: false,
    })
}

/// Where compiled kernels are kept, and how long they take: `sft/kernels` in the user's cache folder.
pub(in crate::cuda) fn cache_folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let base = if cfg!(windows) {
        PathBuf::from(set("LOCALAPPDATA")?)
    } else {
        match set("XDG_CACHE_HOME") {
            Some(folder) => PathBuf::from(folder),
            None => PathBuf::from(set("HOME")?).join(".cache"),
        }
    };
    // A relative one would depend on where the program was started.
    base.is_absolute().then(|| base.join("sft").join("kernels"))
}

/// A name that changes with everything that the machine code depends on.
fn file_name(op: &str, source: &str, target: &str, version: (i32, i32)) -> String {
    let mut hash = blake3::Hasher::new();
    for part in [source, target, &FLAGS.join(" ")] {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    let hash = hash.finalize().to_hex();
    format!(
        "{op}-{target}-nvrtc{}.{}-{}.bin",
        version.0,
        version.1,
        &hash[..16]
    )
}

fn store(file: &std::path::Path, image: &[u8]) -> crate::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(|error| crate::Error::io(folder, error))?;
    }
    crate::io::write_file(file, |to| to.write(image))
}

/// What to compile for: the device itself, or PTX for the newest generation before it.
fn target(capability: (u32, u32), known: &[u32]) -> Option<String> {
    let (major, minor) = capability;
    let device = major * 10 + minor;
    if known.contains(&device) {
        // The instructions of compute capability 9.0 that no other has come under this name.
        let specific = if device == 90 { "a" } else { "" };
        return Some(format!("sm_{device}{specific}"));
    }
    let older = known.iter().filter(|&&known| known < device).max()?;
    (*older >= 80).then(|| format!("compute_{older}"))
}

fn version() -> Result<(i32, i32), String> {
    // SAFETY: loads NVIDIA's library, whose initializers have no preconditions.
    if !unsafe { sys::is_culib_present() } {
        return Err(
            "no NVRTC: libnvrtc cannot be loaded (it comes with the CUDA toolkit, and with the \
             Python package nvidia-cuda-nvrtc)"
                .to_owned(),
        );
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is present; what is written outlives the call.
    check(unsafe { sys::nvrtcVersion(&mut major, &mut minor) })?;
    if (major, minor) < OLDEST {
        return Err(format!(
            "NVRTC {major}.{minor} is too old: {}.{} or later is needed",
            OLDEST.0, OLDEST.1
        ));
    }
    Ok((major, minor))
}

fn architectures() -> Result<Vec<u32>, String> {
    let mut count = 0;
    // SAFETY: the library is present, for it told its version; `count` outlives the call.
    check(unsafe { sys::nvrtcGetNumSupportedArchs(&mut count) })?;
    let mut numbers = vec![0; count.max(0) as usize];
    // SAFETY: the array has the length that the library asked for.
    check(unsafe { sys::nvrtcGetSupportedArchs(numbers.as_mut_ptr()) })?;
    Ok(numbers.into_iter().map(|number| number as u32).collect())
}

fn check(code: sys::nvrtcResult) -> Result<(), String> {
    match code {
        sys::nvrtcResult::NVRTC_SUCCESS => Ok(()),
        code => Err(format!("NVRTC: {}", describe(code))),
    }
}

fn describe(code: sys::nvrtcResult) -> String {
    let advice = match code {
        sys::nvrtcResult::NVRTC_ERROR_BUILTIN_OPERATION_FAILURE => {
            " (libnvrtc-builtins must be found where libnvrtc was)"
        }
        _ => "",
    };
    format!("{code:?}{advice}")
}

/// A program of the compiler's, destroyed with this value.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: made by nvrtcCreateProgram and destroyed nowhere else.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

fn run(op: &str, source: &str, target: &str, flags: &[&str]) -> Result<Vec<u8>, String> {
    let failed = |error| format!("NVRTC cannot compile {op}.cu for {target}: {error}");
    let text = CString::new(source).map_err(|error| failed(error.to_string()))?;
    let name = CString::new(format!("{op}.cu")).map_err(|error| failed(error.to_string()))?;
    let program = result::create_program(&text, Some(&name))
        .map(Program)
        .map_err(|error| failed(error.to_string()))?;
    let mut options = vec![format!("--gpu-architecture={target}")];
    options.extend(flags.iter().map(|&flag| flag.to_owned()));
    // SAFETY: the program is alive, here and below.
    if let Err(error) = unsafe { result::compile_program(program.0, &options) } {
        // SAFETY: as above.
        let log = unsafe { result::get_program_log(program.0) }.unwrap_or_default();
        let log: &[u8] = bytemuck::cast_slice(&log);
        let log = String::from_utf8_lossy(log);
        let log = log.trim_end_matches(['\0', '\n']);
        return Err(failed(format!("{}\n{log}", describe(error.0))));
    }
    let mut bytes = 0;
    let cubin = target.starts_with("sm_");
    // SAFETY: as above; what is written outlives the calls and has the size asked for.
    let image = unsafe {
        check(match cubin {
            true => sys::nvrtcGetCUBINSize(program.0, &mut bytes),
            false => sys::nvrtcGetPTXSize(program.0, &mut bytes),
        })?;
        let mut image = vec![0u8; bytes];
        check(match cubin {
            true => sys::nvrtcGetCUBIN(program.0, image.as_mut_ptr().cast()),
            false => sys::nvrtcGetPTX(program.0, image.as_mut_ptr().cast()),
        })?;
        image
    };
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::nvidia::modules::{SOURCES, candidates};

    #[test]
    fn a_known_device_gets_its_own_code_and_a_newer_one_portable_code() {
        let known = [75, 80, 86, 89, 90, 100, 103, 120];
        assert_eq!(target((8, 0), &known).unwrap(), "sm_80");
        assert_eq!(target((9, 0), &known).unwrap(), "sm_90a");
        assert_eq!(target((10, 3), &known).unwrap(), "sm_103");
        assert_eq!(target((12, 1), &known).unwrap(), "compute_120");
        assert_eq!(target((14, 0), &known).unwrap(), "compute_120");
        assert_eq!(target((8, 0), &[75]), None);
        assert_eq!(target((8, 0), &[90]), None);
    }

    #[test]
    fn the_cache_tells_apart_all_that_code_depends_on() {
        let name = |source, target, version| file_name("rope", source, target, version);
        let base = name("x", "sm_80", (13, 0));
        assert_eq!(base, name("x", "sm_80", (13, 0)));
        for other in [
            name("y", "sm_80", (13, 0)),
            name("x", "sm_86", (13, 0)),
            name("x", "sm_80", (13, 1)),
        ] {
            assert_ne!(base, other);
        }
    }

    /// The compiler needs no GPU; it is found in the library path (`LD_LIBRARY_PATH`).
    #[test]
    fn nvrtc_compiles_every_kernel_without_headers() {
        if let Err(why) = version() {
            eprintln!("skipped: {why}");
            return;
        }
        let mut problems = Vec::new();
        for (op, source) in SOURCES {
            // As far as the portable form and unoptimized: the rest is the same in nvcc.
            let flags = [FLAGS, &["--device-debug"]].concat();
            let mut kernels = 0;
            for target in ["compute_80", "compute_90a"] {
                match run(op, source, target, &flags) {
                    Ok(ptx) => problems.extend(kernels_of(&ptx).iter().filter_map(|kernel| {
                        kernels += 1;
                        let mut asked = candidates(kernel, SOURCES).into_iter();
                        let found = asked.any(|(candidate, _)| candidate == *op);
                        (!found).then(|| format!("{kernel} is not looked for in {op}"))
                    })),
                    Err(why) => problems.push(why),
                }
            }
            if kernels == 0 {
                problems.push(format!("{op} has no kernels"));
            }
        }
        assert!(problems.is_empty(), "{}", problems.join("\n"));

        let (op, source) = SOURCES[0];
        let newest = *architectures().unwrap().iter().max().unwrap();
        for target in ["sm_80", "sm_90a", &format!("sm_{newest}")] {
            let cubin = run(op, source, target, FLAGS).unwrap();
            assert!(cubin.starts_with(b"\x7fELF"), "{op} for {target}");
        }
        let error = run("broken", "__global__ void f() { return 1 }", "sm_80", FLAGS).unwrap_err();
        assert!(
            error.contains("broken.cu") && error.contains("sm_80"),
            "{error}"
        );
    }

    /// The names of the kernels in PTX.
    fn kernels_of(ptx: &[u8]) -> Vec<String> {
        let text = std::str::from_utf8(ptx).unwrap();
        let entries = text.split(".entry ").skip(1);
        entries
            .map(|rest| rest.split('(').next().unwrap().trim().to_owned())
            .collect()
    }
}
