//! Each kernel that this CPU has, and a model of the one that it may lack, against float64.

use super::amx;
use super::avx512_bf16::Avx512Bf16;
use super::pack::{COLS, Packer};
use super::panels::{self, Kernel};
use crate::dtype::bf16;
use crate::ops::cpu::element::Buffer;
use crate::ops::cpu::matrix::{MatMut, MatRef, Write};
use crate::rng::Stream;

/// `tdpbf16ps` of 32 rows and columns, step by step as the manual has it: tiles of 16 rows of 64
/// bytes are loaded with a stride, and each element of the sums adds the products of 16 pairs.
struct TileModel(Packer);

impl Kernel for TileModel {
    const ROWS: usize = 32;
    const PAIRS: usize = 16;

    fn packer(&self) -> Packer {
        self.0
    }

    unsafe fn multiply(
        &self,
        pairs: usize,
        (a, stride): (*const bf16, usize),
        b: &[u32],
        mut c: MatMut,
        write: Write,
    ) {
        assert_eq!(pairs % 16, 0);
        if write == Write::Replace {
            c.clear();
        }
        // SAFETY: by the caller.
        let a = |row: usize, term: usize| unsafe { (*a.add(row * stride + term)).to_f32() };
        let half =
            |pair: u32, high: bool| f32::from_bits(if high { pair & !0xffff } else { pair << 16 });
        for block in (0..pairs).step_by(16) {
            for (row, col) in (0..32).flat_map(|row| (0..32).map(move |col| (row, col))) {
                let sum = &mut c.row_mut(row)[col];
                for pair in block..block + 16 {
                    let b = b[pair * COLS + col];
                    *sum += a(row, 2 * pair) * half(b, false);
                    *sum += a(row, 2 * pair + 1) * half(b, true);
                }
            }
        }
    }
}

fn numbers(seed: u64, len: usize) -> Vec<bf16> {
    let stream = Stream::new(7, seed);
    (0..len as u64)
        .map(|i| bf16::from_f64(stream.normal(i)))
        .collect()
}

/// The numbers of a matrix that lies in rows, or transposed.
fn matrix(data: &[bf16], rows: usize, cols: usize, transposed: bool) -> MatRef<'_, bf16> {
    match transposed {
        false => MatRef::new(data, rows, cols),
        true => MatRef::new(data, cols, rows).t(),
    }
}

/// Odd, even, less and more than a strip, a panel, a group of rows, and none.
const SHAPES: [[usize; 3]; 10] = [
    [1, 1, 1],
    [12, 32, 32],
    [13, 33, 31],
    [5, 7, 1024],
    [37, 64, 1026],
    [97, 65, 2050],
    [200, 31, 63],
    [24, 96, 3],
    [64, 64, 64],
    [3, 2, 0],
];

fn agrees_with_float64<K: Kernel>(kernel: &K) {
    for [rows, cols, terms] in SHAPES {
        for (a_transposed, b_transposed) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            let (a, b) = (numbers(1, rows * terms), numbers(2, terms * cols));
            let at = |i: usize, k: usize| {
                a[if a_transposed {
                    k * rows + i
                } else {
                    i * terms + k
                }]
            };
            let bt = |k: usize, j: usize| {
                b[if b_transposed {
                    j * terms + k
                } else {
                    k * cols + j
                }]
            };
            for write in [Write::Replace, Write::Add] {
                // One column more, which must not be written.
                let mut c = vec![3.0f32; rows * (cols + 1)];
                let mut complete = vec![0; rows];
                let mut buffers: [Buffer; 3] = Default::default();
                panels::multiply(
                    kernel,
                    MatMut::new(&mut c, rows, cols + 1).split_cols(cols).0,
                    write,
                    matrix(&a, rows, terms, a_transposed),
                    matrix(&b, terms, cols, b_transposed),
                    buffers.each_mut(),
                    |first, rows| {
                        assert_eq!(rows.shape().1, cols);
                        (first..first + rows.shape().0).for_each(|row| complete[row] += 1);
                    },
                );
                assert!(complete.iter().all(|&times| times == 1), "{complete:?}");
                for (i, row) in c.chunks_exact(cols + 1).enumerate() {
                    assert_eq!(row[cols], 3.0);
                    for (j, &sum) in row[..cols].iter().enumerate() {
                        let product = |k| f64::from(at(i, k)) * f64::from(bt(k, j));
                        let start = if write == Write::Add { 3.0 } else { 0.0 };
                        let exact = start + (0..terms).map(product).sum::<f64>();
                        let size = start + (0..terms).map(|k| product(k).abs()).sum::<f64>();
                        // Every product and sum of float32 may round once.
                        let bound = (2 * terms + 1) as f64 * f64::from(f32::EPSILON) / 2.0 * size;
                        let error = (f64::from(sum) - exact).abs();
                        assert!(
                            error <= bound,
                            "{rows} {cols} {terms} {i} {j}: {error} > {bound}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn avx512_bf16_agrees_with_float64() {
    if let Some(kernel) = Avx512Bf16::new() {
        agrees_with_float64(&kernel);
    }
}

#[test]
fn amx_agrees_with_float64() {
    if let Some(kernel) = amx::Amx::new() {
        agrees_with_float64(&kernel);
    }
}

/// That the panels are laid out as tiles are loaded, also where there are none.
#[test]
fn panels_are_laid_out_for_tiles() {
    if let Some(packer) = Packer::new() {
        agrees_with_float64(&TileModel(packer));
    }
}
