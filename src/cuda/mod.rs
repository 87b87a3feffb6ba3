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
mod gemm;
mod geometry;
mod grad_norm;
mod graphs;
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
pub use driver::{Arg, Call, Driver, Graph, Launch, Limits, MatrixMap, VendorProduct};
#[cfg(feature = "emulate")]
pub use emulated::Emulated;
pub use gemm::{GemmShape, GemmTable, GemmTimes, NetworkProduct, network_products};
pub use linear::GemmProvider;
pub use linear_plan::Layout;
pub use nvidia::{DeviceInfo, available, devices};

use crate::dtype::{DType, bf16, f16};
use crate::error::{Error, ErrorKind, Result};
use crate::ops::{Backend, Indices, Recording, Region};
use graphs::{Graphs, Tape};
use std::collections::HashSet;

/// A CUDA device with the arena of one network.
pub struct Cuda {
    driver: Box<dyn Driver>,
    limits: Limits,
    /// Device address of the arena.
    arena: u64,
    arena_bytes: usize,
    workspace: Region,
    gemm: GemmProvider,
    /// Products that the vendor's library does by measurement, whatever the number of tokens, and
    /// those that it refused.
    by_vendor: HashSet<GemmShape>,
    refused: HashSet<GemmShape>,
    graphs: Graphs,
    /// What listens to the calls, within a recording.
    tape: Option<Tape>,
    /// What went wrong first. The ops themselves return nothing: see [`Backend::status`].
    failure: Option<(ErrorKind, String)>,
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
            by_vendor: HashSet::new(),
            refused: HashSet::new(),
            graphs: Graphs::default(),
            tape: None,
            failure: None,
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
        if !launch.grid.contains(&0) {
            self.ask(Call::Launch {
                kernel,
                launch,
                arguments: arguments.to_vec(),
            });
        }
    }

    /// Asks the driver for something, unless something failed before; false when it does not do such
    /// things.
    fn ask(&mut self, call: Call) -> bool {
        if self.failure.is_some() {
            return true;
        }
        let call = match &mut self.tape {
            Some(tape) => tape.intercept(call),
            None => Some(call),
        };
        let Some(call) = call else { return true };
        let result = call.perform(&mut *self.driver);
        let done = *result.as_ref().unwrap_or(&true);
        if let (Some(tape), true) = (&mut self.tape, done) {
            tape.add(call);
        }
        self.note(result.map(|_| ()));
        done
    }

    /// Keeps the first failure. Within a recording it only means that there is no graph.
    fn note(&mut self, result: Result<()>) {
        let Err(error) = result else { return };
        match &mut self.tape {
            Some(tape) => tape.failed = true,
            None if self.failure.is_none() => {
                self.failure = Some((error.kind(), error.to_string()));
            }
            None => {}
        }
    }

    /// The device address of a tensor.
    fn pointer(&self, region: Region) -> u64 {
        self.inside(region.offset, region.len * region.dtype.size())
    }

    /// The device address of index numbers.
    fn index_pointer(&self, indices: Indices) -> u64 {
        self.inside(indices.offset, indices.len * size_of::<i32>())
    }

    /// The address of a tensor, for a kernel.
    fn address(&self, region: Region) -> Arg {
        Arg::Address(self.pointer(region))
    }

    /// The address of index numbers, for a kernel.
    fn index_address(&self, indices: Indices) -> Arg {
        Arg::Address(self.index_pointer(indices))
    }

    /// The address of an optional tensor, null for none.
    fn optional_address(&self, region: Option<Region>) -> Arg {
        region.map_or(Arg::Address(0), |region| self.address(region))
    }

    fn inside(&self, offset: usize, bytes: usize) -> u64 {
        assert!(
            offset + bytes <= self.arena_bytes,
            "{offset}+{bytes} lies outside the arena of {} bytes",
            self.arena_bytes
        );
        self.arena + offset as u64
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
        let address = self.pointer(to);
        let result = match to.dtype {
            DType::F32 => self.driver.write(address, bytemuck::cast_slice(from)),
            half => self.driver.write(address, &encode(from, half)),
        };
        self.note(result);
    }

    fn upload_indices(&mut self, to: Indices, from: &[i32]) {
        assert_eq!(to.len, from.len(), "length of an upload");
        let address = self.index_pointer(to);
        let result = self.driver.write(address, bytemuck::cast_slice(from));
        self.note(result);
    }

    fn download(&mut self, from: Region, to: &mut [f32]) {
        assert_eq!(from.len, to.len(), "length of a download");
        let address = self.pointer(from);
        let result = match from.dtype {
            DType::F32 => self.driver.read(address, bytemuck::cast_slice_mut(to)),
            half => {
                let mut bytes = vec![0; from.len * half.size()];
                let result = self.driver.read(address, &mut bytes);
                decode(&bytes, half, to);
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
        let bytes = from.len * from.dtype.size();
        let (from, to) = (self.pointer(from), self.pointer(to));
        self.ask(Call::Copy { from, to, bytes });
    }

    fn fill(&mut self, to: Region, value: f32) {
        let (count, to, dtype) = (to.len, self.pointer(to), to.dtype);
        let fill16 = |bits| Call::Fill16 { to, bits, count };
        self.ask(match dtype {
            DType::F32 => Call::Fill32 {
                to,
                bits: value.to_bits(),
                count,
            },
            DType::BF16 => fill16(bf16::from_f32(value).to_bits()),
            DType::F16 => fill16(f16::from_f32(value).to_bits()),
        });
    }

    /// Tokens by at most a 16th, and at most to the next multiple of a small tile of the matrix products,
    /// which compute whole tiles anyway. Attention launches blocks by both sizes.
    fn filled_sizes(tokens: usize, sequences: usize) -> (usize, usize) {
        let step = (tokens / 16).clamp(1, 64);
        let tokens = tokens.next_multiple_of(1 << step.ilog2());
        (tokens, (sequences + 1).next_power_of_two().min(tokens))
    }

    fn recorded(&mut self, key: Recording, work: impl Fn(&mut Self)) {
        self.record_or_replay(key, work);
    }
}

/// Float32 numbers as bytes of a format.
fn encode(from: &[f32], dtype: DType) -> Vec<u8> {
    let from = from.iter();
    match dtype {
        DType::F32 => from.flat_map(|x| x.to_le_bytes()).collect(),
        DType::BF16 => (from.flat_map(|&x| bf16::from_f32(x).to_le_bytes())).collect(),
        DType::F16 => (from.flat_map(|&x| f16::from_f32(x).to_le_bytes())).collect(),
    }
}

/// The inverse of [`encode`].
fn decode(from: &[u8], dtype: DType, to: &mut [f32]) {
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
