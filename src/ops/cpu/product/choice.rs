//! Which kernel multiplies bf16 matrices: the best that this CPU has, or the one that the environment
//! variable `SFT_BF16_KERNEL` names, so that each can be tested and timed wherever it runs.

#[cfg(target_arch = "x86_64")]
use super::{amx::Amx, avx512_bf16::Avx512Bf16};
use crate::error::{Error, ErrorKind, Result};
use std::sync::OnceLock;

const VARIABLE: &str = "SFT_BF16_KERNEL";

/// What multiplies bf16 matrices.
#[derive(Clone, Copy)]
pub enum Bf16Kernel {
    #[cfg(target_arch = "x86_64")]
    Amx(Amx),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512Bf16),
    /// Operands are widened and multiplied in float32, which every CPU can.
    Widened,
}

impl Bf16Kernel {
    /// The kernel of this process. The environment is read once.
    ///
    /// # Errors
    /// `Config` if the environment names one that this CPU lacks.
    pub fn chosen() -> Result<Self> {
        Self::first_choice().map_err(|message| Error::new(ErrorKind::Config, message))
    }

    /// As [`Bf16Kernel::chosen`]; without a device, which would have refused it, a wrong name chooses
    /// what is always there.
    #[inline]
    pub fn chosen_or_widened() -> Self {
        Self::first_choice().unwrap_or(Self::Widened)
    }

    fn first_choice() -> std::result::Result<Self, &'static str> {
        static CHOSEN: OnceLock<std::result::Result<Bf16Kernel, String>> = OnceLock::new();
        let chosen = CHOSEN.get_or_init(|| {
            let asked = std::env::var_os(VARIABLE).map(|name| name.to_string_lossy().into_owned());
            choose(asked.as_deref().unwrap_or_default(), &Self::found())
        });
        chosen
            .as_ref()
            .map(|&kernel| kernel)
            .map_err(String::as_str)
    }

    /// Those of this CPU, the best first.
    fn found() -> Vec<Self> {
        let kernels = [
            #[cfg(target_arch = "x86_64")]
            Amx::new().map(Self::Amx),
            #[cfg(target_arch = "x86_64")]
            Avx512Bf16::new().map(Self::Avx512Bf16),
            Some(Self::Widened),
        ];
        kernels.into_iter().flatten().collect()
    }

    /// What `SFT_BF16_KERNEL` calls it.
    pub fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Amx(_) => "amx",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512Bf16(_) => "avx512_bf16",
            Self::Widened => "widened",
        }
    }
}

/// The first of the kernels, or the one asked for. An empty name asks for none.
fn choose(asked: &str, found: &[Bf16Kernel]) -> std::result::Result<Bf16Kernel, String> {
    let mut kernels = found.iter().copied();
    let chosen = kernels.find(|kernel| asked.is_empty() || kernel.name() == asked);
    chosen.ok_or_else(|| {
        let names: Vec<_> = found.iter().map(|kernel| kernel.name()).collect();
        let names = names.join(", ");
        format!("{VARIABLE}={asked}: this CPU has {names}; unset it for the first of them")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_taken_unless_another_is_named() {
        let found = Bf16Kernel::found();
        let name = |asked| choose(asked, &found).map(Bf16Kernel::name);
        assert_eq!(name(""), Ok(found[0].name()));
        for kernel in &found {
            assert_eq!(name(kernel.name()), Ok(kernel.name()));
        }
        assert_eq!(name("widened"), Ok("widened"));
    }

    #[test]
    fn a_kernel_that_is_not_there_is_refused_by_name() {
        let message = choose("amx", &[Bf16Kernel::Widened]).err().unwrap();
        let expected = "SFT_BF16_KERNEL=amx: this CPU has widened; unset it for the first of them";
        assert_eq!(message, expected);
    }
}
