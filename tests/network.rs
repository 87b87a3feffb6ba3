//! The network against the peer's float64 computation of the same models: logits, loss, and the
//! gradient of every tensor.

use serde_json::Value;
use sft::data::Batch;
use sft::io::WeightFiles;
use sft::memory::{Purpose, Workload};
use sft::model::{ModelSpec, ParamTable};
use sft::ops::Cpu;
use sft::train::Network;
use std::path::PathBuf;

fn fixtures() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
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
        let sums = network.take_sums();
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
            network.read_gradient(param, &mut gradient);
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
