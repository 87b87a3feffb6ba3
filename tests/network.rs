//! The network against the peer's float64 computation of the same models: logits, loss, and the
//! gradient of every tensor.

use serde_json::Value;
use sft::data::{Batch, IGNORE};
use sft::dtype::DType;
use sft::io::WeightFiles;
use sft::memory::{Purpose, Workload};
use sft::model::{ModelSpec, ParamTable};
use sft::ops::Cpu;
use sft::train::Network;
use std::path::PathBuf;

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

fn network(model: &str, purpose: Purpose, tokens: usize, threads: usize) -> Network<Cpu> {
    let dir = fixtures().join("models").join(model);
    let spec = ModelSpec::from_dir(&dir).unwrap();
    let table = ParamTable::new(&spec);
    let work = Workload {
        purpose,
        tokens,
        sequence_length: tokens,
        stats: tokens,
        head_rows: 7,
        precision: DType::F32,
        workspace: 0,
    };
    let mut network = Network::new(Cpu::new(threads).unwrap(), spec, table, work).unwrap();
    let files = WeightFiles::open(&dir).unwrap();
    network
        .load_weights(|p, out| files.read_f32(&p.name, &p.shape, out))
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

#[test]
fn logits_loss_and_gradients_match_float64() {
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
        let mut network = network(model, train, ids.len(), 2);

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
fn gradients(mut network: Network<Cpu>, micro_batches: &[Batch]) -> (Vec<Vec<f32>>, f64) {
    let supervised: usize = micro_batches.iter().map(Batch::supervised).sum();
    for batch in micro_batches {
        network
            .forward_backward(batch, 1.0 / supervised as f64)
            .unwrap();
    }
    let params = network.table().params.clone();
    let all = params.iter().map(|param| {
        let mut gradient = vec![0.0; param.len()];
        network.read_gradient(param, &mut gradient).unwrap();
        gradient
    });
    let all = all.collect();
    (all, network.take_sums().unwrap().loss / supervised as f64)
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

/// Where only the order of additions differs: 1e-6 of the tensor's norm.
fn assert_equal_gradients(a: &[Vec<f32>], b: &[Vec<f32>], what: &str) {
    for (i, (a, b)) in a.iter().zip(b).enumerate() {
        let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
        let difference = norm(&mut a.iter().zip(b).map(|(&a, &b)| f64::from(a) - f64::from(b)));
        let size = norm(&mut a.iter().map(|&a| f64::from(a)));
        assert!(
            difference <= 1e-6 * size,
            "{what}, tensor {i}: {difference} of {size}"
        );
    }
}

#[test]
fn packing_leaves_the_gradients_equal() {
    for model in MODELS {
        let sequences = odd_sequences();
        let (alone, loss) = gradients(network(model, TRAIN, 128, 2), &sequences);
        let (together, packed_loss) =
            gradients(network(model, TRAIN, 128, 2), &[packed(&sequences)]);
        assert_equal_gradients(&alone, &together, model);
        assert!((loss / packed_loss - 1.0).abs() < 1e-6);
        assert!(alone.iter().flatten().any(|&g| g != 0.0));
    }
}

#[test]
fn the_accumulation_split_leaves_the_gradients_equal() {
    let s = odd_sequences();
    let whole = [packed(&s)];
    let halves = [packed(&s[..3]), packed(&s[3..])];
    let uneven = [packed(&s[..5]), packed(&s[5..])];
    let run = |batches: &[Batch]| gradients(network("qwen3-tiny", TRAIN, 128, 2), batches).0;
    let reference = run(&whole);
    assert_equal_gradients(&reference, &run(&halves), "halves");
    assert_equal_gradients(&reference, &run(&uneven), "uneven");
}

#[test]
fn recompute_leaves_the_gradients_equal_to_the_bit() {
    for model in MODELS {
        let batches = [packed(&odd_sequences())];
        let kept = gradients(network(model, TRAIN, 128, 2), &batches);
        let recompute = Purpose::Train { recompute: true };
        let again = gradients(network(model, recompute, 128, 2), &batches);
        assert_eq!(kept, again, "{model}");
    }
}

#[test]
fn the_number_of_threads_leaves_the_gradients_equal_to_the_bit() {
    for model in ["llama-tiny-untied", "qwen2-tiny", "qwen3-tiny"] {
        let batches = [packed(&odd_sequences())];
        let one = gradients(network(model, TRAIN, 128, 1), &batches);
        for threads in [1, 2, 3] {
            assert_eq!(
                one,
                gradients(network(model, TRAIN, 128, threads), &batches),
                "{model}"
            );
        }
    }
}

#[test]
fn a_wholly_masked_micro_batch_adds_nothing() {
    let mut masked = packed(&odd_sequences());
    masked.labels.fill(IGNORE);
    let mut network = network("llama-tiny", TRAIN, 128, 2);
    network.forward_backward(&masked, 1.0).unwrap();
    let params = network.table().params.clone();
    for param in &params {
        let mut gradient = vec![1.0; param.len()];
        network.read_gradient(param, &mut gradient).unwrap();
        assert!(gradient.iter().all(|&g| g == 0.0));
    }
    assert_eq!(network.take_sums().unwrap().supervised, 0);
}

#[test]
fn decoding_gives_the_logits_of_the_whole_forward() {
    for model in MODELS {
        let ids = packed(&odd_sequences()).tokens;
        let mut batch = Batch::default();
        batch.push(&ids, &ids);
        let mut whole = network(model, Purpose::Evaluate, ids.len(), 2);
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
        let mut network = network(model, generate, ids.len(), 2);
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

#[test]
fn a_batch_beyond_the_plan_is_refused() {
    let mut network = network("llama-tiny", TRAIN, 16, 1);
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
