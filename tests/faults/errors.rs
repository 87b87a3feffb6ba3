//! Every call that changes something on disk fails once: the disk is full, it is broken, or it says
//! no. The command says which file it could not write and ends with a failure, or it goes on because it
//! can do without; either way what was saved before is whole, nothing half-written is left, and the
//! resumed run ends as the undisturbed one.
//!
//! `SFT_FAULTS_ALL=1` fails each call of the run with each error; otherwise one of each kind does.

use super::end::{self, undisturbed};
use super::run::{Leg, Run, names};
use super::shim::{Fault, Op};
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// One call to fail: the `at`-th of its name on its path, which holds however the threads of a run take
/// turns.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    op: String,
    /// As the pattern of a fault: without the number of the process.
    path: String,
    at: u64,
}

impl Target {
    fn fault(&self, what: &'static str, sticky: bool) -> Fault {
        Fault {
            at: self.at,
            what,
            ops: Some(self.op.clone()),
            path: Some(format!("*/watched{}", self.path)),
            sticky,
        }
    }

    /// The path as people know it, without the names of unfinished things: `/out/checkpoint-3`.
    fn shown(&self) -> String {
        let parts = self
            .path
            .split('/')
            .map(|part| match part.split_once(".partial-") {
                Some((name, _)) => name.trim_start_matches('.'),
                None => part,
            });
        parts.collect::<Vec<_>>().join("/")
    }

    /// The kind of call: the same for all checkpoints.
    fn kind(&self) -> (String, String) {
        let shown: String = self.path.chars().filter(|c| !c.is_ascii_digit()).collect();
        (self.op.clone(), shown)
    }

    fn errors(&self) -> &'static [&'static str] {
        match &*self.op {
            "write" | "copy" => &["ENOSPC", "EIO", "short"],
            "create" | "mkdir" => &["ENOSPC", "EACCES"],
            "link" | "rename" => &["ENOSPC", "EIO"],
            "open" | "lock" => &["EACCES"],
            _ => &["EIO"],
        }
    }
}

/// The calls of the undisturbed run.
fn targets() -> Vec<Target> {
    let watched = |path: &Path| {
        let path = path.to_str().unwrap();
        path.split_once("/watched")
            .map(|(_, rest)| without_process(rest))
    };
    let mut counts: BTreeMap<(String, String), u64> = BTreeMap::new();
    let mut all = Vec::new();
    for op in &undisturbed().ops {
        // A folder that is there already is no failure for anyone.
        let counts_here = op.name != "close" && op.result != "EEXIST";
        let of_the_name = |op: &Op| watched(&op.path).map(|path| (op.name.clone(), path));
        let Some(key) = of_the_name(op) else { continue };
        let at = counts.entry(key.clone()).or_default();
        *at += 1;
        if counts_here {
            let (op, path) = key;
            all.push(Target { op, path, at: *at });
        }
    }
    all
}

/// `.checkpoint-3.partial-4711-0` as `.checkpoint-3.partial-*`.
fn without_process(path: &str) -> String {
    let part = |part: &str| match part.split_once(".partial-") {
        Some((name, _)) => format!("{name}.partial-*"),
        None => part.to_owned(),
    };
    path.split('/').map(part).collect::<Vec<_>>().join("/")
}

/// One or two of each kind: the first and the last.
fn chosen(all: Vec<Target>) -> Vec<Target> {
    if std::env::var_os("SFT_FAULTS_ALL").is_some() {
        return all;
    }
    let mut seen = BTreeSet::new();
    let mut chosen: Vec<Target> = Vec::new();
    for target in &all {
        if seen.insert(target.kind()) {
            chosen.push(target.clone());
        }
    }
    chosen
}

/// A call whose failure costs nothing: the run goes on.
fn can_do_without(target: &Target) -> bool {
    let is = |op: &str| target.op == op;
    // An old checkpoint stays, with a warning; a leftover stays for the next writer, who removes it.
    let remove = is("remove") || opens_an_old_checkpoint(target);
    let leftover = is("open") && target.path.starts_with("/.out.partial-");
    // The best weights are written where they cannot be shared with the checkpoint before.
    let best =
        ["open", "read"].contains(&&*target.op) && target.path.ends_with("best_model.safetensors");
    // Where the parent folder cannot be written, a model is made within its own.
    let beside = is("mkdir") && target.path.starts_with("/.out.partial-");
    is("link") || is("lock") || remove || leftover || best || beside
}

/// A checkpoint's folder is opened to delete it.
fn opens_an_old_checkpoint(target: &Target) -> bool {
    let step = target.path.strip_prefix("/out/checkpoint-");
    target.op == "open" && step.is_some_and(|step| step.bytes().all(|b| b.is_ascii_digit()))
}

/// What the command said and left after `target` failed once.
fn check_failed_once(target: &Target, what: &'static str) {
    let mut run = Run::new();
    let fault = target.fault(what, false);
    let leg = run.leg(Some(&fault), None);
    assert!(
        leg.ops.iter().any(|op| op.result == "injected"),
        "{fault:?}: the run never came there"
    );
    check_said(target, &fault, &leg);
    check_leftovers(target, &fault, &run, &leg);
    run.overwrite_if_no_checkpoint();
    let again = run.leg(None, None);
    end::check_but_older_checkpoints(&run, &again, &fault);
}

fn check_said(target: &Target, fault: &Fault, leg: &Leg) {
    let code = leg.status.code();
    if code == Some(0) {
        assert!(
            can_do_without(target),
            "{fault:?} went unnoticed:\n{}",
            leg.said
        );
        let old = (target.op == "remove" && target.path.starts_with("/out/checkpoint-"))
            || opens_an_old_checkpoint(target);
        assert!(
            !old || leg.said.contains("an old checkpoint cannot be deleted"),
            "{fault:?}: no warning:\n{}",
            leg.said
        );
        return;
    }
    assert_eq!(code, Some(1), "{fault:?}:\n{}", leg.said);
    let shown = target.shown();
    let name = shown.trim_start_matches('/');
    assert!(
        leg.said.contains(name),
        "{fault:?}: {name} is not named:\n{}",
        leg.said
    );
    let reason = match fault.what {
        "EIO" => "Input/output error",
        "EACCES" => "Permission denied",
        _ => "No space left on device",
    };
    assert!(
        leg.said.contains(reason),
        "{fault:?}: {reason}:\n{}",
        leg.said
    );
}

fn check_leftovers(target: &Target, fault: &Fault, run: &Run, leg: &Leg) {
    let left: Vec<String> = [run.watched(), run.out()]
        .iter()
        .flat_map(|f| names(f))
        .collect();
    let left: Vec<&String> = left
        .iter()
        .filter(|name| name.contains(".partial-"))
        .collect();
    // Only what could not be removed stays.
    assert!(
        left.is_empty() || target.op == "remove" || can_do_without(target),
        "{fault:?}: {left:?}\n{}",
        leg.said
    );
}

/// Runs `check` on every item, as many at once as there are processors; all of them, whatever fails.
fn for_each<T: Send>(items: Vec<T>, check: impl Fn(T) + Sync) {
    undisturbed();
    let items = Mutex::new(items.into_iter());
    let failures = AtomicUsize::new(0);
    let workers = std::thread::available_parallelism().map_or(2, |n| n.get());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let next = items.lock().unwrap().next();
                    let Some(item) = next else { break };
                    if catch_unwind(AssertUnwindSafe(|| check(item))).is_err() {
                        failures.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert_eq!(
        failures.into_inner(),
        0,
        "faults with a wrong end, see above"
    );
}

#[test]
fn each_call_that_fails_is_told_and_costs_nothing_that_was_saved() {
    let all = std::env::var_os("SFT_FAULTS_ALL").is_some();
    let targets = chosen(targets());
    let faults: Vec<_> = targets
        .iter()
        .enumerate()
        .flat_map(|(i, target)| {
            let errors = target.errors();
            let one = i % errors.len();
            let errors = if all { errors } else { &errors[one..one + 1] };
            errors.iter().map(move |&what| (target.clone(), what))
        })
        .collect();
    println!("\n {} faults at {} calls", faults.len(), targets.len());
    let ops: BTreeSet<&str> = targets.iter().map(|t| &*t.op).collect();
    for op in [
        "create", "write", "sync", "rename", "mkdir", "open", "link", "remove",
    ] {
        assert!(ops.contains(op), "no {op} among {ops:?}");
    }
    for_each(faults, |(target, what)| check_failed_once(&target, what));
}

/// A disk that stays full from some write on: the run ends with a failure, and goes on when there is
/// space again.
#[test]
fn a_disk_that_stays_full_costs_nothing_that_was_saved() {
    const GROWS: &str = "write,copy,create,mkdir,link";
    let grows = |op: &&Op| op.number.is_some() && GROWS.split(',').any(|name| name == op.name);
    let count = undisturbed().ops.iter().filter(grows).count() as u64;
    let points: Vec<u64> = (1..=8).map(|i| 1 + i * count / 9).collect();
    for_each(points, |at| {
        let mut run = Run::new();
        let fault = Fault {
            at,
            what: "ENOSPC",
            ops: Some(GROWS.to_owned()),
            path: None,
            sticky: true,
        };
        let leg = run.leg(Some(&fault), None);
        assert_eq!(leg.status.code(), Some(1), "{fault:?}: {}", leg.said);
        assert!(
            leg.said.contains("No space left"),
            "{fault:?}: {}",
            leg.said
        );
        run.overwrite_if_no_checkpoint();
        let again = run.leg(None, None);
        end::check(&run, &again, &fault);
    });
}
