//! Every product kernel, emulated, against float64: each layout, format, tile and end, on sizes
//! below, at and above those of tiles, and cut or whole.

use super::*;
use crate::ops::Backend;
use crate::rng::Stream;

const ARENA: usize = 4 << 20;
/// (m, n, k): whole tiles; edges in whole chunks; odd sizes; less than a chunk.
const SIZES: [(usize, usize, usize); 6] = [
    (128, 128, 96),
    (136, 200, 264),
    (8, 264, 40),
    (72, 8, 8),
    (129, 67, 203),
    (3, 1, 1),
];

/// A device with tensors put one behind the other.
struct Device {
    cuda: Cuda,
    used: usize,
}

impl Device {
    fn new(seed: u64) -> Self {
        let mut cuda = Cuda::emulated(seed).unwrap();
        let workspace = Region {
            offset: ARENA,
            len: Cuda::WORKSPACE_BYTES / 4,
            dtype: DType::F32,
        };
        cuda.allocate(ARENA + Cuda::WORKSPACE_BYTES, workspace)
            .unwrap();
        Self { cuda, used: 0 }
    }

    fn put(&mut self, values: &[f32], dtype: DType) -> Region {
        let region = Region {
            offset: self.used,
            len: values.len(),
            dtype,
        };
        self.used = (self.used + values.len() * 4).next_multiple_of(16);
        assert!(self.used <= ARENA);
        self.cuda.upload(region, values);
        region
    }

    fn get(&mut self, region: Region) -> Vec<f32> {
        self.cuda.status().unwrap();
        let mut values = vec![0.0; region.len];
        self.cuda.download(region, &mut values);
        values
    }

    /// Normal numbers, as the format has them.
    fn normals(&mut self, seed: u64, len: usize, dtype: DType) -> (Region, Vec<f32>) {
        let stream = Stream::new(seed, 0);
        let values: Vec<f32> = (0..len as u64).map(|i| stream.normal(i) as f32).collect();
        let region = self.put(&values, dtype);
        (region, self.get(region))
    }
}

/// Unit roundoff: what one rounding to a format errs by, relative to the number.
fn roundoff(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 2f64.powi(-24),
        DType::F16 => 2f64.powi(-11),
        DType::BF16 => 2f64.powi(-8),
    }
}

/// What is done with the sums.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    /// Stored in the operands' format.
    Plain,
    /// With a bias, in the operands' format.
    Biased,
    /// With bias and residual, in float32.
    Residual,
    /// With a residual alone, in float32.
    ResidualAlone,
    /// Added to what stands there, in float32.
    Accumulated,
}

/// By the kernels of a plan; without one, by the vendor's library.
fn check(seed: u64, plan: Option<Plan>, dtype: DType, product: Product, end: End) {
    let Product { layout, m, n, k } = product;
    let mut device = Device::new(seed);
    let (a, a_values) = device.normals(1, m * k, dtype);
    let (b, b_values) = device.normals(2, n * k, dtype);
    let (bias, bias_values) = device.normals(3, n, DType::F32);
    let (residual, residual_values) = device.normals(4, m * n, DType::F32);
    let (added, y) = match end {
        End::Plain => (Added::default(), None),
        End::Biased => (
            Added {
                bias: Some(bias),
                residual: None,
            },
            None,
        ),
        End::ResidualAlone => {
            let y = device.put(&vec![f32::NAN; m * n], DType::F32);
            let residual = Some(residual);
            (
                Added {
                    bias: None,
                    residual,
                },
                Some(y),
            )
        }
        End::Residual => {
            let y = device.put(&vec![f32::NAN; m * n], DType::F32);
            (
                Added {
                    bias: Some(bias),
                    residual: Some(residual),
                },
                Some(y),
            )
        }
        End::Accumulated => (
            Added {
                bias: None,
                residual: Some(residual),
            },
            Some(residual),
        ),
    };
    let y = y.unwrap_or_else(|| device.put(&vec![f32::NAN; m * n], dtype));
    let after = device.put(&[7.0; 8], DType::F32);
    match plan {
        Some(plan) => device.cuda.product_by(plan, product, a, b, added, y),
        None => {
            device.cuda.set_gemm(GemmProvider::CublasLt).unwrap();
            device.cuda.product(product, a, b, added, y);
        }
    }
    let results = device.get(y);
    assert_eq!(
        device.get(after),
        [7.0; 8],
        "written behind y: {product:?} {plan:?}"
    );

    for i in 0..m {
        for j in 0..n {
            let (mut sum, mut terms) = (0.0, 0.0);
            for l in 0..k {
                let (a, b) = match layout {
                    Layout::Nt => (a_values[i * k + l], b_values[j * k + l]),
                    Layout::Nn => (a_values[i * k + l], b_values[l * n + j]),
                    Layout::Tn => (a_values[l * m + i], b_values[l * n + j]),
                };
                sum += f64::from(a) * f64::from(b);
                terms += (f64::from(a) * f64::from(b)).abs();
            }
            let mut add = |value: f32| {
                sum += f64::from(value);
                terms += f64::from(value).abs();
            };
            if matches!(end, End::Biased | End::Residual) {
                add(bias_values[j]);
            }
            if !matches!(end, End::Plain | End::Biased) {
                add(residual_values[i * n + j]);
            }
            let bound =
                (k + 2) as f64 * roundoff(DType::F32) * terms + roundoff(y.dtype) * sum.abs();
            let result = f64::from(results[i * n + j]);
            assert!(
                (result - sum).abs() <= bound,
                "{dtype:?} {product:?} {plan:?} {end:?} at ({i}, {j}): {result}, expected {sum}"
            );
        }
    }
}

/// Each tile that the product may have, whole and in as many cuts as there are, at most three.
fn plans(dtype: DType, product: Product) -> Vec<Plan> {
    let k = product.k;
    let tiles: &[Tile] = match dtype == DType::F32 {
        true => &[Tile::Large, Tile::Small],
        false if product.rows_are_whole() => &[Tile::Large, Tile::Small, Tile::Any],
        false => &[Tile::Any],
    };
    let mut plans = Vec::new();
    for &tile in tiles {
        for wanted in [1, 3] {
            let k_per_cut = k.div_ceil(wanted).next_multiple_of(tile.slice());
            let cuts = k.div_ceil(k_per_cut);
            plans.push(Plan {
                tile,
                cuts,
                k_per_cut,
            });
        }
    }
    plans.dedup();
    plans
}

fn check_all(dtype: DType, layout: Layout) {
    for (m, n, k) in SIZES {
        let product = Product { layout, m, n, k };
        for (number, plan) in plans(dtype, product).into_iter().enumerate() {
            let ends = [End::Plain, End::Biased, End::Residual, End::Accumulated];
            // All ends where they are made differently: by pairs, and by single numbers.
            let few = if number == 0 { 4 } else { 2 };
            for end in ends.into_iter().cycle().skip(number * 2).take(few) {
                check(number as u64 + 1, Some(plan), dtype, product, end);
            }
        }
    }
}

#[test]
fn products_of_bf16_agree_with_float64() {
    check_all(DType::BF16, Layout::Nt);
    check_all(DType::BF16, Layout::Nn);
    check_all(DType::BF16, Layout::Tn);
}

#[test]
fn products_of_f16_agree_with_float64() {
    check_all(DType::F16, Layout::Nt);
    check_all(DType::F16, Layout::Nn);
    check_all(DType::F16, Layout::Tn);
}

#[test]
fn products_of_f32_agree_with_float64() {
    check_all(DType::F32, Layout::Nt);
    check_all(DType::F32, Layout::Nn);
    check_all(DType::F32, Layout::Tn);
}

/// The emulated device does the vendor's products by their definition, so this is about what is asked.
#[test]
fn products_by_the_vendor_are_asked_for_with_the_right_factors() {
    for layout in [Layout::Nt, Layout::Nn, Layout::Tn] {
        for dtype in [DType::F32, DType::BF16] {
            for end in [
                End::Plain,
                End::Biased,
                End::ResidualAlone,
                End::Accumulated,
            ] {
                let [m, n, k] = [9, 16, 24];
                check(1, None, dtype, Product { layout, m, n, k }, end);
            }
        }
    }
}

#[test]
fn the_gradient_of_a_bias_adds_up_all_rows() {
    for dtype in [DType::F32, DType::BF16, DType::F16] {
        for (rows, columns) in [(1, 1), (300, 9), (1000, 264), (65, 1030)] {
            let mut device = Device::new(3);
            let (dy, dy_values) = device.normals(1, rows * columns, dtype);
            let (dbias, before) = device.normals(2, columns, DType::F32);
            device.cuda.bias_gradient(rows, columns, dy, dbias);
            for (j, after) in device.get(dbias).into_iter().enumerate() {
                let column = (0..rows).map(|i| f64::from(dy_values[i * columns + j]));
                let sum = f64::from(before[j]) + column.clone().sum::<f64>();
                let terms = f64::from(before[j]).abs() + column.map(f64::abs).sum::<f64>();
                let bound = (rows + 1) as f64 * roundoff(DType::F32) * terms;
                assert!(
                    (f64::from(after) - sum).abs() <= bound,
                    "{dtype:?} {rows} {columns} {j}"
                );
            }
        }
    }
}

/// Sums in an order that depends on nothing but the sizes.
#[test]
fn the_order_of_threads_does_not_change_bits() {
    let product = Product {
        layout: Layout::Tn,
        m: 136,
        n: 72,
        k: 520,
    };
    let run = |seed| {
        let mut device = Device::new(seed);
        let (a, _) = device.normals(1, product.m * product.k, DType::BF16);
        let (b, _) = device.normals(2, product.n * product.k, DType::BF16);
        let (y, _) = device.normals(3, product.m * product.n, DType::F32);
        let added = Added {
            bias: None,
            residual: Some(y),
        };
        device.cuda.product(product, a, b, added, y);
        device
            .get(y)
            .into_iter()
            .map(f32::to_bits)
            .collect::<Vec<_>>()
    };
    let first = run(1);
    assert!((2..5).all(|seed| run(seed) == first));
}
