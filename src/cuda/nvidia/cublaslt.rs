//! Matrix products by NVIDIA's cuBLASLt, where its library can be loaded: to compare with the own
//! kernels, and for the shapes where it is quicker.
//!
//! The library thinks in columns: a row-major matrix (r, c) is to it a matrix (c, r). So
//! y = a b is asked for as yᵀ = bᵀ aᵀ. Which of its kernels it takes for a shape is asked once.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use cudarc::cublaslt::{result, sys};
use cudarc::driver::sys::CUstream;

use crate::cuda::driver::VendorProduct;
use crate::dtype::DType;
use crate::error::{Error, ErrorKind, Result};

/// Addresses are aligned to at most this much, as far as the library cares.
const ALIGNMENT: u64 = 256;

/// The library with what it was asked for before. To be used, and dropped, while the context of
/// its making is current.
pub(super) struct CublasLt {
    handle: sys::cublasLtHandle_t,
    /// `None` for what the library does not do.
    prepared: HashMap<Key, Option<Prepared>>,
}

/// All that the choice of a kernel depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    sides: [Side; 2],
    shape: [usize; 3],
    dtype: DType,
    out: DType,
    accumulate: bool,
    alignments: [u64; 3],
    workspace: usize,
}

/// A factor as the library sees it: column-major, and whether it is to be transposed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Side {
    rows: usize,
    columns: usize,
    transposed: bool,
}

struct Prepared {
    description: Description,
    sides: [Layout; 2],
    out: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

/// The library's first and second factor for a product: bᵀ (n, k) and aᵀ (k, m).
fn sides(product: &VendorProduct) -> [Side; 2] {
    let VendorProduct { m, n, k, .. } = *product;
    let side = |rows, columns, transposed| Side {
        rows,
        columns,
        transposed,
    };
    [
        match product.b_transposed {
            // (n, k) in memory, to the library (k, n).
            true => side(k, n, true),
            false => side(n, k, false),
        },
        match product.a_transposed {
            // (k, m) in memory, to the library (m, k).
            true => side(m, k, true),
            false => side(k, m, false),
        },
    ]
}

fn alignment(address: u64) -> u64 {
    match address {
        0 => ALIGNMENT,
        address => (1 << address.trailing_zeros().min(63)).min(ALIGNMENT),
    }
}

impl CublasLt {
    /// The library, or `None` where it cannot be loaded or does not start.
    pub(super) fn open() -> Option<Self> {
        // SAFETY: loads NVIDIA's library, whose initializers have no preconditions.
        if !unsafe { sys::is_culib_present() } {
            return None;
        }
        Some(Self {
            handle: result::create_handle().ok()?,
            prepared: HashMap::new(),
        })
    }

    /// y (m, n) = a b, plus what y was if that is asked for, in the order of the stream; false for a
    /// product that the library does not do.
    ///
    /// # Errors
    /// `Device` with the library's name for what is wrong.
    pub(super) fn product(&mut self, product: &VendorProduct, stream: CUstream) -> Result<bool> {
        let key = Key {
            sides: sides(product),
            shape: [product.m, product.n, product.k],
            dtype: product.dtype,
            out: product.out,
            accumulate: product.accumulate,
            alignments: [product.a, product.b, product.y].map(alignment),
            workspace: product.workspace_bytes,
        };
        let handle = self.handle;
        let prepared = self.prepared.entry(key);
        let prepared = match prepared {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => match prepare(handle, &key) {
                Ok(prepared) => place.insert(Some(prepared)),
                Err(error) if is_refusal(&error) => place.insert(None),
                Err(error) => return Err(failed(&format!("preparing {product:?}"), error)),
            },
        };
        let Some(ready) = prepared else {
            return Ok(false);
        };
        let one = 1.0f32;
        let kept = if product.accumulate { 1.0f32 } else { 0.0 };
        let pointer = |address: u64| address as *mut std::ffi::c_void;
        // SAFETY: handle, description and layouts are alive while `self` is; the two factors are
        // read during the call; the addresses are the caller's to name, with the sizes that the
        // layouts say. The two kinds of streams are the same.
        let done = unsafe {
            result::matmul(
                handle,
                ready.description.0,
                (&raw const one).cast(),
                (&raw const kept).cast(),
                pointer(product.b),
                ready.sides[0].0,
                pointer(product.a),
                ready.sides[1].0,
                pointer(product.y),
                ready.out.0,
                pointer(product.y),
                ready.out.0,
                &ready.algorithm,
                pointer(product.workspace),
                product.workspace_bytes,
                stream.cast(),
            )
        };
        match done {
            Ok(()) => Ok(true),
            Err(error) if is_refusal(&error) => {
                *prepared = None;
                Ok(false)
            }
            Err(error) => Err(failed(&format!("{product:?}"), error)),
        }
    }
}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: made by `open`, destroyed once. A failure leaves nothing to do.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// Whether the library says that it does not do such a product, which leaves everything as it was.
fn is_refusal(error: &result::CublasError) -> bool {
    use sys::cublasStatus_t::*;
    matches!(
        error.0,
        CUBLAS_STATUS_NOT_SUPPORTED | CUBLAS_STATUS_INVALID_VALUE | CUBLAS_STATUS_ARCH_MISMATCH
    )
}

fn failed(doing: &str, error: result::CublasError) -> Error {
    Error::new(ErrorKind::Device, format!("cuBLASLt, {doing}: {error}"))
}

fn format_of(dtype: DType) -> sys::cudaDataType {
    match dtype {
        DType::F32 => sys::cudaDataType::CUDA_R_32F,
        DType::BF16 => sys::cudaDataType::CUDA_R_16BF,
        DType::F16 => sys::cudaDataType::CUDA_R_16F,
    }
}

/// Asks the library for the kernel that it holds for the quickest.
fn prepare(
    handle: sys::cublasLtHandle_t,
    key: &Key,
) -> std::result::Result<Prepared, result::CublasError> {
    use sys::cublasLtMatmulDescAttributes_t::{
        CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB,
    };
    use sys::cublasLtMatmulPreferenceAttributes_t::*;

    // Sums in float32; for factors in float32 the products are as well, not in TF32.
    let description = Description(result::create_matmul_desc(
        sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
        sys::cudaDataType::CUDA_R_32F,
    )?);
    let names = [CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB];
    for (name, side) in names.into_iter().zip(key.sides) {
        // CUBLAS_OP_T and CUBLAS_OP_N
        let operation = i32::from(side.transposed);
        // SAFETY: the description is alive; the attribute is an enumeration of 4 bytes.
        unsafe {
            result::set_matmul_desc_attribute(
                description.0,
                name,
                (&raw const operation).cast(),
                size_of_val(&operation),
            )?;
        }
    }
    let layout = |dtype, rows: usize, columns: usize| {
        result::create_matrix_layout(format_of(dtype), rows as u64, columns as u64, rows as i64)
            .map(Layout)
    };
    let [b, a] = key.sides;
    let b = layout(key.dtype, b.rows, b.columns)?;
    let a = layout(key.dtype, a.rows, a.columns)?;
    let [m, n, _] = key.shape;
    let out = layout(key.out, n, m)?;

    let preference = Preference(result::create_matmul_pref()?);
    let workspace = key.workspace as u64;
    // SAFETY: the preference is alive; the attribute is a number of 8 bytes.
    unsafe {
        result::set_matmul_pref_attribute(
            preference.0,
            CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
            (&raw const workspace).cast(),
            size_of_val(&workspace),
        )?;
    }
    let [of_a, of_b, of_y] = key.alignments.map(|alignment| alignment as u32);
    for (name, bytes) in [
        (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, of_b),
        (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, of_a),
        (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, of_y),
        (CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, of_y),
    ] {
        // SAFETY: the preference is alive; the attribute is a number of 4 bytes.
        unsafe {
            result::set_matmul_pref_attribute(
                preference.0,
                name,
                (&raw const bytes).cast(),
                size_of_val(&bytes),
            )?;
        }
    }
    // SAFETY: everything is alive.
    let found = unsafe {
        result::get_matmul_algo_heuristic(
            handle,
            description.0,
            b.0,
            a.0,
            out.0,
            out.0,
            preference.0,
        )?
    };
    Ok(Prepared {
        description,
        sides: [b, a],
        out,
        algorithm: found.algo,
    })
}

/// Things of the library's that are destroyed with their values.
struct Description(sys::cublasLtMatmulDesc_t);
struct Layout(sys::cublasLtMatrixLayout_t);
struct Preference(sys::cublasLtMatmulPreference_t);

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made by the library, destroyed once; here and below.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: as above.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(m: usize, n: usize, k: usize, transposed: (bool, bool)) -> VendorProduct {
        VendorProduct {
            m,
            n,
            k,
            dtype: DType::F32,
            out: DType::F32,
            a: 0,
            a_transposed: transposed.0,
            b: 0,
            b_transposed: transposed.1,
            y: 0,
            accumulate: false,
            workspace: 0,
            workspace_bytes: 0,
        }
    }

    /// What the library's documentation says of its factors, written out: column-major, leading
    /// dimension = rows.
    fn column_major(side: Side, numbers: &[f64], row: usize, column: usize) -> f64 {
        match side.transposed {
            false => numbers[column * side.rows + row],
            true => numbers[row * side.rows + column],
        }
    }

    #[test]
    fn the_columns_of_the_library_are_our_rows() {
        let (m, n, k) = (3, 5, 4);
        let a: Vec<f64> = (0..m * k).map(|i| (i * i % 17) as f64).collect();
        let b: Vec<f64> = (0..k * n).map(|i| (i * 7 % 13) as f64).collect();
        for transposed in [(false, false), (false, true), (true, false), (true, true)] {
            let [first, second] = sides(&product(m, n, k, transposed));
            for row in 0..m {
                for column in 0..n {
                    let ours: f64 = (0..k)
                        .map(|i| {
                            let left = if transposed.0 {
                                i * m + row
                            } else {
                                row * k + i
                            };
                            let right = if transposed.1 {
                                column * k + i
                            } else {
                                i * n + column
                            };
                            a[left] * b[right]
                        })
                        .sum();
                    // Element (column, row) of the library's (n, m).
                    let theirs: f64 = (0..k)
                        .map(|i| {
                            column_major(first, &b, column, i) * column_major(second, &a, i, row)
                        })
                        .sum();
                    assert_eq!(ours, theirs, "{transposed:?} ({row}, {column})");
                }
            }
        }
    }

    #[test]
    fn an_address_is_as_aligned_as_its_low_bits_say() {
        assert_eq!(alignment(2), 2);
        assert_eq!(alignment(48), 16);
        assert_eq!(alignment(4096), 256);
        assert_eq!(alignment(0), 256);
        assert_eq!(alignment(1 << 63), 256);
    }
}
