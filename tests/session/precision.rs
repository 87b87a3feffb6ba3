//! Mixed precision through a session: overflow and loss scale, and what the plan holds.

use crate::*;

/// A batch with one supervised token, whose loss on the untouched model is so high that its gradient,
/// nearly −1, overflows float16 at the first loss scale.
fn surprising_batch(session: &mut Session) -> Batch {
    (300..400)
        .map(|token| {
            let mut batch = Batch::default();
            batch.push(&[300, token], &[300, token]);
            batch
        })
        .find(|batch| {
            session
                .evaluate_batch(std::slice::from_ref(batch))
                .unwrap()
                .loss
                > 8.5
        })
        .expect("a token of low probability")
}

#[test]
fn an_overflow_of_float16_skips_the_update_halves_the_scale_and_is_no_broken_gradient() {
    let dir = folder();
    let keys = json!({"fp16": true, "save_strategy": "no", "max_steps": 4});
    let mut session = start(host_fed(dir.path(), keys));
    let batch = surprising_batch(&mut session);
    let save = |session: &mut Session, name: &str| {
        session.save(dir.path().join(name)).unwrap();
        std::fs::read(dir.path().join(name).join("model.safetensors")).unwrap()
    };
    let before = save(&mut session, "before");
    let step = |session: &mut Session| {
        let report = session.step_batch(std::slice::from_ref(&batch)).unwrap();
        report.unwrap()
    };
    let first = step(&mut session);
    assert!(!first.grad_norm.is_finite() && first.loss.is_finite() && first.overflowed());
    assert_eq!(
        (first.loss_scale, first.skipped_updates),
        (Some(65536.0), 1)
    );
    assert_eq!(
        first.stop_reason, None,
        "the scale was too large, not the gradient"
    );
    assert!(
        before == save(&mut session, "after"),
        "the update was applied"
    );

    let second = step(&mut session);
    assert_eq!(second.loss, first.loss);
    assert_eq!(
        (second.loss_scale, second.skipped_updates),
        (Some(32768.0), 1)
    );
    assert!(second.grad_norm.is_finite() && second.grad_norm > 0.0);
    // As the peer's, the schedule goes by the update's number.
    assert_eq!(second.learning_rate, 0.75 * first.learning_rate);
    // Adam's first step moves a weight by the learning rate, whatever the gradient's size; had the
    // skipped update counted as a step, the bias correction would make three quarters of that.
    save(&mut session, "applied");
    let norm = |name: &str| {
        let mut values = [0.0; 64];
        let files = sft::io::WeightFiles::open(dir.path().join(name)).unwrap();
        files
            .read_f32("model.norm.weight", &[64], &mut values)
            .unwrap();
        values
    };
    let moved = norm("before").into_iter().zip(norm("applied"));
    let moved = moved
        .map(|(a, b)| f64::from((a - b).abs()))
        .fold(0.0, f64::max);
    assert!((moved / second.learning_rate - 1.0).abs() < 1e-2, "{moved}");
    let third = step(&mut session);
    assert!(third.loss < second.loss);
    let rows = log_rows(dir.path(), "loss_scale");
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[1]["loss_scale"], 32768.0);
    assert_eq!(rows[1]["skipped_updates"], 1);
}

#[test]
fn a_broken_model_stops_in_float16_at_any_loss_scale() {
    let dir = folder();
    let keys = json!({"fp16": true, "learning_rate": 1e30, "max_grad_norm": 0.0});
    let mut session = start(host_fed(dir.path(), keys));
    session.step_batch(&[batch(1)]).unwrap().unwrap();
    // The weights are now about 1e30 in size, beyond float16: the loss itself is NaN.
    let second = session.step_batch(&[batch(2)]).unwrap().unwrap();
    assert!(second.loss.is_nan() && second.loss_scale == Some(65536.0));
    assert_eq!(second.stop_reason, Some(StopReason::NonFinite));
}

#[test]
fn a_plan_shows_what_half_precision_holds() {
    use sft::memory::SegmentKind;
    let dir = folder();
    let segments = |keys: Value| {
        let plan = plan(&config(dir.path(), keys)).unwrap();
        let bytes = |name: &str| {
            let segment = plan.segments.iter().find(|s| s.name == name);
            segment.unwrap_or_else(|| panic!("{name}")).bytes
        };
        let operands = bytes("operands");
        assert_eq!(
            plan.bytes_of(SegmentKind::Weights),
            operands + bytes("weights")
        );
        (
            operands,
            bytes("weights"),
            bytes("layers.0.x"),
            bytes("normed"),
        )
    };
    let full = segments(json!({}));
    assert_eq!(full.0, 0);
    for format in [json!({"bf16": true}), json!({"fp16": true})] {
        let half = segments(format);
        assert_eq!(
            (half.1, half.2),
            (full.1, full.2),
            "master weights and residual stream"
        );
        assert_eq!(half.3, full.3 / 2, "what matrix products read");
        // Matrices alone: all of llama-tiny but its norms.
        assert!(half.0 < half.1 / 2 && half.0 > half.1 / 2 - 2048);
    }
}
