//! Laws of packing, over arbitrary documents.

use proptest::prelude::*;
use sft::data::Packing;
use sft::data::pack::{Packed, WINDOW, pack};

fn lengths() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![4 => 0..20usize, 1 => 20..70usize], 0..80)
}

/// How often each token of each document is in a row.
fn uses(packed: &Packed, lengths: &[usize]) -> Vec<Vec<u8>> {
    let mut uses: Vec<Vec<u8>> = lengths.iter().map(|&n| vec![0; n]).collect();
    for piece in packed.rows().flatten() {
        for count in &mut uses[piece.document][piece.start..piece.start + piece.len] {
            *count += 1;
        }
    }
    uses
}

fn row_len(packed: &Packed, row: usize) -> usize {
    packed.row(row).iter().map(|p| p.len).sum()
}

proptest! {
    #[test]
    fn no_token_is_lost_or_doubled(lengths in lengths(), max in 1..40usize) {
        for packing in [Packing::Bfd, Packing::BfdSplit, Packing::Wrapped] {
            let packed = pack(&lengths, max, packing);
            let kept = |at: usize| packing != Packing::Bfd || at < max;
            for document in uses(&packed, &lengths) {
                for (at, count) in document.into_iter().enumerate() {
                    prop_assert_eq!(count, u8::from(kept(at)), "{:?}", packing);
                }
            }
            for (i, row) in packed.rows().enumerate() {
                prop_assert!(!row.is_empty() && row.iter().all(|p| p.len > 0));
                prop_assert!(row_len(&packed, i) <= max);
            }
        }
    }

    #[test]
    fn a_long_document_is_cut_into_full_parts_and_a_rest(lengths in lengths(), max in 1..40usize) {
        let packed = pack(&lengths, max, Packing::BfdSplit);
        for piece in packed.rows().flatten() {
            prop_assert_eq!(piece.start % max, 0);
            let rest = lengths[piece.document] - piece.start;
            prop_assert_eq!(piece.len, rest.min(max));
        }
    }

    #[test]
    fn best_fit_never_opens_a_row_while_another_has_room(lengths in lengths(), max in 1..40usize) {
        let packed = pack(&lengths, max, Packing::Bfd);
        for row in 1..packed.len() {
            let first = packed.row(row)[0].len;
            for earlier in 0..row {
                // What an earlier row held when this one was opened: all its longer documents.
                let held: usize = packed.row(earlier).iter().map(|p| p.len)
                    .filter(|&n| n > first).sum();
                prop_assert!(held + first > max || packed.row(earlier).iter().any(|p| p.len == first)
                    && row_len(&packed, earlier) + first > max);
            }
        }
    }

    #[test]
    fn wrapped_rows_are_full_but_the_last(lengths in lengths(), max in 1..40usize) {
        let packed = pack(&lengths, max, Packing::Wrapped);
        for row in 0..packed.len().saturating_sub(1) {
            prop_assert_eq!(row_len(&packed, row), max);
        }
        let order: Vec<_> = packed.rows().flatten().map(|p| (p.document, p.start)).collect();
        prop_assert!(order.is_sorted());
    }
}

#[test]
fn rows_never_span_two_windows() {
    let lengths = vec![3; 2 * WINDOW + 1];
    for packing in [Packing::Bfd, Packing::BfdSplit, Packing::Wrapped] {
        let packed = pack(&lengths, 7, packing);
        for row in packed.rows() {
            let windows: Vec<usize> = row.iter().map(|p| p.document / WINDOW).collect();
            assert_eq!(windows[0], windows[windows.len() - 1], "{packing:?}");
        }
        assert_eq!(packed.rows().last().expect("rows").len(), 1, "{packing:?}");
    }
}

#[test]
fn nothing_packs_to_nothing() {
    for packing in [Packing::Bfd, Packing::BfdSplit, Packing::Wrapped] {
        assert!(pack(&[], 8, packing).is_empty());
        assert!(pack(&[0, 0], 8, packing).is_empty());
    }
}
