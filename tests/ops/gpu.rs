//! The program that verifies a GPU, `benches/gpu`, at small shapes on the emulated device.

#[path = "../../benches/gpu/suite/mod.rs"]
mod suite;

use sft::dtype::DType;
use suite::check::{Output, compare};
use suite::{Model, Scale};

const MODEL: Model = Model {
    name: "small",
    hidden: 72,
    heads: 2,
    kv_heads: 1,
    head_dim: 64,
    width: 40,
    vocab: 203,
};

/// What the emulated device computes in seconds.
fn small() -> Scale {
    Scale {
        models: &[MODEL],
        sequences: &[1, 5, 67],
        head_rows: 5,
        parameters: 2003,
        arena: 64 << 20,
        speed_sequences: (2, 16),
        speed_head_rows: 4,
        speed_parameters: 4096,
        batch_seconds: 0.0,
        updates: &[("tiny", 2, 32, 3)],
    }
}

#[test]
fn the_program_for_a_gpu_passes_on_the_emulated_device() {
    let folder = tempfile::tempdir().unwrap();
    let open = || sft::cuda::Cuda::emulated(1);
    let report = suite::run(&small(), open, "cuda-emulated", folder.path()).unwrap();
    for key in ["checks", "updates"] {
        let rows = report[key].as_array().unwrap();
        let failed: Vec<_> = rows.iter().filter(|row| row["passed"] != true).collect();
        assert!(!rows.is_empty() && failed.is_empty(), "{key}: {failed:#?}");
    }
    assert!(!report["speed"].as_array().unwrap().is_empty());
    assert_eq!(report["passed"], true);
}

/// Whether one output passes, and the share of its bound that it takes.
fn share(got: &[f32], expected: &[f32], format: DType) -> (bool, f64) {
    let output = |values: &[f32]| Output::new("x", values.to_vec(), 1.0, 4.0);
    let row = compare(&output(got), &output(expected), format);
    (
        row["passed"] == true,
        row["share_of_bound"].as_f64().unwrap_or(f64::INFINITY),
    )
}

#[test]
fn an_error_beyond_the_bound_fails() {
    let expected = [1.0f32, -1.0, 1.0];
    // Two roundings of 2^-8 and four of 2^-24.
    let bound = 2f32.powi(-7) + 2f32.powi(-22);
    let (passed, taken) = share(&[1.0 + bound * 0.99, -1.0, 1.0], &expected, DType::BF16);
    assert!(passed && (0.98..1.0).contains(&taken), "{taken}");
    assert!(!share(&[1.0, -1.0 - bound * 1.01, 1.0], &expected, DType::BF16).0);
    assert!(!share(&[1.0, -1.0, 1.0 + 3e-7], &expected, DType::F32).0);
}

#[test]
fn what_is_no_number_fails() {
    for bad in [f32::NAN, f32::INFINITY] {
        assert!(!share(&[bad, 1.0], &[1.0, 1.0], DType::BF16).0);
        assert!(!share(&[1.0, 1.0], &[bad, 1.0], DType::BF16).0);
    }
    assert!(!share(&[1.0], &[1.0, 1.0], DType::BF16).0);
    assert!(!share(&[1e-30], &[0.0], DType::F32).0);
}
