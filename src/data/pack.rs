//! Packing: which documents share a row. Pure: lengths in, pieces out; no token is copied here.
//!
//! The documents are taken in windows of [`WINDOW`], and no row holds documents of two windows, so
//! that the rows equal those of TRL (whose packing is a batched map with that batch size) and so
//! that an early row does not wait for the last document.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

/// Documents of one packing problem.
pub const WINDOW: usize = 1000;

/// How documents are put together into rows of at most `max_length` tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Packing {
    /// Best-fit decreasing; a document longer than a row loses its tail.
    Bfd,
    /// Best-fit decreasing; a longer document is cut, each part a document of its own.
    BfdSplit,
    /// The documents end to end, cut at each `max_length`; borders are not kept.
    Wrapped,
}

/// How documents become rows. Nothing here changes the tokenised documents themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowOptions {
    /// Longest row in tokens; what is beyond is cut off at the end. `None`: no limit.
    pub max_length: Option<usize>,
    /// How documents share a row; `None`: one document is one row. Needs `max_length`.
    pub packing: Option<Packing>,
}

impl Default for RowOptions {
    fn default() -> Self {
        Self {
            max_length: Some(1024),
            packing: None,
        }
    }
}

/// A run of tokens of one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Index of the document.
    pub document: usize,
    /// First token within the document.
    pub start: usize,
    /// Tokens.
    pub len: usize,
}

/// Rows of pieces, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    pieces: Vec<Piece>,
    /// One past the last piece of each row.
    ends: Vec<usize>,
}

impl Packed {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The pieces of row `index`.
    pub fn row(&self, index: usize) -> &[Piece] {
        let start = match index {
            0 => 0,
            _ => self.ends[index - 1],
        };
        &self.pieces[start..self.ends[index]]
    }

    /// All rows.
    pub fn rows(&self) -> impl Iterator<Item = &[Piece]> {
        (0..self.len()).map(|i| self.row(i))
    }

    fn push_row(&mut self, pieces: impl IntoIterator<Item = Piece>) {
        self.pieces.extend(pieces);
        self.ends.push(self.pieces.len());
    }
}

/// Packs documents of the given lengths, in tokens, into rows of at most `max_length` tokens.
///
/// `max_length` must not be 0. Empty documents take no part.
pub fn pack(lengths: &[usize], max_length: usize, packing: Packing) -> Packed {
    assert!(max_length > 0, "a row must hold a token");
    let mut packed = Packed::default();
    for (window, lengths) in lengths.chunks(WINDOW).enumerate() {
        let documents = lengths.iter().enumerate().map(|(i, &len)| Piece {
            document: window * WINDOW + i,
            start: 0,
            len,
        });
        match packing {
            Packing::Bfd => {
                let cut = documents.map(|d| Piece {
                    len: d.len.min(max_length),
                    ..d
                });
                best_fit_decreasing(cut.collect(), max_length, &mut packed);
            }
            Packing::BfdSplit => {
                let parts = documents.flat_map(|d| split(d, max_length));
                best_fit_decreasing(parts.collect(), max_length, &mut packed);
            }
            Packing::Wrapped => wrap(documents, max_length, &mut packed),
        }
    }
    packed
}

/// The parts of a document: all of `max_length` tokens except the last.
fn split(document: Piece, max_length: usize) -> impl Iterator<Item = Piece> {
    (0..document.len)
        .step_by(max_length)
        .map(move |start| Piece {
            start,
            len: max_length.min(document.len - start),
            ..document
        })
}

/// Longest first, each into the fullest row that still has room; among rows with equal room the one
/// that has had it longest.
fn best_fit_decreasing(mut pieces: Vec<Piece>, max_length: usize, packed: &mut Packed) {
    pieces.retain(|p| p.len > 0);
    pieces.sort_by_key(|p| std::cmp::Reverse(p.len)); // stable: equal lengths keep their order
    let mut rows: Vec<Vec<Piece>> = Vec::new();
    let mut by_room: BTreeMap<usize, VecDeque<usize>> = BTreeMap::new();
    for piece in pieces {
        let found = by_room.range_mut(piece.len..).next();
        let (row, room) = match found {
            Some((&room, queue)) => {
                let row = queue.pop_front().expect("queues are removed when empty");
                if queue.is_empty() {
                    by_room.remove(&room);
                }
                (row, room)
            }
            None => {
                rows.push(Vec::new());
                (rows.len() - 1, max_length)
            }
        };
        rows[row].push(piece);
        if room > piece.len {
            by_room.entry(room - piece.len).or_default().push_back(row);
        }
    }
    for row in rows {
        packed.push_row(row);
    }
}

fn wrap(documents: impl Iterator<Item = Piece>, max_length: usize, packed: &mut Packed) {
    let mut row = Vec::new();
    let mut room = max_length;
    for mut rest in documents {
        while rest.len > 0 {
            let len = rest.len.min(room);
            row.push(Piece { len, ..rest });
            rest.start += len;
            rest.len -= len;
            room -= len;
            if room == 0 {
                packed.push_row(row.drain(..));
                room = max_length;
            }
        }
    }
    if !row.is_empty() {
        packed.push_row(row);
    }
}
