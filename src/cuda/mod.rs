//! The CUDA backend: one file an op, each the launch of `kernels/<op>.cu`.
//!
//! Everything that touches a device goes through [`Driver`], which has two implementations: the
//! NVIDIA driver, and with the feature `emulate` the CPU, running the same kernels compiled as C++
//! (`kernels/host/`). Sizes, grids and pointers are computed above it, so a test on the emulation
//! covers all but the GPU itself.

mod adamw;
mod attention;
mod cast;
mod cross_entropy;
mod driver;
mod embedding;
#[cfg(feature = "emulate")]
mod emulated;
mod geometry;
mod grad_norm;
mod linear;
#[cfg(test)]
mod linear_layout;
mod linear_plan;
mod nvidia;
mod qk_norm;
mod rms_norm;
mod rope;
mod rows;
mod swiglu;

pub use attention::MAX_HEAD_DIM;
pub use driver::{Arg, Driver, Graph, Launch, Limits, MatrixMap, VendorProduct};
#[cfg(feature = "emulate")]
pub use emulated::Emulated;
pub use linear::GemmProvider;
pub use nvidia::{DeviceInfo, available, devices};

use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::ops::{Backend, Indices, Region};

/// A CUDA device with the arena of one network.
pub struct Cuda {
    driver: Box<dyn Driver>,
    limits: Limits,
    /// Device address of the arena.
    arena: u64,
    arena_bytes: usize,
    workspace: Region,
    gemm: GemmProvider,
    /// What went wrong first. The ops themselves return nothing: see [`Backend::status`].
    failure: Option<(ErrorKind, String)>,
    /// Bytes on their way to or from the device, kept to be filled again.
    staging: Vec<u8>,
}

/// `kernel!(dtype, "swiglu_forward")`: the name of the kernel's instance for a number format.
macro_rules! kernel {
    ($dtype:expr, $name:literal) => {
        match $dtype {
            $crate::dtype::DType::F32 => concat!($name, "_f32"),
            $crate::dtype::DType::BF16 => concat!($name, "_bf16"),
            $crate::dtype::DType::F16 => concat!($name, "_f16"),
        }
    };
}
pub(in crate::cuda) use kernel;

impl Cuda {
    /// A backend over a driver.
    pub fn new(driver: Box<dyn Driver>) -> Self {
        Self {
            limits: driver.limits(),
            driver,
            arena: 0,
            arena_bytes: 0,
            workspace: Region::EMPTY,
            gemm: GemmProvider::default(),
            failure: None,
            staging: Vec::new(),
        }
    }

    /// The NVIDIA GPU `cuda:<ordinal>`.
    ///
    /// # Errors
    /// `Device`, with what is missing (see [`available`]), how many devices there are, or that
    /// another process holds it; `OutOfMemory` when not even a context fits.
    pub fn open(ordinal: usize) -> Result<Self> {
        Ok(Self::new(Box::new(nvidia::NvidiaDriver::open(ordinal)?)))
    }

    /// Launches a kernel, unless something failed before.
    fn launch(&mut self, kernel: &'static str, launch: Launch, arguments: &[Arg]) {
        if launch.grid.contains(&0) || self.failure.is_some() {
            return;
        }
        let result = self.driver.launch(kernel, launch, arguments);
        self.note(result);
    }

    /// Keeps the first failure.
    fn note(&mut self, result: Result<()>) {
        if let Err(error) = result
            && self.failure.is_none()
        {
            self.failure = Some((error.kind(), error.to_string()));
        }
    }

    /// The device address of a tensor.
    fn address(&self, region: Region) -> Arg {
        self.inside(region.offset, region.len * region.dtype.size())
    }

    /// The device address of index numbers.
    fn index_address(&self, indices: Indices) -> Arg {
        self.inside(indices.offset, indices.len * size_of::<i32>())
    }

    /// The address of an optional tensor, null for none.
    fn optional_address(&self, region: Option<Region>) -> Arg {
        region.map_or(Arg::Address(0), |region| self.address(region))
    }

    fn inside(&self, offset: usize, bytes: usize) -> Arg {
        assert!(
            offset + bytes <= self.arena_bytes,
            "{offset}+{bytes} lies outside the arena of {} bytes",
            self.arena_bytes
        );
        Arg::Address(self.arena + offset as u64)
    }
}

impl Backend for Cuda {
    const WORKSPACE_BYTES: usize = 32 << 20;

    fn describe(&self) -> String {
        self.driver.describe()
    }

    fn allocate(&mut self, bytes: usize, workspace: Region) -> Result<()> {
        self.arena = self.driver.allocate(bytes)?;
        self.arena_bytes = bytes;
        self.workspace = workspace;
        Ok(())
    }

    fn status(&self) -> Result<()> {
        match &self.failure {
            None => Ok(()),
            Some((kind, message)) => Err(Error::new(*kind, message.clone())),
        }
    }

    fn upload(&mut self, to: Region, from: &[f32]) {
        assert_eq!(to.len, from.len(), "length of an upload");
        let Arg::Address(address) = self.address(to) else {
            return;
        };
        let mut bytes = std::mem::take(&mut self.staging);
        let from: &[u8] = match to.dtype {
            DType::F32 => bytemuck::cast_slice(from),
            half => {
                bytes.clear();
                encode(from, half, &mut bytes);
                &bytes
            }
        };
        let result = self.driver.write(address, from);
        self.staging = bytes;
        self.note(result);
    }

    fn upload_indices(&mut self, to: Indices, from: &[i32]) {
        assert_eq!(to.len, from.len(), "length of an upload");
        if let Arg::Address(address) = self.index_address(to) {
            let result = self.driver.write(address, bytemuck::cast_slice(from));
            self.note(result);
        }
    }

    fn download(&mut self, from: Region, to: &mut [f32]) {
        assert_eq!(from.len, to.len(), "length of a download");
        let Arg::Address(address) = self.address(from) else {
            return;
        };
        let result = match from.dtype {
            DType::F32 => self.driver.read(address, bytemuck::cast_slice_mut(to)),
            half => {
                self.staging.resize(from.len * half.size(), 0);
                let result = self.driver.read(address, &mut self.staging);
                decode(&self.staging, half, to);
                result
            }
        };
        self.note(result);
    }

    fn copy(&mut self, from: Region, to: Region) {
        assert_eq!(
            (from.len, from.dtype),
            (to.len, to.dtype),
            "regions of a copy"
        );
        let (Arg::Address(source), Arg::Address(target)) = (self.address(from), self.address(to))
        else {
            return;
        };
        let result = self
            .driver
            .copy(source, target, from.len * from.dtype.size());
        self.note(result);
    }

    fn fill(&mut self, to: Region, value: f32) {
        let Arg::Address(address) = self.address(to) else {
            return;
        };
        let result = match to.dtype {
            DType::F32 => self.driver.fill32(address, value.to_bits(), to.len),
            DType::BF16 => {
                let bits = crate::dtype::bf16::from_f32(value).to_bits();
                self.driver.fill16(address, bits, to.len)
            }
            DType::F16 => {
                let bits = crate::dtype::f16::from_f32(value).to_bits();
                self.driver.fill16(address, bits, to.len)
            }
        };
        self.note(result);
    }
}

/// Float32 numbers as bytes of a half-precision format.
fn encode(from: &[f32], dtype: DType, to: &mut Vec<u8>) {
    use crate::dtype::{bf16, f16};
    match dtype {
        DType::F32 => to.extend_from_slice(bytemuck::cast_slice(from)),
        DType::BF16 => to.extend(from.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes())),
        DType::F16 => to.extend(from.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes())),
    }
}

/// The inverse of [`encode`].
fn decode(from: &[u8], dtype: DType, to: &mut [f32]) {
    use crate::dtype::{bf16, f16};
    let pairs = from.chunks_exact(2).map(|pair| [pair[0], pair[1]]);
    match dtype {
        DType::F32 => bytemuck::cast_slice_mut(to).copy_from_slice(from),
        DType::BF16 => {
            let values = pairs.map(|pair| bf16::from_le_bytes(pair).to_f32());
            to.iter_mut().zip(values).for_each(|(to, x)| *to = x);
        }
        DType::F16 => {
            let values = pairs.map(|pair| f16::from_le_bytes(pair).to_f32());
            to.iter_mut().zip(values).for_each(|(to, x)| *to = x);
        }
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        if self.arena != 0 {
            self.driver.free(self.arena);
        }
    }
}
