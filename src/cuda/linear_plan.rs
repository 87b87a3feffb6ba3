//! How a matrix product is laid over the device: which kernel, and how many cuts along the summed
//! index. Pure: from sizes alone.

use crate::dtype::DType;
use serde::{Deserialize, Serialize};

/// y (m, n) = Σ over k of a·b, with operands stored as the layout says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    pub layout: Layout,
    pub m: usize,
    pub n: usize,
    pub k: usize,
}

/// How the factors of a product lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Layout {
    /// a (m, k), b (n, k): forward.
    Nt,
    /// a (m, k), b (k, n): the gradient of x.
    Nn,
    /// a (k, m), b (k, n): the gradient of the weight.
    Tn,
}

/// Numbers that a thread of `linear.cu` copies at once.
pub(super) const CHUNK: usize = 8;

impl Product {
    /// Whether the rows of both operands are whole chunks, so that all chunks are aligned if the
    /// first is.
    pub fn rows_are_whole(self) -> bool {
        let lengths = match self.layout {
            Layout::Nt => [self.k, self.k],
            Layout::Nn => [self.k, self.n],
            Layout::Tn => [self.m, self.n],
        };
        lengths.iter().all(|length| length.is_multiple_of(CHUNK))
    }
}

/// A kernel's share of y.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tile {
    /// 128 × 128.
    Large,
    /// 64 × 64.
    Small,
    /// 64 × 64 of half-precision operands whose rows are not whole 16 bytes.
    Any,
    /// 128 × 256 by the matrix instructions of compute capability 9.0.
    Wgmma,
}

/// Slices of an operand that wait in shared memory, in `linear.cu` and `linear_wgmma.cu`.
pub(super) const STAGES: usize = 3;
pub(super) const WGMMA_STAGES: usize = 4;
/// Of the summed index in one slice of the float32 kernels.
pub(super) const F32_SLICE: usize = 16;

impl Tile {
    /// Rows and columns.
    pub fn size(self) -> (usize, usize) {
        match self {
            Tile::Large => (128, 128),
            Tile::Small | Tile::Any => (64, 64),
            Tile::Wgmma => (128, 256),
        }
    }

    /// Of the summed index, in one slice of the half-precision kernels. Cuts are whole slices.
    pub fn slice(self) -> usize {
        match self {
            Tile::Wgmma => 64,
            _ => 32,
        }
    }

    /// Tiles of y.
    pub fn count(self, product: Product) -> usize {
        let (rows, columns) = self.size();
        product.m.div_ceil(rows) * product.n.div_ceil(columns)
    }

    /// Threads of a block.
    pub fn threads(self, dtype: DType) -> u32 {
        match (self, dtype) {
            (Tile::Wgmma, _) => 384,
            (_, DType::F32) => 256,
            _ => 128,
        }
    }

    /// Bytes of dynamic shared memory.
    pub fn shared(self, dtype: DType) -> usize {
        let (rows, columns) = self.size();
        match (self, dtype) {
            // Stages begin at a multiple of 1024, the shared memory anywhere.
            (Tile::Wgmma, half) => {
                WGMMA_STAGES * (rows + columns) * self.slice() * half.size() + 1024
            }
            // Two slices of each operand, rows 16 bytes apart in banks.
            (_, DType::F32) => 2 * F32_SLICE * (rows + 4 + columns + 4) * 4,
            (_, half) => STAGES * (rows + columns) * self.slice() * half.size(),
        }
    }

    /// The time for a slice, relative to the large tile's. Reasoned, not measured: a warp of the small
    /// tile reads twice the shared memory for each matrix instruction, and Hopper's own instructions
    /// do about 1.7 times as much as the older ones.
    fn time(self) -> f64 {
        match self {
            Tile::Large => 1.0,
            Tile::Small | Tile::Any => 0.25 / 0.6,
            Tile::Wgmma => 4.0 / 1.7,
        }
    }
}

/// What is there to work with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub multiprocessors: usize,
    /// Float32 numbers of scratch memory.
    pub workspace: usize,
}

/// How a product is laid over the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub tile: Tile,
    /// Parts of the summed index, each with float32 sums of its own when there are several.
    pub cuts: usize,
    pub k_per_cut: usize,
}

impl Plan {
    /// The quickest by this reckoning, whose unit is the time in which one multiprocessor multiplies
    /// a slice of the large tile. Its constants are reasoned, not measured.
    pub fn choose(product: Product, tiles: &[Tile], room: Room) -> Plan {
        // Slices' worth of filling the pipeline and of writing the tile.
        const ENDS: f64 = 4.0;
        // A second kernel; and sums that one multiprocessor writes and reads again.
        const LAUNCH: f64 = 8.0;
        const SUMS: f64 = 700.0;
        const SLICES_PER_CUT: usize = 4;

        let Product { m, n, k, .. } = product;
        let mut best: Option<(f64, Plan)> = None;
        for &tile in tiles {
            let blocks = tile.count(product);
            let slices = k.div_ceil(tile.slice()).max(1);
            let most = (slices / SLICES_PER_CUT)
                .min(room.workspace / (m * n))
                .max(1);
            for wanted in 1..=most {
                let slices_per_cut = slices.div_ceil(wanted);
                let cuts = slices.div_ceil(slices_per_cut);
                if cuts < wanted {
                    continue;
                }
                let waves = (blocks * cuts).div_ceil(room.multiprocessors) as f64;
                let mut time = waves * tile.time() * (slices_per_cut as f64 + ENDS);
                if cuts > 1 {
                    time += LAUNCH + (m * n * cuts) as f64 / (SUMS * room.multiprocessors as f64);
                }
                if best.is_none_or(|(least, _)| time < least) {
                    let k_per_cut = slices_per_cut * tile.slice();
                    let plan = Plan {
                        tile,
                        cuts,
                        k_per_cut,
                    };
                    best = Some((time, plan));
                }
                // The device is full; more cuts only add sums.
                if blocks * cuts > 4 * room.multiprocessors {
                    break;
                }
            }
        }
        best.expect("a tile to choose").1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const H100: Room = Room {
        multiprocessors: 132,
        workspace: 8 << 20,
    };
    const ALIGNED: &[Tile] = &[Tile::Large, Tile::Small];

    fn product((m, n, k): (usize, usize, usize)) -> Product {
        let layout = Layout::Nt;
        Product { layout, m, n, k }
    }

    fn plan(sizes: (usize, usize, usize)) -> Plan {
        Plan::choose(product(sizes), ALIGNED, H100)
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
    fn hopper_takes_its_own_instructions_for_what_is_large() {
        let tiles = &[Tile::Large, Tile::Small, Tile::Wgmma];
        let tile = |sizes| Plan::choose(product(sizes), tiles, H100).tile;
        assert_eq!(tile((4096, 4096, 4096)), Tile::Wgmma);
        assert_eq!(tile((1, 4096, 4096)), Tile::Small);
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
            let room = Room { multiprocessors, ..H100 };
            let plan = Plan::choose(product((m, n, k)), ALIGNED, room);
            let Plan { tile, cuts, k_per_cut } = plan;
            prop_assert_eq!(cuts, k.div_ceil(k_per_cut));
            prop_assert!(cuts == 1 || k_per_cut.is_multiple_of(tile.slice()) && cuts * m * n <= H100.workspace);
        }
    }

    /// The numbers that the kernels and their launches share.
    #[test]
    fn constants_are_those_of_the_kernels() {
        let half = include_str!("../../kernels/linear.cu");
        let single = include_str!("../../kernels/linear_f32.cu");
        let wgmma = include_str!("../../kernels/linear_wgmma.cu");
        for (source, name, value) in [
            (half, "THREADS", Tile::Large.threads(DType::BF16) as usize),
            (half, "DEPTH", Tile::Large.slice()),
            (half, "STAGES", STAGES),
            (half, "CHUNK", CHUNK),
            (single, "THREADS", Tile::Large.threads(DType::F32) as usize),
            (single, "DEPTH", F32_SLICE),
            (wgmma, "THREADS", Tile::Wgmma.threads(DType::BF16) as usize),
            (wgmma, "TILE_M", Tile::Wgmma.size().0),
            (wgmma, "TILE_N", Tile::Wgmma.size().1),
            (wgmma, "DEPTH", Tile::Wgmma.slice()),
            (wgmma, "STAGES", WGMMA_STAGES),
        ] {
            let line = format!("constexpr u32 {name} = {value};");
            assert!(source.contains(&line), "{line}");
        }
    }
}
