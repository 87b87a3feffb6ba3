//! Sequences of launches that repeat, recorded once as graphs: which are kept, and when one is made.
//!
//! A sequence is launched as it is when its key is first seen, which also loads its kernels; recorded
//! the second time; replayed from then on. A device holds a bounded number of graphs, and the one that
//! was not used for longest goes first: a graph takes device memory of its own, about as much as its
//! launches' arguments, which no plan knows of.

use super::Cuda;
use super::driver::{Call, Graph};
use crate::error::{Error, ErrorKind};
use crate::ops::Recording;

/// Keys that are remembered, with a graph from the second sight on: 32 sizes, forward and backward.
const LIMIT: usize = 64;

/// Whether each replay is compared with what would be launched instead. The keys rest on what the
/// launches are computed from; this finds a number that a key lacks.
const COMPARED: bool = cfg!(any(debug_assertions, feature = "emulate"));

/// What to do about a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Launch,
    Record,
    Replay(Graph),
}

/// The sequences seen lately, the last one last.
#[derive(Default)]
pub(super) struct Graphs {
    seen: Vec<Seen>,
    /// Set where the device makes none.
    off: bool,
    replays: u64,
}

struct Seen {
    key: Recording,
    graph: Option<Graph>,
    /// What the graph does, where replays are compared.
    calls: Vec<Call>,
}

impl Graphs {
    /// What to do about a sequence, and the graph to forget.
    fn next(&mut self, key: Recording) -> (Step, Option<Graph>) {
        if self.off {
            return (Step::Launch, None);
        }
        if let Some(place) = self.seen.iter().position(|seen| seen.key == key) {
            self.seen[place..].rotate_left(1);
            let graph = self.seen.last().and_then(|seen| seen.graph);
            return (graph.map_or(Step::Record, Step::Replay), None);
        }
        let oldest = (self.seen.len() == LIMIT).then(|| self.seen.remove(0));
        self.seen.push(Seen {
            key,
            graph: None,
            calls: Vec::new(),
        });
        (Step::Launch, oldest.and_then(|seen| seen.graph))
    }
}

/// What is asked for between the ends of a capture or a comparison.
pub(super) struct Tape {
    calls: Vec<Call>,
    /// Whether calls end here instead of going to the driver.
    only_listens: bool,
    /// Whether one of them failed, so that there is no graph of them.
    pub(super) failed: bool,
}

impl Tape {
    fn new(only_listens: bool) -> Self {
        Self {
            calls: Vec::new(),
            only_listens,
            failed: false,
        }
    }

    /// Takes in a call that is not for the driver; gives one back that is.
    pub(super) fn intercept(&mut self, call: Call) -> Option<Call> {
        match self.only_listens {
            true => {
                self.calls.push(call);
                None
            }
            false => Some(call),
        }
    }

    /// Takes in a call that the driver recorded.
    pub(super) fn add(&mut self, call: Call) {
        if COMPARED {
            self.calls.push(call);
        }
    }
}

impl Cuda {
    /// Whether sequences that repeat are recorded as graphs; on at first.
    pub fn set_graphs(&mut self, on: bool) {
        self.forget_graphs();
        self.graphs.off = !on;
    }

    /// Before something changes that launches are computed from.
    pub(super) fn forget_graphs(&mut self) {
        for graph in self.graphs.seen.drain(..).filter_map(|seen| seen.graph) {
            self.driver.forget(graph);
        }
    }

    /// How many sequences were replayed so far.
    pub fn replays(&self) -> u64 {
        self.graphs.replays
    }

    /// As [`Backend::recorded`](crate::ops::Backend::recorded).
    pub(super) fn record_or_replay(&mut self, key: Recording, work: impl Fn(&mut Self)) {
        if self.tape.is_some() || self.failure.is_some() {
            return work(self);
        }
        let (step, forgotten) = self.graphs.next(key);
        if let Some(graph) = forgotten {
            self.driver.forget(graph);
        }
        match step {
            Step::Launch => work(self),
            Step::Replay(graph) => self.replay(key, graph, work),
            Step::Record => match self.record(&work) {
                Some((graph, calls)) => {
                    let seen = self
                        .graphs
                        .seen
                        .last_mut()
                        .expect("what was just looked up");
                    (seen.graph, seen.calls) = (Some(graph), calls);
                    let replayed = self.driver.replay(graph);
                    self.note(replayed);
                    self.graphs.replays += 1;
                }
                // Nothing was done yet. If the device makes no graph of this, it will not of the
                // next; if something is wrong with the work, the launches will say so.
                None => {
                    self.set_graphs(false);
                    work(self);
                }
            },
        }
    }

    /// A graph of what `work` asks for, nothing of which is done.
    fn record(&mut self, work: impl Fn(&mut Self)) -> Option<(Graph, Vec<Call>)> {
        match self.driver.begin_capture() {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => {
                self.note(Err(error));
                return None;
            }
        }
        self.tape = Some(Tape::new(false));
        work(self);
        let tape = self.tape.take()?;
        match self.driver.end_capture() {
            Ok(Some(graph)) if tape.failed => {
                self.driver.forget(graph);
                None
            }
            Ok(graph) => Some((graph?, tape.calls)),
            Err(error) => {
                self.note(Err(error));
                None
            }
        }
    }

    fn replay(&mut self, key: Recording, graph: Graph, work: impl Fn(&mut Self)) {
        if COMPARED {
            self.tape = Some(Tape::new(true));
            work(self);
            let asked = self.tape.take().map_or(Vec::new(), |tape| tape.calls);
            let recorded = &self.graphs.seen.last().expect("what is replayed").calls;
            if let Some(difference) = difference(recorded, &asked) {
                let message = format!("{key:?} names different sequences: {difference}");
                self.note(Err(Error::new(ErrorKind::Internal, message)));
                return;
            }
        }
        let replayed = self.driver.replay(graph);
        self.note(replayed);
        self.graphs.replays += 1;
    }
}

/// Where two sequences part, if they do.
fn difference(recorded: &[Call], asked: &[Call]) -> Option<String> {
    let place = (0..recorded.len().max(asked.len())).find(|&i| recorded.get(i) != asked.get(i))?;
    let (before, now) = (recorded.get(place), asked.get(place));
    Some(format!(
        "at {place}, {before:?} was recorded, {now:?} is asked for"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(size: usize) -> Recording {
        Recording {
            part: "part",
            sizes: [size, 0],
        }
    }

    /// As a device would that makes a graph whenever it is to.
    fn see(graphs: &mut Graphs, size: usize, number: usize) -> (Step, Option<Graph>) {
        let next = graphs.next(key(size));
        if next.0 == Step::Record {
            graphs.seen.last_mut().unwrap().graph = Some(Graph(number));
        }
        next
    }

    #[test]
    fn a_sequence_is_launched_then_recorded_then_replayed() {
        let mut graphs = Graphs::default();
        assert_eq!(see(&mut graphs, 1, 7), (Step::Launch, None));
        assert_eq!(see(&mut graphs, 2, 8), (Step::Launch, None));
        assert_eq!(see(&mut graphs, 1, 7), (Step::Record, None));
        assert_eq!(see(&mut graphs, 1, 9), (Step::Replay(Graph(7)), None));
        assert_eq!(see(&mut graphs, 2, 8), (Step::Record, None));
        assert_eq!(see(&mut graphs, 1, 9), (Step::Replay(Graph(7)), None));
    }

    #[test]
    fn the_graph_that_was_not_used_for_longest_goes_first() {
        let mut graphs = Graphs::default();
        for size in (0..LIMIT).chain(0..LIMIT) {
            assert_eq!(see(&mut graphs, size, size).1, None);
        }
        see(&mut graphs, 0, 0); // now 1 is the oldest
        assert_eq!(see(&mut graphs, LIMIT, 0), (Step::Launch, Some(Graph(1))));
        assert_eq!(graphs.seen.len(), LIMIT);
        assert_eq!(see(&mut graphs, 0, 0).0, Step::Replay(Graph(0)));
        assert_eq!(see(&mut graphs, 1, 0), (Step::Launch, Some(Graph(2))));
    }

    #[test]
    fn sequences_part_at_the_first_call_that_differs_or_is_missing() {
        let fill = |count| Call::Fill32 {
            to: 0,
            bits: 0,
            count,
        };
        assert_eq!(difference(&[fill(1)], &[fill(1)]), None);
        let text = difference(&[fill(1), fill(2)], &[fill(1), fill(3)]).unwrap();
        assert!(text.contains("at 1"), "{text}");
        assert!(difference(&[fill(1), fill(2)], &[fill(1)]).is_some());
        assert!(difference(&[], &[fill(1)]).is_some());
    }
}
