//! The network against the peer's float64 computation of the same models: logits, loss, and the
//! gradient of every tensor. In half precision it may be off by at most twice what the peer's own
//! mixed precision is off.

use serde_json::Value;
use sft::data::{Batch, IGNORE};
use sft::dtype::DType;
use sft::io::WeightFiles;
use sft::memory::{Purpose, Workload};
use sft::model::{ModelSpec, ParamTable};
use sft::train::Network;
use std::path::PathBuf;

#[path = "ops/device.rs"]
mod device;
#[cfg(feature = "cuda")]
#[path = "network/failing_device.rs"]
mod failing_device;
#[cfg(feature = "emulate")]
#[path = "network/graphs.rs"]
mod graphs;
#[cfg(feature = "cuda")]
#[path = "network/products.rs"]
mod products;
use device::{Device, on_every_backend};

/// The folder beside this file; `SFT_FIXTURES` where the test runs away from its repository.
fn fixtures() -> PathBuf {
    let here = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    std::env::var_os("SFT_FIXTURES").map_or_else(here, PathBuf::from)
}

const MODELS: [&str; 6] = [
    "llama-tiny",
    "llama-tiny-untied",
    "llama3-tiny",
    "qwen2-tiny",
    "qwen3-tiny",
    "mistral-tiny",
];

const FORMATS: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// What a trainer multiplies the loss by, so that float16 holds small gradients.
fn loss_scale(precision: DType) -> f64 {
    match precision {
        DType::F16 => 65536.0,
        DType::F32 | DType::BF16 => 1.0,
    }
}

fn network<B: Device>(model: &str, purpose: Purpose, tokens: usize, threads: usize) -> Network<B> {
    network_in::<B>(DType::F32, model, purpose, tokens, threads)
}

fn network_in<B: Device>(
    precision: DType,
    model: &str,
    purpose: Purpose,
    tokens: usize,
    threads: usize,
) -> Network<B> {
    let dir = fixtures().join("models").join(model);
    let spec = ModelSpec::from_dir(&dir).unwrap();
    let table = ParamTable::new(&spec);
    let work = Workload {
        purpose,
        tokens,
        sequence_length: tokens,
        stats: tokens,
        head_rows: 7,
        precision,
        workspace: B::WORKSPACE_BYTES,
    };
    let mut network = Network::new(B::with_threads(threads), spec, table, work).unwrap();
    let files = WeightFiles::open(&dir).unwrap();
    network
        .load_weights(|p, start, out| files.read_f32_from(&p.name, &p.shape, start, out))
        .unwrap();
    network
}

fn numbers(value: &Value) -> Vec<f64> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_f64().unwrap())
        .collect()
}

fn fixture(name: &str) -> Value {
    let path = fixtures().join("logits").join(format!("{name}.json"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn logits_loss_and_gradients_match_float64<B: Device>() {
    for name in MODELS
        .iter()
        .flat_map(|m| [m.to_string(), format!("{m}.long")])
    {
        let model = name.trim_end_matches(".long");
        let fixture = fixture(&name);
        let ids: Vec<i32> = numbers(&fixture["input_ids"])
            .iter()
            .map(|&x| x as i32)
            .collect();
        let mut batch = Batch::default();
        batch.push(&ids, &ids);
        let train = Purpose::Train { recompute: false };
        let mut network = network::<B>(model, train, ids.len(), 2);

        // Twice what the peer's own float32 differs from float64, for logits of size 1.
        let bound = 2.0 * fixture["float32_max_abs_difference"].as_f64().unwrap() + 1e-6;
        let vocab = network.spec().vocab_size;
        let mut logits = vec![0.0; ids.len() * vocab];
        network
            .logits(&batch, |row, l| {
                logits[row * vocab..][..l.len()].copy_from_slice(l)
            })
            .unwrap();
        let positions = numbers(&fixture["positions"]);
        for (&position, expected) in positions.iter().zip(fixture["logits"].as_array().unwrap()) {
            let found = &logits[position as usize * vocab..][..vocab];
            for (found, expected) in found.iter().zip(numbers(expected)) {
                let difference = (f64::from(*found) - expected).abs();
                assert!(
                    difference < bound,
                    "{name} at {position}: {found} {expected}"
                );
            }
        }

        let supervised = fixture["supervised_tokens"].as_f64().unwrap();
        network.forward_backward(&batch, 1.0 / supervised).unwrap();
        let sums = network.take_sums().unwrap();
        let loss = fixture["loss_sum"].as_f64().unwrap();
        assert_eq!(sums.supervised as f64, supervised);
        assert!(
            (sums.loss / loss - 1.0).abs() < 1e-6,
            "{name}: {} {loss}",
            sums.loss
        );

        let params = network.table().params.clone();
        let gradients = fixture["gradients_of_mean_loss"].as_object().unwrap();
        assert_eq!(gradients.len(), params.len(), "{name}");
        for param in &params {
            let expected = &gradients[&param.name];
            let mut gradient = vec![0.0; param.len()];
            network.read_gradient(param, &mut gradient).unwrap();
            let norm = gradient
                .iter()
                .map(|&g| f64::from(g).powi(2))
                .sum::<f64>()
                .sqrt();
            let expected_norm = expected["norm"].as_f64().unwrap();
            assert!(
                (norm / expected_norm - 1.0).abs() < 1e-5,
                "{name} {}: norm {norm} {expected_norm}",
                param.name
            );
            // Single elements: float32 rounding relative to the tensor's typical element.
            let typical = expected_norm / (param.len() as f64).sqrt();
            for (found, expected) in gradient.iter().zip(numbers(&expected["first"])) {
                assert!(
                    (f64::from(*found) - expected).abs() < 1e-4 * (typical + expected.abs()),
                    "{name} {}: {found} {expected}",
                    param.name
                );
            }
        }
    }
}

/// Gradients of all tensors and the loss of some micro-batches of one update.
fn gradients<B: Device>(mut network: Network<B>, micro_batches: &[Batch]) -> (Vec<Vec<f32>>, f64) {
    let supervised: usize = micro_batches.iter().map(Batch::supervised).sum();
    let scale = loss_scale(network.workload().precision);
    for batch in micro_batches {
        network
            .forward_backward(batch, scale / supervised as f64)
            .unwrap();
    }
    let params = network.table().params.clone();
    let all = params.iter().map(|param| {
        let mut gradient = vec![0.0; param.len()];
        network.read_gradient(param, &mut gradient).unwrap();
        gradient.iter_mut().for_each(|g| *g /= scale as f32);
        gradient
    });
    let all = all.collect();
    (all, network.take_sums().unwrap().loss / supervised as f64)
}

/// The L2 norm of the difference, relative to that of `b`.
fn relative_difference(a: &[f32], b: &[f32]) -> f64 {
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b)));
    difference / norm(&mut b.iter().map(|&b| f64::from(b)))
}

fn half_precision_is_at_most_twice_as_far_off_as_the_peers<B: Device>() {
    for name in MODELS
        .iter()
        .flat_map(|m| [m.to_string(), format!("{m}.long")])
    {
        let model = name.trim_end_matches(".long");
        let fixture = fixture(&name);
        let ids: Vec<i32> = numbers(&fixture["input_ids"])
            .iter()
            .map(|&x| x as i32)
            .collect();
        let mut batch = Batch::default();
        batch.push(&ids, &ids);
        let batches = [batch];
        // Within 1e-5 of float64, as the test above has it.
        let (exact, _) = gradients(network::<B>(model, TRAIN, ids.len(), 2), &batches);
        for precision in [DType::BF16, DType::F16] {
            let peer = &fixture["mixed_precision"][precision.name()];
            let peer_off = peer["max_abs_difference"].as_f64().unwrap();
            let mut network = network_in::<B>(precision, model, TRAIN, ids.len(), 2);
            let params = network.table().params.clone();
            let vocab = network.spec().vocab_size;
            let mut logits = vec![0.0; ids.len() * vocab];
            network
                .logits(&batches[0], |row, l| {
                    logits[row * vocab..][..l.len()].copy_from_slice(l)
                })
                .unwrap();
            let positions = numbers(&fixture["positions"]);
            let mut off = 0f64;
            for (&position, expected) in positions.iter().zip(fixture["logits"].as_array().unwrap())
            {
                let found = &logits[position as usize * vocab..][..vocab];
                for (found, expected) in found.iter().zip(numbers(expected)) {
                    off = off.max((f64::from(*found) - expected).abs());
                }
            }
            assert!(
                off <= 2.0 * peer_off,
                "{name} {precision}: {off} {peer_off}"
            );
            assert!(off > 1e-4, "{name} {precision}: that was float32");

            // A loss moves by at most twice what a logit moves.
            let (found, loss) = gradients(network, &batches);
            let loss_off = (loss - fixture["loss_mean"].as_f64().unwrap()).abs();
            assert!(
                loss_off <= 2.0 * peer_off,
                "{name} {precision}: loss {loss}"
            );
            for ((param, found), exact) in params.iter().zip(&found).zip(&exact) {
                let off = relative_difference(found, exact);
                let peer_off = peer["gradient_differences"][&param.name].as_f64().unwrap();
                assert!(
                    off <= 2.0 * peer_off,
                    "{name} {precision} {}: {off} {peer_off}",
                    param.name
                );
            }
        }
    }
}

/// Sequences of odd lengths, each with its own mask: one token, two, a prime, more than a block of
/// attention; one wholly masked but for its last label.
fn odd_sequences() -> Vec<Batch> {
    let ids: Vec<i32> = numbers(&fixture("llama-tiny.long")["input_ids"])
        .iter()
        .map(|&x| x as i32)
        .collect();
    let mut start = 0;
    [1, 2, 7, 67, 31, 13]
        .iter()
        .enumerate()
        .map(|(i, &length)| {
            let tokens = &ids[start..start + length];
            start += length;
            let labels: Vec<i32> = tokens
                .iter()
                .enumerate()
                .map(|(t, &id)| match i {
                    4 if t + 1 < length => IGNORE,
                    _ if t % 5 == 3 => IGNORE,
                    _ => id,
                })
                .collect();
            let mut batch = Batch::default();
            batch.push(tokens, &labels);
            batch
        })
        .collect()
}

fn packed(sequences: &[Batch]) -> Batch {
    let mut all = Batch::default();
    sequences
        .iter()
        .for_each(|s| all.push(&s.tokens, &s.labels));
    all
}

const TRAIN: Purpose = Purpose::Train { recompute: false };

/// Where only the order of additions differs: 1e-6 of the tensor's norm. In half precision that may
/// turn the rounding of some stored values the other way, each by one unit in the last place: half the
/// format's unit roundoff bounds what many such turns make of a tensor's norm.
fn assert_equal_gradients(precision: DType, a: &[Vec<f32>], b: &[Vec<f32>], what: &str) {
    let bound = match precision {
        DType::F32 => 1e-6,
        DType::BF16 => 2f64.powi(-9),
        DType::F16 => 2f64.powi(-12),
    };
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        let difference = relative_difference(b, a);
        assert!(
            difference <= bound,
            "{what} {precision}, tensor {i}: {difference}"
        );
    }
}

fn packing_leaves_the_gradients_equal<B: Device>() {
    for (model, precision) in MODELS.iter().flat_map(|m| FORMATS.map(|f| (m, f))) {
        let sequences = odd_sequences();
        let (alone, loss) = gradients(network_in::<B>(precision, model, TRAIN, 128, 2), &sequences);
        let (together, packed_loss) = gradients(
            network_in::<B>(precision, model, TRAIN, 128, 2),
            &[packed(&sequences)],
        );
        assert_equal_gradients(precision, &alone, &together, model);
        assert!((loss / packed_loss - 1.0).abs() < 1e-6);
        assert!(alone.iter().flatten().any(|&g| g != 0.0));
    }
}

fn the_accumulation_split_leaves_the_gradients_equal<B: Device>() {
    let s = odd_sequences();
    let whole = [packed(&s)];
    let halves = [packed(&s[..3]), packed(&s[3..])];
    let uneven = [packed(&s[..5]), packed(&s[5..])];
    for precision in FORMATS {
        let run = |batches: &[Batch]| {
            gradients(
                network_in::<B>(precision, "qwen3-tiny", TRAIN, 128, 2),
                batches,
            )
            .0
        };
        let reference = run(&whole);
        assert_equal_gradients(precision, &reference, &run(&halves), "halves");
        assert_equal_gradients(precision, &reference, &run(&uneven), "uneven");
    }
}

fn recompute_leaves_the_gradients_equal_to_the_bit<B: Device>() {
    for (model, precision) in MODELS.iter().flat_map(|m| FORMATS.map(|f| (m, f))) {
        let batches = [packed(&odd_sequences())];
        let kept = gradients(network_in::<B>(precision, model, TRAIN, 128, 2), &batches);
        let recompute = Purpose::Train { recompute: true };
        let again = gradients(
            network_in::<B>(precision, model, recompute, 128, 2),
            &batches,
        );
        assert_eq!(kept, again, "{model} {precision}");
    }
}

fn the_number_of_threads_leaves_the_gradients_equal_to_the_bit<B: Device>() {
    let models = ["llama-tiny-untied", "qwen2-tiny", "qwen3-tiny"];
    for (model, precision) in models.iter().flat_map(|m| FORMATS.map(|f| (m, f))) {
        let batches = [packed(&odd_sequences())];
        let run = |threads| {
            gradients(
                network_in::<B>(precision, model, TRAIN, 128, threads),
                &batches,
            )
        };
        let one = run(1);
        for threads in [1, 2, 3] {
            assert_eq!(one, run(threads), "{model} {precision}");
        }
    }
}

fn a_wholly_masked_micro_batch_adds_nothing<B: Device>() {
    let mut masked = packed(&odd_sequences());
    masked.labels.fill(IGNORE);
    let mut network = network::<B>("llama-tiny", TRAIN, 128, 2);
    network.forward_backward(&masked, 1.0).unwrap();
    let params = network.table().params.clone();
    for param in &params {
        let mut gradient = vec![1.0; param.len()];
        network.read_gradient(param, &mut gradient).unwrap();
        assert!(gradient.iter().all(|&g| g == 0.0));
    }
    assert_eq!(network.take_sums().unwrap().supervised, 0);
}

fn decoding_gives_the_logits_of_the_whole_forward<B: Device>() {
    for model in MODELS {
        let ids = packed(&odd_sequences()).tokens;
        let mut batch = Batch::default();
        batch.push(&ids, &ids);
        let mut whole = network::<B>(model, Purpose::Evaluate, ids.len(), 2);
        let vocab = whole.spec().vocab_size;
        let mut expected = vec![0.0; ids.len() * vocab];
        whole
            .logits(&batch, |row, l| {
                expected[row * vocab..][..l.len()].copy_from_slice(l)
            })
            .unwrap();
        let generate = Purpose::Generate {
            capacity: ids.len(),
        };
        let mut network = network::<B>(model, generate, ids.len(), 2);
        let prompt = 90; // beyond the sliding window of mistral-tiny
        let mut found = network.prefill(&ids[..prompt]).unwrap();
        for position in prompt..ids.len() {
            let row = &expected[(position - 1) * vocab..][..vocab];
            let difference = found
                .iter()
                .zip(row)
                .map(|(a, b)| (a - b).abs())
                .fold(0.0, f32::max);
            assert!(difference < 2e-5, "{model} at {position}: {difference}");
            found = network.decode(ids[position], position).unwrap();
        }
        assert!(network.decode(0, ids.len()).is_err());
    }
}

fn a_batch_beyond_the_plan_is_refused<B: Device>() {
    let mut network = network::<B>("llama-tiny", TRAIN, 16, 1);
    let error = network
        .forward_backward(&packed(&odd_sequences()), 1.0)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("121 tokens, but memory is planned for 16"),
        "{error}"
    );
}

#[test]
fn the_plan_is_close_to_the_bytes_that_live_together() {
    let spec = ModelSpec::from_dir(fixtures().join("models/llama-tiny")).unwrap();
    let table = ParamTable::new(&spec);
    for recompute in [false, true] {
        let purpose = Purpose::Train { recompute };
        let work = Workload {
            purpose,
            tokens: 4096,
            sequence_length: 512,
            stats: 4096,
            head_rows: 512,
            precision: DType::F32,
            workspace: 0,
        };
        let plan = sft::memory::NetworkLayout::new(&spec, &table, &work).plan;
        let ratio = plan.total_bytes as f64 / plan.lower_bound() as f64;
        assert!(ratio <= 1.05, "{ratio}");
    }
}

on_every_backend!(
    logits_loss_and_gradients_match_float64,
    half_precision_is_at_most_twice_as_far_off_as_the_peers,
    packing_leaves_the_gradients_equal,
    the_accumulation_split_leaves_the_gradients_equal,
    recompute_leaves_the_gradients_equal_to_the_bit,
    the_number_of_threads_leaves_the_gradients_equal_to_the_bit,
    a_wholly_masked_micro_batch_adds_nothing,
    decoding_gives_the_logits_of_the_whole_forward,
    a_batch_beyond_the_plan_is_refused,
);
