//! Which device a run is on, and what that means for its number format and its memory.

use super::any_network::AnyNetwork;
use super::hooks::Hooks;
use crate::config::{Config, Device};
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::Workload;
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
}

/// A device that is ready, with the number format of the run.
pub(super) struct OpenDevice {
    backend: AnyBackend,
    precision: DType,
}

enum AnyBackend {
    Cpu(Cpu),
}

impl OpenDevice {
    /// Opens the device that the configuration names.
    ///
    /// # Errors
    /// `Device` naming what is missing.
    pub fn open(config: &Config, _hooks: &mut Hooks) -> Result<Self> {
        let cpu = |threads: Option<usize>| Cpu::new(threads.unwrap_or(0)).map(AnyBackend::Cpu);
        let backend = match config.device {
            Device::Auto | Device::Cpu => cpu(config.threads)?,
            Device::Cuda(_) => return Err(not_in_this_build(config.device)),
        };
        let precision = config.precision(false);
        Ok(Self { backend, precision })
    }

    /// What this device asks of the memory plan.
    pub fn needs(&self) -> Needs {
        let workspace = match self.backend {
            AnyBackend::Cpu(_) => Cpu::WORKSPACE_BYTES,
        };
        Needs {
            precision: self.precision,
            workspace,
        }
    }

    /// Plans and allocates a network on this device.
    ///
    /// # Errors
    /// `OutOfMemory` with the need and what is free.
    pub fn network(
        self,
        spec: ModelSpec,
        table: ParamTable,
        work: Workload,
    ) -> Result<Box<dyn AnyNetwork>> {
        Ok(match self.backend {
            AnyBackend::Cpu(cpu) => Box::new(Network::new(cpu, spec, table, work)?),
        })
    }
}

/// What the device of a run will ask of the memory plan.
///
/// # Errors
/// As [`OpenDevice::open`].
pub(super) fn needs(config: &Config, hooks: &mut Hooks) -> Result<Needs> {
    Ok(OpenDevice::open(config, hooks)?.needs())
}

fn not_in_this_build(device: Device) -> Error {
    let message = format!("device: {device} is not in this build; use `cpu`");
    Error::new(ErrorKind::Device, message)
}
