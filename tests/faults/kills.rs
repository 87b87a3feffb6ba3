//! The process is killed, at chosen points of its writing and at random times, and again while it
//! resumes. `SFT_FAULTS_KILLS` says how often, `SFT_FAULTS_SEED` at which points; the tally goes to the
//! file `SFT_FAULTS_RECORD`.

use super::end::{self, undisturbed};
use super::order;
use super::random::Random;
use super::run::{Leg, Run};
use super::shim::Fault;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const MODES: [&str; 3] = ["kill-before", "kill-middle", "kill-after"];

fn setting(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).ok();
    value.map_or(default, |text| text.parse().expect(name))
}

/// How often what happened.
#[derive(Default)]
struct Tally(BTreeMap<String, u64>);

impl Tally {
    fn count(&mut self, what: &str) {
        *self.0.entry(what.to_owned()).or_default() += 1;
    }
}

/// How a process is to be killed.
#[derive(Debug)]
enum Kill {
    At(Fault),
    After(Duration),
}

impl Kill {
    /// The first of chain `index`: even chains go through the operations and the modes, each once
    /// before any comes again; odd ones have a random time.
    fn first(index: u64, random: &mut Random) -> Self {
        if index % 2 == 1 {
            return Self::at_a_random_time(random);
        }
        let (index, points) = (index / 2, undisturbed().changes() * MODES.len() as u64);
        // A stride near the golden section of the range that shares no factor with it: any number of
        // points in a row is spread over all.
        let golden = (points as f64 * 0.618) as u64;
        let stride = (golden..).find(|&n| gcd(n, points) == 1).unwrap();
        let point = index * stride % points;
        let mode = MODES[(point % 3) as usize];
        Self::At(Fault::kill(point / 3 + 1, mode))
    }

    fn later(random: &mut Random) -> Self {
        match random.below(2) {
            0 => Self::at_a_random_time(random),
            _ => {
                let at = 1 + random.below(undisturbed().changes());
                Self::At(Fault::kill(at, random.pick(&MODES)))
            }
        }
    }

    fn at_a_random_time(random: &mut Random) -> Self {
        // A leg that resumes is shorter and a busy machine is slower: some come too late.
        Self::After(undisturbed().took.mul_f64(random.fraction() * 1.1))
    }

    fn kind(&self) -> &str {
        match self {
            Self::At(fault) => fault.what,
            Self::After(_) => "at a random time",
        }
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// One run, killed up to four times, resumed each time, and compared with the undisturbed one.
fn chain(index: u64, random: &mut Random, tally: &Mutex<Tally>) {
    let mut run = Run::new();
    let mut story = Vec::new();
    let mut newest = None;
    for number in 0..4 {
        let kill = match number {
            0 => Kill::first(index, random),
            // Each kill is followed by another one half of the time.
            _ if random.below(2) == 0 => break,
            _ => Kill::later(random),
        };
        let leg = match &kill {
            Kill::At(fault) => run.leg(Some(fault), None),
            Kill::After(time) => run.leg(None, Some(*time)),
        };
        story.push(format!("{kill:?}"));
        check_start(&leg, newest, &story);
        if !leg.was_killed() {
            // The fault lay behind the end.
            tally.lock().unwrap().count("survived");
            end::check(&run, &leg, &story);
            return;
        }
        tally.lock().unwrap().count(kill.kind());
        if number > 0 {
            tally
                .lock()
                .unwrap()
                .count("of them while resuming or after");
        }
        let left = run.checkpoints().last().copied();
        let renamed = order::published(&leg.ops).max();
        assert!(
            left >= newest && left >= renamed,
            "{story:?}: checkpoint-{newest:?} stood, checkpoint-{renamed:?} became durable, \
             checkpoint-{left:?} is left"
        );
        newest = left;
        if random.below(4) == 0 {
            order::cut_the_power(&run.out(), &leg.ops, random);
            newest = run.checkpoints().last().copied();
            story.push("power cut".to_owned());
            tally.lock().unwrap().count("of them with the power cut");
        }
    }
    let leg = run.leg(None, None);
    check_start(&leg, newest, &story);
    end::check(&run, &leg, &story);
    tally.lock().unwrap().count("runs");
}

/// The process went on from the newest checkpoint and found nothing wrong with it.
fn check_start(leg: &Leg, newest: Option<u64>, story: &[String]) {
    // A process that was killed early has said nothing yet.
    let said = match newest {
        Some(step) => format!("checkpoint-{step}"),
        None => return assert!(!leg.said.contains("resum"), "{story:?}: {}", leg.said),
    };
    assert!(
        leg.was_killed() || leg.said.contains(&said),
        "{story:?}: {}",
        leg.said
    );
}

#[test]
fn a_killed_run_resumes_to_the_end_of_the_undisturbed_one() {
    let kills = setting("SFT_FAULTS_KILLS", 60);
    let seed = setting("SFT_FAULTS_SEED", 1);
    let started = Instant::now();
    undisturbed();
    let tally = Mutex::new(Tally::default());
    let next = AtomicU64::new(0);
    let done = |tally: &Tally| {
        MODES
            .iter()
            .chain(["at a random time"].iter())
            .map(|&kind| tally.0.get(kind).copied().unwrap_or(0))
            .sum::<u64>()
    };
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while done(&tally.lock().unwrap()) < kills {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let mut random = Random::new(seed.wrapping_mul(1 << 32).wrapping_add(index));
                    chain(index, &mut random, &tally);
                }
            });
        }
    });
    let tally = tally.into_inner().unwrap();
    let mut record = json!({
        "kills": done(&tally),
        "seed": seed,
        "operations_of_a_run": undisturbed().changes(),
        "seconds": started.elapsed().as_secs(),
    });
    for (what, count) in &tally.0 {
        record["counts"][what] = Value::from(*count);
    }
    println!("{record:#}");
    if let Some(path) = std::env::var_os("SFT_FAULTS_RECORD") {
        std::fs::write(path, format!("{record:#}\n")).unwrap();
    }
}
