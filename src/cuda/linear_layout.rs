//! Where `kernels/linear.cu` keeps each number, and at the end `linear_wgmma.cu`: their index
//! arithmetic, restated and tried for every thread, warp and tile. A slice of an operand is `size` (of m or n) by [`DEPTH`] (of l); it is
//! stored in chunks of eight numbers, 16 bytes, of which eight neighbours fill all banks of shared
//! memory once.

use std::collections::HashSet;

const THREADS: usize = 128;
const DEPTH: usize = 32;
const CHUNK: usize = 8;
const STEP: usize = 16;
const TILES: [usize; 2] = [64, 128];

/// A place in an operand's slice: of m or n, and of l.
type Place = (usize, usize);

/// How a slice lies in shared memory: in lines of l, or in lines of m or n.
#[derive(Clone, Copy, Debug)]
struct Slice {
    along_l: bool,
    size: usize,
}

impl Slice {
    fn all() -> impl Iterator<Item = Slice> {
        TILES
            .into_iter()
            .flat_map(|size| [true, false].map(|along_l| Slice { along_l, size }))
    }

    fn chunks(self) -> usize {
        if self.along_l {
            DEPTH / CHUNK
        } else {
            self.size / CHUNK
        }
    }

    fn lines(self) -> usize {
        if self.along_l { self.size } else { DEPTH }
    }

    /// `Copier`: the chunks that a thread copies, (line, chunk of the line) → chunk of shared memory.
    fn copies(self, thread: usize) -> Vec<((usize, usize), usize)> {
        let chunks = self.chunks();
        let stride = THREADS / chunks;
        let (line, chunk) = (thread / chunks, thread % chunks);
        let exchange = if self.along_l {
            line / 2 % chunks
        } else {
            line % 8
        };
        let to = line * chunks + (chunk ^ exchange);
        (0..self.lines() / stride)
            .map(|i| ((line + i * stride, chunk), to + i * stride * chunks))
            .collect()
    }

    /// What stands in each number of shared memory, by the copies of all threads.
    fn shared(self) -> Vec<Option<Place>> {
        let mut shared = vec![None; self.size * DEPTH];
        for thread in 0..THREADS {
            for ((line, chunk), to) in self.copies(thread) {
                for i in 0..CHUNK {
                    let position = chunk * CHUNK + i;
                    let place = if self.along_l {
                        (line, position)
                    } else {
                        (position, line)
                    };
                    let before = shared[to * CHUNK + i].replace(place);
                    assert_eq!(before, None, "{self:?}: two copies to one place");
                }
            }
        }
        shared
    }

    /// `Reader::read`: the number of shared memory at which a lane's row of a matrix begins.
    fn row(self, lane: usize, start: usize, order: Order, fragment: usize, step: usize) -> usize {
        let (even, high) = (lane / 8 % 2, lane / 16);
        let (half, l_half) = match order {
            Order::A => (even, high),
            Order::B => (high, even),
        };
        let row = lane % 8;
        if self.along_l {
            let line = (start + half * 8 + row) * DEPTH;
            let chunk = (l_half ^ (row / 2)) * CHUNK;
            line + fragment * 16 * DEPTH + (chunk ^ (step * STEP))
        } else {
            let line = (l_half * 8 + row) * self.size;
            let chunk = ((start / CHUNK + half) ^ row) * CHUNK;
            line + step * STEP * self.size + (chunk ^ (fragment * 16))
        }
    }
}

/// Which operand of the matrix instruction: it decides the order of the four matrices.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Order {
    A,
    B,
}

/// `ldmatrix.x4`: the two numbers in each of a lane's four words. Lane i gives row i % 8 of matrix
/// i / 8; lane (g, c) receives (g, 2c) and (g, 2c + 1), transposed (2c, g) and (2c + 1, g).
fn ldmatrix<T: Copy>(shared: &[T], rows: &[usize], lane: usize, transposed: bool) -> [[T; 2]; 4] {
    let (g, c) = (lane / 4, lane % 4 * 2);
    std::array::from_fn(|matrix| {
        [0, 1].map(|i| match transposed {
            false => shared[rows[matrix * 8 + g] + c + i],
            true => shared[rows[matrix * 8 + c + i] + g],
        })
    })
}

/// The places in (m or n, l) that `mma.m16n8k16` takes from a lane: A's four words, or B's two for
/// one block of eight columns and then the next.
fn operand(order: Order, lane: usize) -> [[Place; 2]; 4] {
    let (g, c) = (lane / 4, lane % 4 * 2);
    let pair = |row: usize, l: usize| [(row, l), (row, l + 1)];
    match order {
        Order::A => [
            pair(g, c),
            pair(g + 8, c),
            pair(g, c + 8),
            pair(g + 8, c + 8),
        ],
        Order::B => [
            pair(g, c),
            pair(g, c + 8),
            pair(g + 8, c),
            pair(g + 8, c + 8),
        ],
    }
}

/// Every fragment that the warps of a block read: (first row of the warp, fragment, step).
fn fragments(size: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    let warp_tile = size / 2;
    [0, warp_tile].into_iter().flat_map(move |start| {
        (0..warp_tile / 16)
            .flat_map(move |fragment| (0..DEPTH / STEP).map(move |step| (start, fragment, step)))
    })
}

#[test]
fn copies_fill_a_slice_once() {
    for slice in Slice::all() {
        let places: HashSet<Place> = slice.shared().into_iter().map(Option::unwrap).collect();
        assert_eq!(places.len(), slice.size * DEPTH, "{slice:?}");
        assert!(places.iter().all(|&(row, l)| row < slice.size && l < DEPTH));
    }
}

#[test]
fn eight_threads_copy_to_eight_bank_groups() {
    for slice in Slice::all() {
        for first in (0..THREADS).step_by(8) {
            for copy in 0..slice.copies(first).len() {
                let to = |thread| slice.copies(thread)[copy].1 % 8;
                let groups: HashSet<usize> = (first..first + 8).map(to).collect();
                assert_eq!(
                    groups.len(),
                    8,
                    "{slice:?}, threads from {first}, copy {copy}"
                );
            }
        }
    }
}

#[test]
fn the_eight_rows_of_a_matrix_lie_in_eight_bank_groups() {
    for slice in Slice::all() {
        for order in [Order::A, Order::B] {
            for (start, fragment, step) in fragments(slice.size) {
                for matrix in 0..4 {
                    let row = |lane| slice.row(lane, start, order, fragment, step);
                    let rows = (matrix * 8..matrix * 8 + 8).map(row);
                    let groups: HashSet<usize> = rows
                        .inspect(|row| assert_eq!(row % CHUNK, 0))
                        .map(|row| row / CHUNK % 8)
                        .collect();
                    assert_eq!(
                        groups.len(),
                        8,
                        "{slice:?} {order:?} {start} {fragment} {step}"
                    );
                }
            }
        }
    }
}

#[test]
fn fragments_are_those_of_the_matrix_instruction() {
    for slice in Slice::all() {
        let shared = slice.shared();
        for order in [Order::A, Order::B] {
            for (start, fragment, step) in fragments(slice.size) {
                let row = |lane| slice.row(lane, start, order, fragment, step);
                let rows: Vec<usize> = (0..32).map(row).collect();
                for lane in 0..32 {
                    let read = ldmatrix(&shared, &rows, lane, !slice.along_l);
                    let expected = operand(order, lane).map(|word| {
                        word.map(|(row, l)| Some((start + fragment * 16 + row, step * STEP + l)))
                    });
                    assert_eq!(read, expected, "{slice:?} {order:?} lane {lane}");
                }
            }
        }
    }
}

#[test]
fn sums_cover_the_tile_once() {
    for size in TILES {
        let (warp_tile, mut places) = (size / 2, HashSet::new());
        for thread in 0..THREADS {
            let (warp, lane) = (thread / 32, thread % 32);
            let row = warp / 2 * warp_tile + lane / 4;
            let column = warp % 2 * warp_tile + lane % 4 * 2;
            for (i, j) in (0..warp_tile / 16).flat_map(|i| (0..warp_tile / 8).map(move |j| (i, j)))
            {
                for (down, right) in [(0, 0), (0, 1), (8, 0), (8, 1)] {
                    places.insert((row + i * 16 + down, column + j * 8 + right));
                }
            }
        }
        assert_eq!(places.len(), size * size);
        assert!(
            places
                .iter()
                .all(|&(row, column)| row < size && column < size)
        );
    }
}

/// `place_of_tile`: the order in which blocks take tiles.
#[test]
fn every_tile_has_one_block() {
    const GROUP: usize = 16;
    for rows in [1, 2, 15, 16, 17, 33, 64] {
        for columns in [1, 2, 9, 40] {
            let tile = |block: usize| {
                let (group, inside) = (block / (GROUP * columns), block % (GROUP * columns));
                let height = GROUP.min(rows - group * GROUP);
                (group * GROUP + inside % height, inside / height)
            };
            let tiles: HashSet<Place> = (0..rows * columns).map(tile).collect();
            assert_eq!(tiles.len(), rows * columns);
            assert!(
                tiles
                    .iter()
                    .all(|&(row, column)| row < rows && column < columns)
            );
        }
    }
}

/// `linear_wgmma.cu`: what the boxes leave in shared memory stands where the descriptors of the matrix
/// instructions say. Both exchange the 16-byte chunks of a line by bits 7 to 9 of the address.
#[test]
fn warpgroups_find_what_boxes_left() {
    const DEPTH: usize = 64;
    const LINE: usize = 128;
    const BLOCK: usize = 64 * LINE;
    let exchanged = |address: usize| address ^ (address / 128 % 8 * 16);
    for (along_l, size) in [(true, 128), (true, 256), (false, 128), (false, 256)] {
        // Boxes of 64 numbers a line, one behind the other.
        let mut shared = vec![None; size * DEPTH];
        for (row, l) in (0..size).flat_map(|row| (0..DEPTH).map(move |l| (row, l))) {
            let address = match along_l {
                true => row * LINE + l * 2,
                false => row / 64 * BLOCK + l * LINE + row % 64 * 2,
            };
            shared[exchanged(address) / 2] = Some((row, l));
        }
        // Eight lines are a group, 1024 bytes; beyond 64 of m or n there are blocks.
        let (group, block) = (8 * LINE, BLOCK);
        let step = if along_l { 16 * 2 } else { 16 * LINE };
        for (row, l) in (0..size).flat_map(|row| (0..DEPTH).map(move |l| (row, l))) {
            let (start, inner) = (l / STEP * step, l % STEP);
            let address = match along_l {
                true => start + row / 8 * group + row % 8 * LINE + inner * 2,
                false => {
                    start + row / 64 * block + row % 64 * 2 + inner / 8 * group + inner % 8 * LINE
                }
            };
            assert_eq!(
                shared[exchanged(address) / 2],
                Some((row, l)),
                "{along_l} {size}"
            );
        }
    }
}
