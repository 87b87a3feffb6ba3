//! bf16 operands on AMX: `tdpbf16ps` multiplies two tiles of 16 rows and 64 bytes into a third of
//! float32 sums. Stable Rust has no intrinsics for it, hence the assembly.
//!
//! A tile of a holds 16 rows of 16 pairs, one of b 16 pairs of terms of 16 columns, one of c 16 × 16
//! sums (Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18). Four of
//! the eight tiles are sums of 32 × 32, so that each tile that is loaded is multiplied twice.

use super::pack::{COLS, Packer};
use super::panels::{Kernel, PANEL_PAIRS};
use crate::dtype::bf16;
use crate::ops::cpu::matrix::{MatMut, MatRef, Write};
use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

/// The tiles of this CPU.
#[derive(Clone, Copy)]
pub struct Amx(Packer);

const ROWS: usize = 32;

/// Rows and pairs of a tile.
const TILE: usize = 16;

impl Amx {
    /// The kernel, if this CPU has the instructions, the kernel of the system lets the process use
    /// them, and they multiply right. Asked for once.
    pub fn new() -> Option<Self> {
        static FOUND: OnceLock<Option<Amx>> = OnceLock::new();
        *FOUND.get_or_init(|| {
            let kernel = Self(Packer::new()?);
            (has_instructions() && permitted() && kernel.multiplies_right()).then_some(kernel)
        })
    }

    /// One block of small whole numbers, whose products and sums are exact, against plain arithmetic.
    fn multiplies_right(&self) -> bool {
        let numbers = |n: usize, step: usize| -> Vec<bf16> {
            let number = |i: usize| bf16::from_f32((i * step % 17) as f32 - 8.0);
            (0..n).map(number).collect()
        };
        let terms = 4 * TILE;
        let (a, b) = (numbers(ROWS * terms, 5), numbers(terms * COLS, 7));
        let mut packed = vec![0u32; terms / 2 * COLS];
        self.0
            .pack_b(MatRef::new(&b, terms, COLS), terms / 2, &mut packed);
        let mut c = vec![1.0f32; ROWS * COLS];
        self.begin();
        // SAFETY: a has 32 rows of these terms.
        unsafe {
            let c = MatMut::new(&mut c, ROWS, COLS);
            self.multiply(terms / 2, (a.as_ptr(), terms), &packed, c, Write::Add);
        }
        self.end();
        c.iter().enumerate().all(|(i, &sum)| {
            let (row, column) = (i / COLS, i % COLS);
            let product = |k: usize| a[row * terms + k].to_f32() * b[k * COLS + column].to_f32();
            sum == 1.0 + (0..terms).map(product).sum::<f32>()
        })
    }
}

/// CPUID leaf 7: AMX-BF16 and AMX-TILE.
fn has_instructions() -> bool {
    const AMX: u32 = 1 << 22 | 1 << 24;
    // SAFETY: every x86-64 CPU has CPUID.
    #[allow(unused_unsafe)]
    let (highest, leaf) = unsafe { (__cpuid_count(0, 0).eax, __cpuid_count(7, 0).edx) };
    highest >= 7 && leaf & AMX == AMX
}

/// Linux gives the state of tiles to processes that ask for it (`Documentation/arch/x86/xstate.rst`).
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XTILEDATA: libc::c_long = 18;
    // SAFETY: the call only changes what this process may use.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// The operand of `ldtilecfg`: all eight tiles have 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_of_a_row: [u16; 16],
    rows: [u8; 16],
}

static CONFIGURATION: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    bytes_of_a_row: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

impl Kernel for Amx {
    const ROWS: usize = ROWS;
    const PAIRS: usize = TILE;

    fn begin(&self) {
        // SAFETY: `new` found the instructions and got the permission; the operand is 64 bytes.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &CONFIGURATION, options(nostack, readonly));
        }
    }

    fn end(&self) {
        // SAFETY: as above. A thread without live tiles is cheaper to switch.
        unsafe {
            asm!("tilerelease", options(nostack, nomem));
        }
    }

    fn packer(&self) -> Packer {
        self.0
    }

    unsafe fn multiply(
        &self,
        pairs: usize,
        (a, a_stride): (*const bf16, usize),
        b: &[u32],
        mut c: MatMut,
        write: Write,
    ) {
        assert!(b.len() >= pairs * COLS && c.shape() == (ROWS, COLS));
        assert!(pairs > 0 && pairs.is_multiple_of(TILE) && pairs <= PANEL_PAIRS);
        if write == Write::Replace {
            c.clear();
        }
        let (c, c_stride) = c.as_mut_ptr();
        // SAFETY: `new` found the instructions and `begin` set the tiles up; the caller has `pairs`
        // pairs in 32 rows of a; b and c were checked above, where c has 32 numbers in 32 rows.
        unsafe {
            asm!(
                "tileloadd tmm0, [{c0} + {c_stride}]",
                "tileloadd tmm1, [{c0} + {c_stride} + 64]",
                "tileloadd tmm2, [{c1} + {c_stride}]",
                "tileloadd tmm3, [{c1} + {c_stride} + 64]",
                "2:",
                "tileloadd tmm4, [{a0} + {a_stride}]",
                "tileloadd tmm6, [{b} + {b_stride}]",
                "tileloadd tmm7, [{b} + {b_stride} + 64]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm5, [{a1} + {a_stride}]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a0}, 64",
                "add {a1}, 64",
                "add {b}, 2048",
                "dec {n}",
                "jnz 2b",
                "tilestored [{c0} + {c_stride}], tmm0",
                "tilestored [{c0} + {c_stride} + 64], tmm1",
                "tilestored [{c1} + {c_stride}], tmm2",
                "tilestored [{c1} + {c_stride} + 64], tmm3",
                c0 = in(reg) c,
                c1 = in(reg) c.add(TILE * c_stride),
                c_stride = in(reg) 4 * c_stride,
                a0 = inout(reg) a => _,
                a1 = inout(reg) a.add(TILE * a_stride) => _,
                a_stride = in(reg) 2 * a_stride,
                b = inout(reg) b.as_ptr() => _,
                b_stride = in(reg) 4 * COLS,
                n = inout(reg) pairs / TILE => _,
                options(nostack),
            );
        }
    }
}
