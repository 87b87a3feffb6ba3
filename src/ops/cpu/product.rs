//! Matrix products of half-precision operands: widened a panel at a time, multiplied and summed in
//! float32, rounded once.
//!
//! The destination is cut into tiles. One task computes one tile from start to end, in an order that
//! depends on the sizes only, so the number of threads does not show in the bits. What a thread keeps
//! is bounded whatever the sizes of the matrices.

use super::element::{Buffer, Element, with_buffers};
use super::matrix::{MatMut, MatRef, Write, matmul};
use rayon::prelude::*;
use std::ops::Range;

/// Rows and columns of a tile, and terms of its sums that are widened at a time: two panels of at
/// most 1 MiB that stay in the second cache while they are multiplied.
const TILE_ROWS: usize = 256;
const TILE_COLS: usize = 256;
const PANEL: usize = 1024;

/// `c = a·b`, where `finish(row, first column, sums)` may change the float32 sums of a part of a row
/// before they are rounded.
pub fn product<T: Element, C: Element>(
    c: MatMut<C>,
    a: MatRef<T>,
    b: MatRef<T>,
    finish: impl Fn(usize, usize, &mut [f32]) + Sync,
) {
    for_each_tile(c, |[buffer_a, buffer_b, sums], rows, cols, tile| {
        let (a, b) = (a.rows(rows.clone()), b.cols(cols.clone()));
        C::write_matrix(tile, sums, |mut sums| {
            multiply(sums.reborrow(), Write::Replace, a, b, [buffer_a, buffer_b]);
            for (i, row) in rows.clone().enumerate() {
                finish(row, cols.start, sums.row_mut(i));
            }
        });
    });
}

/// `c += a·b`.
pub fn add_product<T: Element>(c: MatMut, a: MatRef<T>, b: MatRef<T>) {
    for_each_tile(c, |[buffer_a, buffer_b, _], rows, cols, tile| {
        let (a, b) = (a.rows(rows), b.cols(cols));
        multiply(tile, Write::Add, a, b, [buffer_a, buffer_b]);
    });
}

fn multiply<T: Element>(
    mut c: MatMut,
    write: Write,
    a: MatRef<T>,
    b: MatRef<T>,
    [buffer_a, buffer_b]: [&mut Buffer; 2],
) {
    let terms = a.shape().1;
    // At least once, as a sum of no terms is zero.
    for start in (0..terms.max(1)).step_by(PANEL) {
        let panel = start..(start + PANEL).min(terms);
        let write = if start == 0 { write } else { Write::Add };
        let a = T::read_matrix(a.cols(panel.clone()), buffer_a);
        let b = T::read_matrix(b.rows(panel), buffer_b);
        matmul(c.reborrow(), write, 1.0, a, b, false);
    }
}

/// Runs `f(buffers, rows, columns, tile)` for each tile, on the threads of the current pool.
fn for_each_tile<C: Element>(
    mut c: MatMut<C>,
    f: impl Fn([&mut Buffer; 3], Range<usize>, Range<usize>, MatMut<C>) + Sync,
) {
    let (rows, cols) = c.shape();
    let mut tiles = Vec::with_capacity(rows.div_ceil(TILE_ROWS) * cols.div_ceil(TILE_COLS));
    for row in (0..rows).step_by(TILE_ROWS) {
        let tile_rows = row..(row + TILE_ROWS).min(rows);
        let (mut right, below) = c.split_rows(tile_rows.len());
        c = below;
        for col in (0..cols).step_by(TILE_COLS) {
            let tile_cols = col..(col + TILE_COLS).min(cols);
            let (tile, rest) = right.split_cols(tile_cols.len());
            right = rest;
            tiles.push((tile_rows.clone(), tile_cols, tile));
        }
    }
    tiles
        .into_par_iter()
        .with_max_len(1)
        .for_each(|(rows, cols, tile)| {
            with_buffers(|[a, b, sums, ..]| f([a, b, sums], rows, cols, tile));
        });
}
