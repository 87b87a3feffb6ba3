//! Which device a run is on, and what that means for its number format and its memory.

use super::any_network::AnyNetwork;
#[cfg(feature = "cuda")]
use super::gemm;
use super::hooks::Hooks;
#[cfg(feature = "cuda")]
use crate::config::Gemm;
use crate::config::{Config, Device};
#[cfg(feature = "cuda")]
use crate::cuda::{self, Cuda, GemmProvider};
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result, ResultExt};
#[cfg(feature = "cuda")]
use crate::memory::Purpose;
use crate::memory::{MemoryPlan, NetworkLayout, Workload};
use crate::model::{ModelSpec, ParamTable};
use crate::ops::{Backend, Cpu};
use crate::train::Network;

/// What a device asks of the memory plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Needs {
    /// Format of the matrix products' operands.
    pub precision: DType,
    /// Bytes of scratch memory of its ops.
    pub workspace: usize,
    /// Widest attention head of its ops.
    max_head_dim: usize,
    /// Whether it is a CUDA device, which fills micro-batches up to sizes that occur again.
    pub is_cuda: bool,
}

impl Needs {
    fn of_cpu(config: &Config) -> Self {
        Self {
            precision: config.precision(false),
            workspace: Cpu::WORKSPACE_BYTES,
            max_head_dim: usize::MAX,
            is_cuda: false,
        }
    }

    #[cfg(feature = "cuda")]
    fn of_cuda(config: &Config) -> Self {
        Self {
            precision: config.precision(true),
            workspace: Cuda::WORKSPACE_BYTES,
            max_head_dim: cuda::MAX_HEAD_DIM,
            is_cuda: true,
        }
    }

    /// The memory plan of a network for this device.
    pub fn plan(&self, spec: &ModelSpec, work: &Workload) -> MemoryPlan {
        let work = Workload {
            tokens: self.filled(work.tokens),
            ..*work
        };
        NetworkLayout::new(spec, &ParamTable::new(spec), &work).plan
    }

    /// The tokens that a micro-batch of so many is filled up to.
    fn filled(&self, tokens: usize) -> usize {
        match self.is_cuda {
            #[cfg(feature = "cuda")]
            true => Cuda::filled_sizes(tokens, 1).0,
            _ => tokens,
        }
    }

    /// Whether the device's ops take a model's shape.
    ///
    /// # Errors
    /// `UnsupportedModel` naming what is too large.
    pub fn check(&self, spec: &ModelSpec) -> Result<()> {
        if spec.head_dim <= self.max_head_dim {
            return Ok(());
        }
        let message = format!(
            "head_dim: {}, and the CUDA kernels take up to {}; use device: cpu",
            spec.head_dim, self.max_head_dim
        );
        Err(Error::new(ErrorKind::UnsupportedModel, message))
    }
}

/// A device that is ready for a network.
pub(super) enum OpenDevice {
    Cpu(Cpu, Needs),
    #[cfg(feature = "cuda")]
    Cuda(Box<Cuda>, Needs),
}

impl OpenDevice {
    /// Opens the device that the configuration names; `auto` is the first CUDA device where there is
    /// one that works, else the CPU, and the log says why.
    ///
    /// # Errors
    /// `Device` naming what is missing.
    pub fn open(config: &Config, hooks: &mut Hooks) -> Result<Self> {
        match config.device {
            Device::Auto => match open_cuda(0) {
                Ok(cuda) => Self::with_cuda(config, cuda),
                Err(error) => {
                    // Without CUDA in the build there was nothing to hope for.
                    if cfg!(feature = "cuda") {
                        hooks.info(format!("device: auto is the CPU: {error}"));
                    }
                    Self::open_cpu(config)
                }
            },
            Device::Cpu => Self::open_cpu(config),
            Device::Cuda(ordinal) => {
                let cuda = open_cuda(ordinal).context(|| format!("device: {}", config.device))?;
                Self::with_cuda(config, cuda)
            }
            #[cfg(feature = "emulate")]
            Device::CudaEmulated => Self::with_cuda(config, Cuda::emulated(EMULATION_SEED)?),
        }
    }

    #[cfg(feature = "cuda")]
    fn with_cuda(config: &Config, mut backend: Cuda) -> Result<Self> {
        backend.set_gemm(match config.gemm {
            Gemm::Auto => GemmProvider::Measured,
            Gemm::Own => GemmProvider::Portable,
            Gemm::CublasLt => GemmProvider::CublasLt,
        })?;
        Ok(Self::Cuda(Box::new(backend), Needs::of_cuda(config)))
    }

    #[cfg(not(feature = "cuda"))]
    fn with_cuda(_: &Config, backend: Cuda) -> Result<Self> {
        match backend {}
    }

    fn open_cpu(config: &Config) -> Result<Self> {
        let backend = Cpu::new(config.threads.unwrap_or(0))?;
        Ok(Self::Cpu(backend, Needs::of_cpu(config)))
    }

    /// What this device asks of the memory plan.
    pub fn needs(&self) -> Needs {
        match self {
            Self::Cpu(_, needs) => *needs,
            #[cfg(feature = "cuda")]
            Self::Cuda(_, needs) => *needs,
        }
    }

    /// The device in words.
    fn describe(&self) -> String {
        match self {
            Self::Cpu(cpu, _) => cpu.describe(),
            #[cfg(feature = "cuda")]
            Self::Cuda(cuda, _) => cuda.describe(),
        }
    }

    /// Plans and allocates a network on this device; one that trains multiplies matrices as the
    /// configuration says, or by what is quicker.
    ///
    /// # Errors
    /// `Device`; `OutOfMemory` with the need and what is free.
    pub fn network(
        self,
        spec: ModelSpec,
        table: ParamTable,
        work: Workload,
    ) -> Result<Box<dyn AnyNetwork>> {
        Ok(match self {
            Self::Cpu(cpu, _) => Box::new(Network::new(cpu, spec, table, work)?),
            #[cfg(feature = "cuda")]
            Self::Cuda(mut cuda, _) => {
                // The forward alone, with or without a loss, is too short to measure for.
                if matches!(work.purpose, Purpose::Train { .. }) {
                    cuda.choose_gemm(&gemm::products(&spec, &work))?;
                }
                Box::new(Network::new(*cuda, spec, table, work)?)
            }
        })
    }
}

/// What the device of a run will ask of the memory plan, and the device in words. A CUDA device that
/// the configuration names is not opened: a plan can be made on a machine without it.
///
/// # Errors
/// As [`OpenDevice::open`].
pub(super) fn foreseen(config: &Config, hooks: &mut Hooks) -> Result<(Needs, String)> {
    match config.device {
        #[cfg(feature = "cuda")]
        Device::Cuda(_) => Ok((Needs::of_cuda(config), config.device.to_string())),
        _ => {
            let device = OpenDevice::open(config, hooks)?;
            Ok((device.needs(), device.describe()))
        }
    }
}

/// The order in which the emulator runs threads: any will do.
#[cfg(feature = "emulate")]
const EMULATION_SEED: u64 = 1;

#[cfg(feature = "cuda")]
fn open_cuda(ordinal: u32) -> Result<Cuda> {
    Cuda::open(ordinal as usize)
}

/// The backend that this build does not have.
#[cfg(not(feature = "cuda"))]
enum Cuda {}

#[cfg(not(feature = "cuda"))]
fn open_cuda(_: u32) -> Result<Cuda> {
    let message = "CUDA is not in this build; build with the feature `cuda`, or use `cpu`";
    Err(Error::new(ErrorKind::Device, message))
}
