//! A damaged checkpoint is passed by: the run goes on from the one before it, says so, and ends as the
//! undisturbed one.

use super::end;
use super::run::{Run, names};
use super::shim::Fault;
use std::fs;

/// A run that died right after checkpoint-15 got its name; earlier ones stand beside it.
fn died_after_15() -> Run {
    let mut run = Run::new();
    let fault = Fault {
        path: Some("*/out/checkpoint-15".to_owned()),
        ops: Some("rename".to_owned()),
        ..Fault::kill(1, "kill-after")
    };
    let leg = run.leg(Some(&fault), None);
    assert!(leg.was_killed(), "{}", leg.said);
    assert!(run.checkpoints().ends_with(&[12, 15]));
    run
}

/// Flips one bit of the file `name` of checkpoint-15, `place` of the way into it, and resumes; `says`
/// must be part of the warning.
fn check_flip(name: &str, place: f64, says: &str) {
    let mut run = died_after_15();
    let path = run.out().join("checkpoint-15").join(name);
    let mut bytes = fs::read(&path).unwrap();
    let at = (bytes.len() as f64 * place) as usize;
    bytes[at] ^= 1 << (at % 8);
    fs::write(&path, bytes).unwrap();
    let leg = run.leg(None, None);
    let warning = leg
        .said
        .lines()
        .find(|line| line.contains("warning") && line.contains("checkpoint-15"));
    let warning = warning.unwrap_or_else(|| panic!("{name}: no warning:\n{}", leg.said));
    assert!(
        warning.contains(name) && warning.contains(says),
        "{name} at {at}: {warning}"
    );
    end::check(&run, &leg, &(name, at));
}

#[test]
fn a_flipped_bit_is_named_and_the_checkpoint_before_is_taken() {
    check_flip("model.safetensors", 0.0, "is not what was written");
    check_flip("model.safetensors", 0.5, "tensor `model.");
    check_flip("optimizer.safetensors", 0.3, "tensor `exp_avg.model.");
    check_flip("optimizer.safetensors", 0.8, "tensor `exp_avg_sq.model.");
    check_flip("best_model.safetensors", 0.7, "tensor `model.");
    check_flip("tokenizer.json", 0.5, "");
    check_flip("checkpoint.json", 0.2, "");
}

#[test]
fn a_missing_or_cut_file_is_named_and_the_checkpoint_before_is_taken() {
    for name in names(&died_after_15().out().join("checkpoint-15")) {
        for cut in [None, Some(1), Some(100)] {
            let mut run = died_after_15();
            let path = run.out().join("checkpoint-15").join(&name);
            let bytes = fs::read(&path).unwrap();
            match cut {
                None => fs::remove_file(&path).unwrap(),
                Some(by) => fs::write(&path, &bytes[..bytes.len().saturating_sub(by)]).unwrap(),
            }
            let leg = run.leg(None, None);
            let warned = leg.said.lines().any(|line| {
                line.contains("warning") && line.contains("checkpoint-15") && line.contains(&name)
            });
            assert!(warned, "{name}, cut by {cut:?}:\n{}", leg.said);
            end::check(&run, &leg, &(&name, cut));
        }
    }
}
