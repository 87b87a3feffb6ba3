//! The planner: tensors with lifetimes → offsets in one arena. Pure.
//!
//! Time is a count of phases of a step. Tensors whose lifetimes do not meet may share bytes. Placement
//! is greedy: the largest tensor first, each at the lowest offset that is free for its whole life.

use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// What a segment is for, as `sft plan` groups them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SegmentKind {
    /// Parameters.
    Weights,
    /// Their gradients.
    Gradients,
    /// First and second moments.
    Optimizer,
    /// What the forward keeps for the backward.
    Activations,
    /// What lives within one phase or a few.
    Scratch,
    /// Token ids, positions, labels, tables.
    Batch,
    /// Keys and values of generated text.
    KvCache,
}

/// One tensor of the plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Segment {
    /// Name, such as `layers.3.gate_up`.
    pub name: String,
    /// What it is for.
    pub kind: SegmentKind,
    /// Size in bytes.
    pub bytes: usize,
    /// First byte in the arena.
    pub offset: usize,
    /// First and last phase of its life.
    pub birth: usize,
    /// See `birth`.
    pub death: usize,
}

/// Where every tensor of a run lies.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MemoryPlan {
    /// In the order in which they were requested.
    pub segments: Vec<Segment>,
    /// Size of the arena.
    pub total_bytes: usize,
}

impl MemoryPlan {
    /// The largest number of bytes that live at the same time: no plan can be smaller.
    pub fn lower_bound(&self) -> usize {
        let births = self.segments.iter().map(|s| s.birth);
        let live_at = |t: usize| {
            let live = self
                .segments
                .iter()
                .filter(|s| s.birth <= t && t <= s.death);
            live.map(|s| s.bytes).sum()
        };
        births.map(live_at).max().unwrap_or(0)
    }

    /// Bytes of all segments of a kind. Segments that share bytes count each.
    pub fn bytes_of(&self, kind: SegmentKind) -> usize {
        self.segments
            .iter()
            .filter(|s| s.kind == kind)
            .map(|s| s.bytes)
            .sum()
    }
}

/// A tensor that was requested from a [`Planner`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorId(usize);

/// Collects requests, then places them.
#[derive(Default)]
pub struct Planner {
    segments: Vec<Segment>,
}

/// Every tensor starts at a multiple of this many bytes: two cache lines.
const ALIGNMENT: usize = 128;

impl Planner {
    /// Requests `bytes` that live in the phases of `life`.
    pub fn tensor(
        &mut self,
        name: impl Into<String>,
        kind: SegmentKind,
        bytes: usize,
        life: RangeInclusive<usize>,
    ) -> TensorId {
        self.segments.push(Segment {
            name: name.into(),
            kind,
            bytes: bytes.next_multiple_of(ALIGNMENT),
            offset: 0,
            birth: *life.start(),
            death: *life.end(),
        });
        TensorId(self.segments.len() - 1)
    }

    /// Places every tensor.
    pub fn solve(mut self) -> MemoryPlan {
        let mut order: Vec<usize> = (0..self.segments.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(self.segments[i].bytes));
        let mut placed: Vec<usize> = Vec::new(); // by offset
        for &i in &order {
            let (bytes, birth, death) = {
                let s = &self.segments[i];
                (s.bytes, s.birth, s.death)
            };
            let mut offset = 0;
            for &other in &placed {
                let other = &self.segments[other];
                if other.death < birth || death < other.birth {
                    continue;
                }
                if offset + bytes <= other.offset {
                    break;
                }
                offset = offset.max(other.offset + other.bytes);
            }
            self.segments[i].offset = offset;
            let at = placed.partition_point(|&p| self.segments[p].offset <= offset);
            placed.insert(at, i);
        }
        let total_bytes = self
            .segments
            .iter()
            .map(|s| s.offset + s.bytes)
            .max()
            .unwrap_or(0);
        MemoryPlan {
            segments: self.segments,
            total_bytes,
        }
    }
}

impl MemoryPlan {
    /// The segment of a tensor that the planner handed out.
    pub fn segment(&self, id: TensorId) -> &Segment {
        &self.segments[id.0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_two_living_tensors_overlap(
            requests in prop::collection::vec((1usize..5000, 0usize..20, 0usize..20), 1..60)
        ) {
            let mut planner = Planner::default();
            for &(bytes, a, b) in &requests {
                planner.tensor("t", SegmentKind::Scratch, bytes, a.min(b)..=a.max(b));
            }
            let plan = planner.solve();
            prop_assert!(plan.total_bytes >= plan.lower_bound());
            for (i, a) in plan.segments.iter().enumerate() {
                prop_assert_eq!(a.offset % ALIGNMENT, 0);
                prop_assert!(a.offset + a.bytes <= plan.total_bytes);
                for b in &plan.segments[i + 1..] {
                    let together = a.birth <= b.death && b.birth <= a.death;
                    let apart = a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset;
                    prop_assert!(!together || apart, "{a:?} {b:?}");
                }
            }
        }
    }

    #[test]
    fn tensors_of_different_phases_share_bytes() {
        let mut planner = Planner::default();
        planner.tensor("a", SegmentKind::Scratch, 1000, 0..=1);
        planner.tensor("b", SegmentKind::Scratch, 1000, 2..=3);
        assert_eq!(planner.solve().total_bytes, 1024);
    }
}
