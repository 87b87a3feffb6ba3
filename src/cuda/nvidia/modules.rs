//! From a kernel's name to a function of the device: which form of an operation's code a device
//! runs, and which operation has the kernel.
//!
//! Code is loaded by operation, when the first of its kernels is launched: compiled for the device's
//! architecture, else as PTX, which the driver compiles, else from the source by NVRTC.

use std::collections::HashMap;
use std::ffi::CString;

use cudarc::driver::sys::{self, CUfunction, CUfunction_attribute, CUmodule, CUresult};

use super::{error, nvrtc};
use crate::error::{Error, ErrorKind, Result};

/// `SOURCES`: (operation, self-contained source); `COMPILED`: (operation, architecture, code).
mod embedded {
    /// Bytes at an address that a loader of executables may expect.
    #[allow(dead_code)] // nothing may have been compiled
    #[repr(C, align(64))]
    struct Aligned<B: ?Sized>(B);

    /// The bytes of a file.
    #[allow(unused_macros)] // as above
    macro_rules! aligned {
        ($path:literal) => {{
            static BYTES: &Aligned<[u8]> = &Aligned(*include_bytes!($path));
            &BYTES.0
        }};
    }

    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}
use embedded::COMPILED;
pub(super) use embedded::SOURCES;

/// A kernel on the device.
#[derive(Clone, Debug)]
pub(super) struct Function {
    pub handle: CUfunction,
    /// Bytes of each parameter.
    pub parameters: Vec<usize>,
    /// Bytes of dynamic shared memory that a launch may ask for so far.
    pub shared: u32,
}

/// The code that is loaded into a context. To be used, and unloaded, while that is current.
pub(super) struct Modules {
    capability: (u32, u32),
    modules: HashMap<&'static str, CUmodule>,
    functions: HashMap<&'static str, Function>,
}

impl Modules {
    pub(super) fn new(capability: (u32, u32)) -> Self {
        Self {
            capability,
            modules: HashMap::new(),
            functions: HashMap::new(),
        }
    }

    /// The function of a kernel, loaded with its operation if this is the first.
    ///
    /// # Errors
    /// `Internal` when no operation has the kernel; `Device` when none of its code can be loaded,
    /// with all that was tried.
    pub(super) fn function(&mut self, kernel: &'static str) -> Result<&mut Function> {
        if !self.functions.contains_key(kernel) {
            let function = self.find(kernel)?;
            self.functions.insert(kernel, function);
        }
        self.functions
            .get_mut(kernel)
            .ok_or_else(|| Error::new(ErrorKind::Internal, format!("kernel {kernel}")))
    }

    fn find(&mut self, kernel: &'static str) -> Result<Function> {
        let name = CString::new(kernel)
            .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
        // What is loaded is asked first: a wrong guess costs the loading of code that is not needed.
        let (loaded, unloaded): (Vec<_>, Vec<_>) = candidates(kernel, SOURCES)
            .into_iter()
            .partition(|(op, _)| self.modules.contains_key(op));
        for (op, source) in loaded.into_iter().chain(unloaded) {
            let module = match self.modules.get(op) {
                Some(&module) => module,
                None => {
                    let module = load(op, source, self.capability)?;
                    self.modules.insert(op, module);
                    module
                }
            };
            let mut handle = std::ptr::null_mut();
            // SAFETY: the module is loaded into the current context; `handle` and `name` outlive
            // the call.
            match unsafe { sys::cuModuleGetFunction(&mut handle, module, name.as_ptr()) } {
                CUresult::CUDA_ERROR_NOT_FOUND => continue,
                code => error::check(code, || format!("finding the kernel {kernel}"))?,
            }
            return describe(kernel, handle);
        }
        Err(Error::new(
            ErrorKind::Internal,
            format!("no kernel is called {kernel}"),
        ))
    }

    /// Unloads everything.
    pub(super) fn unload(&mut self) {
        self.functions.clear();
        for (_, module) in self.modules.drain() {
            // SAFETY: loaded by `load`, unloaded once; no kernel of it runs any more. A failure
            // leaves nothing to do.
            let _ = unsafe { sys::cuModuleUnload(module) };
        }
    }
}

/// The operations whose source has the longest beginning of the kernel's name, and among those the
/// ones whose own name agrees with it in most parts: to be asked in this order. An instance's name is
/// put together by macros, so the whole of it stands nowhere: the first may be wrong.
pub(super) fn candidates<'a>(
    kernel: &str,
    sources: &[(&'a str, &'a str)],
) -> Vec<(&'a str, &'a str)> {
    let ends = kernel.match_indices('_').map(|(end, _)| end);
    let mut beginnings: Vec<&str> = ends.map(|end| &kernel[..end + 1]).collect();
    beginnings.push(kernel);
    let known = |source: &str| beginnings.iter().rposition(|&part| source.contains(part));
    let agreement = |op: &str| -> i32 {
        op.split('_')
            .map(|part| {
                if kernel.split('_').any(|other| other == part) {
                    1
                } else {
                    -1
                }
            })
            .sum()
    };
    let mut ranked: Vec<_> = sources
        .iter()
        .filter_map(|&(op, source)| Some(((known(source)?, agreement(op)), (op, source))))
        .collect();
    ranked.sort_by_key(|&(rank, _)| std::cmp::Reverse(rank));
    ranked.into_iter().map(|(_, candidate)| candidate).collect()
}

/// Facts about a function.
fn describe(kernel: &str, handle: CUfunction) -> Result<Function> {
    let mut parameters = Vec::new();
    loop {
        let (mut offset, mut size) = (0, 0);
        // SAFETY: the function is loaded; what is written outlives the call. Behind the last
        // parameter the call fails, which ends the loop.
        let code =
            unsafe { sys::cuFuncGetParamInfo(handle, parameters.len(), &mut offset, &mut size) };
        match code {
            CUresult::CUDA_ERROR_INVALID_VALUE => break,
            code => error::check(code, || format!("asking for the parameters of {kernel}"))?,
        }
        parameters.push(size);
    }
    let bytes = |attribute| -> Result<u32> {
        let mut bytes = 0;
        // SAFETY: as above.
        let code = unsafe { sys::cuFuncGetAttribute(&mut bytes, attribute, handle) };
        error::check(code, || format!("asking for the shared memory of {kernel}"))?;
        Ok(bytes.max(0) as u32)
    };
    let fixed = bytes(CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
    let dynamic = bytes(CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)?;
    Ok(Function {
        handle,
        parameters,
        // Both kinds come out of the same 48 KiB unless more is asked for.
        shared: dynamic.min((48_u32 << 10).saturating_sub(fixed)),
    })
}

/// Loads an operation's code in the first form that works.
fn load(op: &str, source: &str, capability: (u32, u32)) -> Result<CUmodule> {
    let mut tried = Vec::new();
    let forms: Vec<_> = COMPILED.iter().filter(|form| form.0 == op).collect();
    let architectures: Vec<_> = forms.iter().map(|form| form.1).collect();
    for index in preference(&architectures, capability) {
        let (_, architecture, image) = *forms[index];
        match load_image(image) {
            Ok(module) => return Ok(module),
            Err(code) => tried.push(note(&format!("compiled for {architecture}"), code)?),
        }
    }
    if tried.is_empty() {
        tried.push(match architectures.is_empty() {
            true => "nothing compiled comes with this build".to_owned(),
            false => format!("compiled only for {}", architectures.join(", ")),
        });
    }
    for fresh in [false, true] {
        let compiled = match nvrtc::compile(op, source, capability, fresh) {
            Ok(compiled) => compiled,
            Err(why) => {
                tried.push(why);
                break;
            }
        };
        match load_image(&compiled.image) {
            Ok(module) => return Ok(module),
            // What lies on disk may be damaged: compiled again.
            Err(_) if compiled.cached => {}
            Err(code) => {
                tried.push(note("compiled by NVRTC", code)?);
                break;
            }
        }
    }
    Err(Error::new(
        ErrorKind::Device,
        format!(
            "the kernels of {op} cannot be loaded on compute capability {}.{}. Tried: {}",
            capability.0,
            capability.1,
            tried.join("; ")
        ),
    ))
}

/// A form that did not load, in words; an error when no other will.
fn note(form: &str, code: CUresult) -> Result<String> {
    if code == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        error::check(code, || "loading kernels".to_owned())?;
    }
    Ok(format!("{form}: {}", error::describe(code)))
}

fn load_image(image: &[u8]) -> std::result::Result<CUmodule, CUresult> {
    let mut module = std::ptr::null_mut();
    // SAFETY: a context is current; the image is a whole cubin, fat binary, or PTX that ends with
    // NUL, as nvcc or NVRTC made it, and is copied by the call.
    match unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) } {
        CUresult::CUDA_SUCCESS => Ok(module),
        code => Err(code),
    }
}

/// An architecture's name taken apart: `80`, `90a`, `ptx80`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Architecture {
    portable: bool,
    capability: (u32, u32),
    /// Only for exactly this capability.
    specific: bool,
}

impl Architecture {
    fn parse(name: &str) -> Option<Self> {
        let (portable, name) = match name.strip_prefix("ptx") {
            Some(rest) => (true, rest),
            None => (false, name),
        };
        let digits = name.trim_end_matches('a');
        let number: u32 = digits.parse().ok()?;
        Some(Self {
            portable,
            capability: (number / 10, number % 10),
            specific: digits != name,
        })
    }

    /// Machine code runs on later minor versions of its major one, PTX on all later ones.
    fn runs_on(self, device: (u32, u32)) -> bool {
        match (self.specific, self.portable) {
            (true, _) => self.capability == device,
            (false, true) => self.capability <= device,
            (false, false) => self.capability.0 == device.0 && self.capability.1 <= device.1,
        }
    }
}

/// The positions of the architectures that a device runs, the best first.
fn preference(architectures: &[&str], device: (u32, u32)) -> Vec<usize> {
    let mut usable: Vec<(usize, Architecture)> = architectures
        .iter()
        .enumerate()
        .filter_map(|(index, name)| Some((index, Architecture::parse(name)?)))
        .filter(|(_, architecture)| architecture.runs_on(device))
        .collect();
    usable.sort_by_key(|(_, a)| std::cmp::Reverse((!a.portable, a.capability, a.specific)));
    usable.into_iter().map(|(index, _)| index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_gets_the_closest_code_that_it_runs() {
        let built = ["80", "86", "89", "90a", "100", "120", "ptx80"];
        let chosen = |device| -> Vec<&str> {
            let order = preference(&built, device);
            order.into_iter().map(|index| built[index]).collect()
        };
        assert_eq!(chosen((8, 0)), ["80", "ptx80"]);
        assert_eq!(chosen((8, 6)), ["86", "80", "ptx80"]);
        assert_eq!(chosen((8, 9)), ["89", "86", "80", "ptx80"]);
        assert_eq!(chosen((9, 0)), ["90a", "ptx80"]);
        assert_eq!(chosen((10, 0)), ["100", "ptx80"]);
        assert_eq!(chosen((10, 3)), ["100", "ptx80"]);
        assert_eq!(chosen((11, 0)), ["ptx80"]);
        assert_eq!(chosen((12, 1)), ["120", "ptx80"]);
        assert_eq!(chosen((14, 0)), ["ptx80"]);
        assert_eq!(chosen((7, 5)), [""; 0]);
        assert_eq!(preference(&["90", "90a"], (9, 0)), [1, 0]);
    }

    #[test]
    fn a_kernel_is_looked_for_where_most_of_its_name_stands() {
        let sources = [
            ("rows", "KERNEL(gather_rows_f32, …)"),
            ("norm", "KERNEL(norm_forward_##suffix, …)"),
            (
                "norm_pair",
                "// as norm_forward\nKERNEL(norm_pair_forward_##suffix, …)",
            ),
        ];
        let asked = |kernel| -> Vec<&str> {
            let order = candidates(kernel, &sources);
            order.into_iter().map(|(op, _)| op).collect()
        };
        assert_eq!(asked("gather_rows_f32"), ["rows"]);
        assert_eq!(asked("norm_pair_forward_bf16")[0], "norm_pair");
        assert_eq!(asked("norm_forward_bf16")[0], "norm");
        assert_eq!(asked("absent"), [""; 0]);

        let instance = "KERNEL(product_nn_##size##_##suffix, …)";
        let sources = [("product", instance), ("product_f32", instance)];
        assert_eq!(
            candidates("product_nn_64_f32", &sources)[0].0,
            "product_f32"
        );
        assert_eq!(candidates("product_nn_64_bf16", &sources)[0].0, "product");
    }

    #[test]
    fn every_operation_of_the_folder_is_embedded() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/kernels");
        let files = std::fs::read_dir(folder).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        let mut ops: Vec<String> = names
            .filter_map(|name| Some(name.strip_suffix(".cu")?.to_owned()))
            .collect();
        ops.sort();
        assert_eq!(ops, SOURCES.iter().map(|(op, _)| *op).collect::<Vec<_>>());
        for (op, source) in SOURCES {
            assert!(source.contains("KERNEL("), "{op}");
            let header = |line: &&str| line.starts_with("#include") && line.ends_with(".cuh\"");
            assert_eq!(
                source.lines().find(header),
                None,
                "{op} is not self-contained"
            );
        }
        for (op, architecture, image) in COMPILED {
            assert!(SOURCES.iter().any(|(known, _)| known == op));
            assert!(Architecture::parse(architecture).is_some());
            assert!(!image.is_empty() && image.as_ptr().addr() % 64 == 0);
        }
    }
}
