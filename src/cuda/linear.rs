//! Launches of `kernels/linear.cu`, `linear_f32.cu` and `linear_sums.cu`: which tile, and how many
//! cuts along the summed index, so that a product of any size fills the device.

use super::{Arg, Cuda, Launch, kernel};
use crate::dtype::DType;
use crate::ops::{Linear, LinearShape, Region};

/// y (m, n) = Σ over k of a·b, with operands stored as the layout says.
#[derive(Clone, Copy, Debug)]
struct Product {
    layout: Layout,
    m: usize,
    n: usize,
    k: usize,
}

#[derive(Clone, Copy, Debug)]
enum Layout {
    /// a (m, k), b (n, k): forward.
    Nt,
    /// a (m, k), b (k, n): the gradient of x.
    Nn,
    /// a (k, m), b (k, n): the gradient of the weight.
    Tn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tile {
    /// 128 × 128.
    Large,
    /// 64 × 64.
    Small,
    /// 64 × 64 of half-precision operands whose rows are not whole 16 bytes.
    Any,
}

/// Of the summed index, in one stage of the half-precision kernels; cuts are whole multiples.
const SLICE: usize = 32;
/// Numbers that a thread of the half-precision kernels copies at once.
const CHUNK: usize = 8;
const STAGES: usize = 3;
/// Threads of a product in half precision, and in float32.
const HALF_THREADS: u32 = 128;
const F32_THREADS: u32 = 256;
/// Of the summed index in one slice of the float32 kernels.
const F32_SLICE: usize = 16;
/// Threads of `linear_sums.cu`.
const SUMS_THREADS: u32 = 256;

impl Tile {
    fn size(self) -> usize {
        match self {
            Tile::Large => 128,
            Tile::Small | Tile::Any => 64,
        }
    }

    /// Bytes of dynamic shared memory.
    fn shared(self, dtype: DType) -> usize {
        match dtype {
            // Two slices of each operand, rows 16 bytes apart in banks.
            DType::F32 => 2 * 2 * F32_SLICE * (self.size() + 4) * 4,
            half => STAGES * 2 * self.size() * SLICE * half.size(),
        }
    }
}

/// How a product is laid over the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Plan {
    tile: Tile,
    /// Parts of the summed index, each with float32 sums of its own when there are several.
    cuts: usize,
    k_per_cut: usize,
}

impl Plan {
    /// The quickest of the tiles by this reckoning, whose unit is the time in which one
    /// multiprocessor multiplies a slice of the large tile. Its constants are reasoned, not measured.
    fn choose(
        (m, n, k): (usize, usize, usize),
        tiles: &[Tile],
        multiprocessors: usize,
        workspace: usize,
    ) -> Plan {
        // A warp of the small tile reads twice the shared memory for each matrix instruction.
        const SMALL: f64 = 0.25 / 0.6;
        // Slices' worth of filling the pipeline and of writing the tile.
        const ENDS: f64 = 4.0;
        // A second kernel; and sums that one multiprocessor writes and reads again.
        const LAUNCH: f64 = 8.0;
        const SUMS: f64 = 700.0;
        const SLICES_PER_CUT: usize = 4;

        let slices = k.div_ceil(SLICE).max(1);
        let most = (slices / SLICES_PER_CUT).min(workspace / (m * n)).max(1);
        let mut best: Option<(f64, Plan)> = None;
        for &tile in tiles {
            let blocks = m.div_ceil(tile.size()) * n.div_ceil(tile.size());
            for wanted in 1..=most {
                let slices_per_cut = slices.div_ceil(wanted);
                let cuts = slices.div_ceil(slices_per_cut);
                if cuts < wanted {
                    continue;
                }
                let weight = if tile == Tile::Large { 1.0 } else { SMALL };
                let waves = (blocks * cuts).div_ceil(multiprocessors) as f64;
                let mut time = waves * weight * (slices_per_cut as f64 + ENDS);
                if cuts > 1 {
                    time += LAUNCH + (m * n * cuts) as f64 / (SUMS * multiprocessors as f64);
                }
                if best.is_none_or(|(least, _)| time < least) {
                    let k_per_cut = slices_per_cut * SLICE;
                    let plan = Plan {
                        tile,
                        cuts,
                        k_per_cut,
                    };
                    best = Some((time, plan));
                }
                // One block for each multiprocessor is full; more cuts only add sums.
                if blocks * cuts > 4 * multiprocessors {
                    break;
                }
            }
        }
        best.expect("a tile").1
    }
}

fn kernel_name(dtype: DType, layout: Layout, tile: Tile) -> &'static str {
    match (layout, tile) {
        (Layout::Nt, Tile::Large) => kernel!(dtype, "linear_nt_128"),
        (Layout::Nt, Tile::Small) => kernel!(dtype, "linear_nt_64"),
        (Layout::Nt, Tile::Any) => kernel!(dtype, "linear_nt_any"),
        (Layout::Nn, Tile::Large) => kernel!(dtype, "linear_nn_128"),
        (Layout::Nn, Tile::Small) => kernel!(dtype, "linear_nn_64"),
        (Layout::Nn, Tile::Any) => kernel!(dtype, "linear_nn_any"),
        (Layout::Tn, Tile::Large) => kernel!(dtype, "linear_tn_128"),
        (Layout::Tn, Tile::Small) => kernel!(dtype, "linear_tn_64"),
        (Layout::Tn, Tile::Any) => kernel!(dtype, "linear_tn_any"),
    }
}

/// Whether the rows of both operands are whole chunks, so that all chunks are aligned if the first is.
fn rows_are_whole(layout: Layout, m: usize, n: usize, k: usize) -> bool {
    let lengths = match layout {
        Layout::Nt => [k, k],
        Layout::Nn => [k, n],
        Layout::Tn => [m, n],
    };
    lengths.iter().all(|length| length % CHUNK == 0)
}

/// What is added to a product before it is stored.
#[derive(Clone, Copy, Default)]
struct Added {
    /// F32 `(n)`.
    bias: Option<Region>,
    /// F32 `(m, n)`; may be y itself.
    residual: Option<Region>,
}

impl Cuda {
    fn product(&mut self, product: Product, a: Region, b: Region, added: Added, y: Region) {
        let Product { layout, m, n, k } = product;
        let dtype = a.dtype;
        assert_eq!(b.dtype, dtype, "formats of the operands of a product");
        assert_eq!(
            (a.len, b.len, y.len),
            (m * k, n * k, m * n),
            "sizes of a product {product:?}"
        );
        assert!(
            y.dtype == DType::F32 || y.dtype == dtype,
            "a product of {dtype:?} stored as {:?}",
            y.dtype
        );
        let whole = rows_are_whole(layout, m, n, k) && (a.offset | b.offset) % 16 == 0;
        let tiles: &[Tile] = match dtype == DType::F32 || whole {
            true => &[Tile::Large, Tile::Small],
            false => &[Tile::Any],
        };
        let multiprocessors = self.limits.multiprocessors.max(1) as usize;
        let plan = Plan::choose((m, n, k), tiles, multiprocessors, self.workspace.len);
        self.product_by(plan, product, a, b, added, y);
    }

    fn product_by(
        &mut self,
        plan: Plan,
        product: Product,
        a: Region,
        b: Region,
        added: Added,
        y: Region,
    ) {
        let Product { layout, m, n, k } = product;
        let dtype = a.dtype;
        let sums = self.workspace.first(match plan.cuts {
            1 => 0,
            cuts => cuts * m * n,
        });
        let (stored, now) = match plan.cuts {
            1 => (y, added),
            _ => (sums, Added::default()),
        };
        let mut arguments = vec![
            self.address(a),
            self.address(b),
            self.optional_address(now.bias),
            self.optional_address(now.residual),
        ];
        if dtype == DType::F32 {
            arguments.push(self.address(stored));
        } else {
            arguments.extend(self.by_format(stored));
        }
        arguments.extend([m, n, k, plan.k_per_cut].map(number));
        let size = plan.tile.size();
        let launch = Launch {
            grid: [
                (m.div_ceil(size) * n.div_ceil(size)) as u32,
                plan.cuts as u32,
                1,
            ],
            threads: if dtype == DType::F32 {
                F32_THREADS
            } else {
                HALF_THREADS
            },
            shared_bytes: plan.tile.shared(dtype) as u32,
        };
        self.launch(kernel_name(dtype, layout, plan.tile), launch, &arguments);
        if plan.cuts > 1 {
            self.finish(sums, plan.cuts, added, y, n);
        }
    }

    /// y = the sum of the cuts, and what is added, in rows of n.
    fn finish(&mut self, sums: Region, cuts: usize, added: Added, y: Region, n: usize) {
        let mut arguments = vec![
            self.address(sums),
            self.optional_address(added.bias),
            self.optional_address(added.residual),
        ];
        arguments.extend(self.by_format(y));
        arguments.extend([y.len, n, cuts].map(number));
        let most = 16 * self.limits.multiprocessors.max(1) as usize;
        let blocks = y.len.div_ceil(SUMS_THREADS as usize).min(most);
        let launch = Launch::blocks(blocks, SUMS_THREADS);
        self.launch(kernel!(y.dtype, "linear_finish"), launch, &arguments);
    }

    /// The address as half-precision numbers, and as float32; one of them null.
    fn by_format(&self, y: Region) -> [Arg; 2] {
        match y.dtype {
            DType::F32 => [Arg::Address(0), self.address(y)],
            _ => [self.address(y), Arg::Address(0)],
        }
    }

    /// dbias += Σ over rows of dy.
    fn bias_gradient(&mut self, rows: usize, columns: usize, dy: Region, dbias: Region) {
        // A part is worth a block from 8 rows for each of its 8 warps.
        const ROWS_PER_PART: usize = 64;
        let width = 16 / dy.dtype.size();
        let whole = columns % width == 0 && dy.offset % 16 == 0;
        let (kernel, width) = match whole {
            true => (kernel!(dy.dtype, "linear_column_sums"), width),
            false => (kernel!(dy.dtype, "linear_column_sums_any"), 1),
        };
        let blocks = columns.div_ceil(32 * width);
        let fill = (4 * self.limits.multiprocessors as usize).div_ceil(blocks);
        let parts = rows
            .div_ceil(ROWS_PER_PART)
            .min(fill)
            .min(self.workspace.len / columns)
            .max(1);
        let rows_per_part = rows.div_ceil(parts);
        let parts = rows.div_ceil(rows_per_part);
        let sums = self.workspace.first(parts * columns);
        let launch = Launch {
            grid: [blocks as u32, parts as u32, 1],
            threads: SUMS_THREADS,
            shared_bytes: 0,
        };
        let mut arguments = vec![self.address(dy), self.address(sums)];
        arguments.extend([rows, columns, rows_per_part].map(number));
        self.launch(kernel, launch, &arguments);
        let added = Added {
            bias: None,
            residual: Some(dbias),
        };
        self.finish(sums, parts, added, dbias, columns);
    }
}

fn number(size: usize) -> Arg {
    Arg::U32(u32::try_from(size).expect("a matrix has fewer than 2^32 rows and columns"))
}

impl Linear for Cuda {
    fn linear_forward(
        &mut self,
        shape: LinearShape,
        x: Region,
        weight: Region,
        bias: Option<Region>,
        residual: Option<Region>,
        y: Region,
    ) {
        let LinearShape {
            rows,
            inputs,
            outputs,
        } = shape;
        if rows > 0 {
            let product = Product {
                layout: Layout::Nt,
                m: rows,
                n: outputs,
                k: inputs,
            };
            self.product(product, x, weight, Added { bias, residual }, y);
        }
    }

    fn linear_backward_input(
        &mut self,
        shape: LinearShape,
        dy: Region,
        weight: Region,
        dx: Region,
    ) {
        let LinearShape {
            rows,
            inputs,
            outputs,
        } = shape;
        if rows > 0 {
            let product = Product {
                layout: Layout::Nn,
                m: rows,
                n: inputs,
                k: outputs,
            };
            self.product(product, dy, weight, Added::default(), dx);
        }
    }

    fn linear_backward_weight(
        &mut self,
        shape: LinearShape,
        dy: Region,
        x: Region,
        dweight: Region,
        dbias: Option<Region>,
    ) {
        let LinearShape {
            rows,
            inputs,
            outputs,
        } = shape;
        if rows > 0 {
            let product = Product {
                layout: Layout::Tn,
                m: outputs,
                n: inputs,
                k: rows,
            };
            let added = Added {
                bias: None,
                residual: Some(dweight),
            };
            self.product(product, dy, x, added, dweight);
            if let Some(dbias) = dbias {
                self.bias_gradient(rows, outputs, dy, dbias);
            }
        }
    }
}

#[cfg(all(test, feature = "emulate"))]
#[path = "linear_tests.rs"]
mod emulated;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const H100: usize = 132;
    const WORKSPACE: usize = 8 << 20;
    const ALIGNED: &[Tile] = &[Tile::Large, Tile::Small];

    fn plan(sizes: (usize, usize, usize)) -> Plan {
        Plan::choose(sizes, ALIGNED, H100, WORKSPACE)
    }

    #[test]
    fn many_tiles_are_large_and_not_cut() {
        let Plan { tile, cuts, .. } = plan((4096, 4096, 4096));
        assert_eq!((tile, cuts), (Tile::Large, 1));
    }

    #[test]
    fn a_small_weight_of_many_tokens_is_cut() {
        let Plan { cuts, .. } = plan((576, 576, 16384));
        assert!(cuts >= 4, "{cuts}");
    }

    #[test]
    fn one_row_takes_small_tiles() {
        assert_eq!(plan((1, 49152, 576)).tile, Tile::Small);
    }

    #[test]
    fn a_little_product_is_one_block() {
        let Plan { tile, cuts, .. } = plan((1, 1, 1));
        assert_eq!((tile, cuts), (Tile::Small, 1));
    }

    proptest! {
        #[test]
        fn cuts_share_the_sum_without_an_empty_one(
            m in 1..2000usize, n in 1..2000usize, k in 1..20000usize, multiprocessors in 1..200usize,
        ) {
            let Plan { cuts, k_per_cut, .. } =
                Plan::choose((m, n, k), ALIGNED, multiprocessors, WORKSPACE);
            prop_assert_eq!(cuts, k.div_ceil(k_per_cut));
            prop_assert!(cuts == 1 || k_per_cut % SLICE == 0 && cuts * m * n <= WORKSPACE);
        }
    }

    /// The numbers that the kernels and their launches share.
    #[test]
    fn constants_are_those_of_the_kernels() {
        let half = include_str!("../../kernels/linear.cu");
        let single = include_str!("../../kernels/linear_f32.cu");
        let sums = include_str!("../../kernels/linear_sums.cu");
        for (source, name, value) in [
            (half, "THREADS", HALF_THREADS as usize),
            (half, "DEPTH", SLICE),
            (half, "STAGES", STAGES),
            (half, "CHUNK", CHUNK),
            (single, "THREADS", F32_THREADS as usize),
            (single, "DEPTH", F32_SLICE),
            (sums, "THREADS", SUMS_THREADS as usize),
        ] {
            let line = format!("constexpr u32 {name} = {value};");
            assert!(source.contains(&line), "{line}");
        }
    }
}
