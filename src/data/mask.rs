//! Which tokens are trained on. Pure.

use std::ops::Range;

use super::batch::IGNORE;

/// Length of the longest common prefix.
pub(super) fn common_prefix(a: &[i32], b: &[i32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Whether each token stands for some of the text in `spans`, or lies between two tokens of one
/// span. `offsets` are the bytes of each token, ascending; `spans` are ascending and disjoint.
///
/// A span ends with its own last token: where its end belongs to no token (a tokenizer may drop
/// white space), the mask stops before it and never runs on into the next turn.
pub(super) fn covered(offsets: &[(usize, usize)], spans: &[Range<usize>]) -> Vec<bool> {
    let mut mask = vec![false; offsets.len()];
    let mut from = 0;
    for span in spans {
        let overlaps = |&(start, end): &(usize, usize)| start < span.end && end > span.start;
        let before = |&(_, end): &(usize, usize)| end <= span.start;
        while from < offsets.len() && before(&offsets[from]) {
            from += 1;
        }
        let inside = offsets[from..].iter().take_while(|o| o.0 < span.end);
        let inside = inside.count();
        let candidates = &offsets[from..from + inside];
        let first = candidates.iter().position(overlaps);
        let last = candidates.iter().rposition(overlaps);
        if let (Some(first), Some(last)) = (first, last) {
            mask[from + first..=from + last].fill(true);
        }
    }
    mask
}

/// Labels that keep the ids where every mask is set. No mask: all of them.
pub(super) fn labels(ids: &[i32], masks: &[Vec<bool>]) -> Vec<i32> {
    let mut labels = ids.to_vec();
    for mask in masks {
        for (label, &keep) in labels.iter_mut().zip(mask) {
            if !keep {
                *label = IGNORE;
            }
        }
    }
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covered_by(offsets: &[(usize, usize)], span: Range<usize>) -> Vec<bool> {
        covered(offsets, std::slice::from_ref(&span))
    }

    #[test]
    fn a_span_whose_end_has_no_token_stops_there() {
        // "ab cd" + dropped space + "ef": the blanks at 2 and 5 belong to no token.
        let offsets = [(0, 1), (1, 2), (3, 4), (4, 5), (6, 8)];
        assert_eq!(
            covered_by(&offsets, 3..6),
            [false, false, true, true, false]
        );
        assert_eq!(covered_by(&offsets, 2..3), [false; 5]);
    }

    #[test]
    fn tokens_without_text_count_inside_a_span_only() {
        let offsets = [(0, 2), (2, 2), (2, 4), (4, 4), (4, 6)];
        assert_eq!(covered_by(&offsets, 0..4), [true, true, true, false, false]);
        assert!(covered_by(&[], 0..4).is_empty());
    }

    #[test]
    fn all_tokens_of_a_split_character_belong_to_its_span() {
        let offsets = [(0, 1), (1, 5), (1, 5), (1, 5), (5, 6)];
        assert_eq!(covered_by(&offsets, 1..5), [false, true, true, true, false]);
    }

    #[test]
    fn masks_are_combined_with_and() {
        let masks = [vec![true, true, false], vec![false, true, true]];
        assert_eq!(labels(&[7, 8, 9], &masks), [IGNORE, 8, IGNORE]);
        assert_eq!(labels(&[7, 8, 9], &[]), [7, 8, 9]);
    }
}
