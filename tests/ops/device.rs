//! The backends that tests run on: the CPU, and with the feature `emulate` CUDA.

use sft::ops::{Backend, Cpu};

/// A backend that the tests know how to make.
pub trait Device: Backend {
    /// A fresh device; `threads` means something to a CPU only.
    fn with_threads(threads: usize) -> Self;
}

impl Device for Cpu {
    fn with_threads(threads: usize) -> Self {
        Cpu::new(threads).unwrap()
    }
}

/// The emulated device, where `threads` is the seed of the order in which threads run; or the GPU
/// that `SFT_TEST_DEVICE` names, such as `cuda:0`.
#[cfg(feature = "emulate")]
impl Device for sft::cuda::Cuda {
    fn with_threads(threads: usize) -> Self {
        let device = std::env::var("SFT_TEST_DEVICE").unwrap_or("cuda-emulated".to_owned());
        if device == "cuda-emulated" {
            return sft::cuda::Cuda::emulated(threads as u64).unwrap();
        }
        let ordinal = device.strip_prefix("cuda:").and_then(|n| n.parse().ok());
        sft::cuda::Cuda::open(ordinal.expect("SFT_TEST_DEVICE is cuda:N")).unwrap()
    }
}

/// Makes generic functions `fn test<B: Device>()` into tests of every backend.
macro_rules! on_every_backend {
    ($($test:ident),* $(,)?) => {
        mod cpu {
            $(#[test]
            fn $test() {
                super::$test::<sft::ops::Cpu>();
            })*
        }
        #[cfg(feature = "emulate")]
        mod emulated {
            $(#[test]
            fn $test() {
                super::$test::<sft::cuda::Cuda>();
            })*
        }
    };
}
pub(crate) use on_every_backend;
