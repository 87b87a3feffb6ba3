//! Whether there is a driver and a device, and which.
//!
//! The CUDA library is loaded when it is first asked for. The binding panics if it cannot be loaded,
//! so everything in this folder comes through [`initialize`] before it calls anything else.

use std::ffi::{CStr, c_char};
use std::sync::OnceLock;

use cudarc::driver::sys::{self, CUdevice, CUdevice_attribute, CUresult};

use super::error;
use crate::error::{Error, ErrorKind, Result};

/// The CUDA version that the kernels are compiled with; a driver must support it.
const NEEDED: i32 = 13_000;
const NEEDED_DRIVER: &str = "580";

/// The first compute capability with asynchronous copies and bf16 matrix instructions.
const NEEDED_CAPABILITY: (u32, u32) = (8, 0);

/// A device that CUDA knows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Its number, as in `cuda:N`.
    pub ordinal: usize,
    /// NVIDIA's name for it.
    pub name: String,
    /// Compute capability, such as `(9, 0)`.
    pub capability: (u32, u32),
    /// Bytes of its memory.
    pub memory: usize,
}

/// Whether device `cuda` can be used here.
///
/// # Errors
/// `Device`, with one line that says what is missing: the driver's library, a driver that is new
/// enough, a device.
pub fn available() -> Result<()> {
    let devices = devices()?;
    if devices.iter().any(|d| d.capability >= NEEDED_CAPABILITY) {
        return Ok(());
    }
    match devices.first() {
        Some(device) => Err(too_old(device)),
        None => Err(Error::new(
            ErrorKind::Device,
            error::describe(CUresult::CUDA_ERROR_NO_DEVICE),
        )),
    }
}

/// The devices that this process may use, also those that are too old.
///
/// # Errors
/// `Device`, as [`available`].
pub fn devices() -> Result<Vec<DeviceInfo>> {
    initialize()?;
    (0..count()?).map(|ordinal| Ok(info(ordinal)?.1)).collect()
}

/// The device of a number.
///
/// # Errors
/// `Device` when there are fewer, or when it is too old.
pub(super) fn device(ordinal: usize) -> Result<(CUdevice, DeviceInfo)> {
    initialize()?;
    let count = count()?;
    if ordinal >= count {
        return Err(out_of_range(ordinal, count));
    }
    let (device, info) = info(ordinal)?;
    match info.capability >= NEEDED_CAPABILITY {
        true => Ok((device, info)),
        false => Err(too_old(&info)),
    }
}

/// A fact about a device.
pub(super) fn attribute(device: CUdevice, attribute: CUdevice_attribute) -> Result<u32> {
    let mut value = 0;
    // SAFETY: the library is initialized, for there is a device; `value` outlives the call.
    let code = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) };
    error::check(code, || format!("asking for {attribute:?}"))?;
    Ok(value.max(0) as u32)
}

/// Loads and initializes the driver's library, once. Its failure stays.
fn initialize() -> Result<()> {
    static STATE: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    STATE
        .get_or_init(load)
        .clone()
        .map_err(|message| Error::new(ErrorKind::Device, message))
}

fn load() -> std::result::Result<(), String> {
    // SAFETY: loads the driver's library, whose initializers have no preconditions.
    if !unsafe { sys::is_culib_present() } {
        return Err(format!(
            "no NVIDIA driver: {} cannot be loaded",
            if cfg!(windows) {
                "nvcuda.dll"
            } else {
                "libcuda.so.1"
            }
        ));
    }
    // SAFETY: the library is present, as was just seen.
    let library = unsafe { sys::culib() };
    for symbol in ["cuInit", "cuDriverGetVersion", "cuGetErrorString"] {
        // SAFETY: the symbol is only looked for, never used.
        if unsafe { library.get::<*const ()>(symbol.as_bytes()) }.is_err() {
            return Err(format!(
                "the libcuda that was loaded is not NVIDIA's: it lacks {symbol}"
            ));
        }
    }
    let mut version = 0;
    // SAFETY: may be called before cuInit; `version` outlives the call.
    let code = unsafe { sys::cuDriverGetVersion(&mut version) };
    if code == CUresult::CUDA_SUCCESS && version < NEEDED {
        return Err(old_driver(version));
    }
    // SAFETY: the flags must be 0 and are.
    match unsafe { sys::cuInit(0) } {
        CUresult::CUDA_SUCCESS => Ok(()),
        code => Err(format!(
            "the NVIDIA driver does not start: {}",
            error::describe(code)
        )),
    }
}

/// The driver's version, as CUDA counts them. For a device that is there.
pub(super) fn driver_version() -> i32 {
    let mut version = 0;
    // SAFETY: the library is loaded, for there is a device; `version` outlives the call. On failure
    // the zero stays.
    let _ = unsafe { sys::cuDriverGetVersion(&mut version) };
    version
}

fn count() -> Result<usize> {
    let mut count = 0;
    // SAFETY: the library is initialized; `count` outlives the call.
    let code = unsafe { sys::cuDeviceGetCount(&mut count) };
    error::check(code, || "counting the GPUs".to_owned())?;
    Ok(count.max(0) as usize)
}

fn info(ordinal: usize) -> Result<(CUdevice, DeviceInfo)> {
    let asking = || format!("asking for cuda:{ordinal}");
    let mut device = 0;
    // SAFETY: the library is initialized, here and below; what is written outlives the calls.
    let code = unsafe { sys::cuDeviceGet(&mut device, ordinal as i32) };
    error::check(code, asking)?;
    let mut name: [c_char; 256] = [0; 256];
    // SAFETY: as above; the length is that of the array.
    let code = unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as i32, device) };
    error::check(code, asking)?;
    let mut memory = 0;
    // SAFETY: as above.
    let code = unsafe { sys::cuDeviceTotalMem_v2(&mut memory, device) };
    error::check(code, asking)?;
    let bytes: &[u8] = bytemuck::cast_slice(&name);
    let name = CStr::from_bytes_until_nul(bytes)
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let major = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
    let minor = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR;
    let info = DeviceInfo {
        ordinal,
        name,
        capability: (attribute(device, major)?, attribute(device, minor)?),
        memory,
    };
    Ok((device, info))
}

fn old_driver(found: i32) -> String {
    format!(
        "the NVIDIA driver is too old: it supports CUDA {}, and {} is needed (driver {NEEDED_DRIVER} \
         or later)",
        error::version(found),
        error::version(NEEDED)
    )
}

fn too_old(device: &DeviceInfo) -> Error {
    let DeviceInfo {
        ordinal,
        name,
        capability: (major, minor),
        ..
    } = device;
    let (needed, _) = NEEDED_CAPABILITY;
    Error::new(
        ErrorKind::Device,
        format!(
            "cuda:{ordinal} ({name}) has compute capability {major}.{minor}, and {needed}.0 or later \
             is needed"
        ),
    )
}

fn out_of_range(ordinal: usize, count: usize) -> Error {
    let there_are = match count {
        0 => "there is no GPU that this process may use (see CUDA_VISIBLE_DEVICES)".to_owned(),
        1 => "there is one GPU, cuda:0".to_owned(),
        _ => format!("there are {count} GPUs, cuda:0 to cuda:{}", count - 1),
    };
    Error::new(
        ErrorKind::Device,
        format!("there is no cuda:{ordinal}: {there_are}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_driver_is_told_what_was_found_and_what_is_needed() {
        let text = old_driver(12_080);
        for part in ["12.8", "13.0", "580"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_number_out_of_range_names_how_many_devices_there_are() {
        let text = |ordinal, count| out_of_range(ordinal, count).to_string();
        assert!(text(3, 2).contains("2 GPUs, cuda:0 to cuda:1"));
        assert!(text(1, 1).contains("one GPU"));
        assert!(text(0, 0).contains("no GPU"));
    }

    #[test]
    fn an_old_device_is_told_its_capability() {
        let device = DeviceInfo {
            ordinal: 1,
            name: "Tesla T4".to_owned(),
            capability: (7, 5),
            memory: 16 << 30,
        };
        let text = too_old(&device).to_string();
        for part in ["cuda:1", "Tesla T4", "7.5", "8.0"] {
            assert!(text.contains(part), "{text}");
        }
    }

    /// Runs everywhere: with a driver or without one, and never panics.
    #[test]
    fn a_machine_without_a_driver_says_so_in_one_line() {
        match available() {
            Ok(()) => assert!(!devices().unwrap().is_empty()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Device);
                assert!(!error.to_string().contains('\n'), "{error}");
                // Asked again, the same answer.
                assert_eq!(available().unwrap_err().to_string(), error.to_string());
            }
        }
    }
}
