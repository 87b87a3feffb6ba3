//! What multiplies which matrices of a run, as far as it is known before the run.

use super::device::Needs;
use crate::config::Config;
#[cfg(feature = "cuda")]
use crate::config::{Device, Gemm};
#[cfg(feature = "cuda")]
use crate::cuda::{Cuda, GemmProvider, GemmTable, Layout, NetworkProduct, network_products};
use crate::dtype::DType;
use crate::memory::Workload;
use crate::model::ModelSpec;
#[cfg(feature = "cuda")]
use crate::ops::Backend;
use serde::Serialize;

/// A matrix product of a run on CUDA, and what does it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct GemmChoice {
    /// The layer and pass, such as `qkv_proj forward`.
    pub product: String,
    /// Rows of the result, of the largest micro-batch.
    pub m: usize,
    /// Its columns.
    pub n: usize,
    /// Numbers in each sum.
    pub k: usize,
    /// `NT`, `NN` or `TN`: T for a factor that lies transposed in memory.
    pub layout: &'static str,
    /// Format of the factors.
    pub dtype: DType,
    /// Format of the result.
    pub out: DType,
    /// `own` or `cublaslt`.
    pub provider: &'static str,
    /// What own kernels were measured to take on this machine.
    pub own_microseconds: Option<f64>,
    /// The same of cuBLASLt; also none where it refuses the product.
    pub cublaslt_microseconds: Option<f64>,
}

/// The products of a network for CUDA.
#[cfg(feature = "cuda")]
pub(super) fn products(spec: &ModelSpec, work: &Workload) -> Vec<NetworkProduct> {
    let tokens = Cuda::filled_sizes(work.tokens, 1).0;
    network_products(spec, tokens, work.head_rows, work.precision)
}

/// The products of a training run and their providers: by what was measured on this machine, which
/// happens when a run first starts; until then own kernels. None on the CPU.
#[cfg(feature = "cuda")]
pub(super) fn choices(
    config: &Config,
    needs: &Needs,
    spec: &ModelSpec,
    work: &Workload,
) -> Vec<GemmChoice> {
    if !needs.is_cuda {
        return Vec::new();
    }
    let table = match config.device {
        Device::Auto => GemmTable::of_device(0),
        Device::Cuda(ordinal) => GemmTable::of_device(ordinal as usize),
        _ => None,
    };
    let choice = |product: NetworkProduct| {
        let shape = product.shape;
        let times = table.as_ref().and_then(|table| table.find(shape));
        let measured = times.map_or(GemmProvider::Portable, |times| times.provider());
        let refused = times.is_some_and(|times| times.cublaslt_microseconds.is_none());
        let vendor = !product.biased
            && match config.gemm {
                Gemm::Auto => measured == GemmProvider::CublasLt,
                Gemm::Own => false,
                Gemm::CublasLt => !refused,
            };
        GemmChoice {
            product: product.name,
            m: shape.m,
            n: shape.n,
            k: shape.k,
            layout: match shape.layout {
                Layout::Nt => "NT",
                Layout::Nn => "NN",
                Layout::Tn => "TN",
            },
            dtype: shape.dtype,
            out: shape.out,
            provider: if vendor { "cublaslt" } else { "own" },
            own_microseconds: times.map(|times| times.own_microseconds),
            cublaslt_microseconds: times.and_then(|times| times.cublaslt_microseconds),
        }
    };
    products(spec, work).into_iter().map(choice).collect()
}

/// The products of a build without CUDA: none.
#[cfg(not(feature = "cuda"))]
pub(super) fn choices(_: &Config, _: &Needs, _: &ModelSpec, _: &Workload) -> Vec<GemmChoice> {
    Vec::new()
}
