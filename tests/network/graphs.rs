//! Sequences of launches recorded once and replayed: a network trains to the same bits as when every
//! launch is made anew, whatever comes between the replays. The backend itself compares each replay
//! with what would be launched instead, so a size that a key lacks is a failure here.

use crate::fixtures;
use sft::cuda::{Arg, Cuda, Driver, Emulated, Graph, Launch, Limits, VendorProduct};
use sft::data::{Batch, IGNORE};
use sft::dtype::DType;
use sft::io::WeightFiles;
use sft::memory::{Purpose, Workload};
use sft::model::{ModelSpec, ParamTable};
use sft::ops::{Backend, Recording, Region};
use sft::train::{AdamWOptions, Network};
use sft::{ErrorKind, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// How a driver was used, and what it refuses.
#[derive(Default)]
struct Seen {
    launches: AtomicUsize,
    captures: AtomicUsize,
    replays: AtomicUsize,
    graphs: AtomicUsize,
    reads: AtomicUsize,
    /// 1: no capture begins; 2: none becomes a graph.
    refuses: AtomicUsize,
}

/// The emulated device, watched.
struct Watched(Emulated, Arc<Seen>);

impl Driver for Watched {
    fn describe(&self) -> String {
        self.0.describe()
    }
    fn limits(&self) -> Limits {
        self.0.limits()
    }
    fn allocate(&mut self, bytes: usize) -> Result<u64> {
        self.0.allocate(bytes)
    }
    fn free(&mut self, address: u64) {
        self.0.free(address);
    }
    fn write(&mut self, to: u64, from: &[u8]) -> Result<()> {
        self.0.write(to, from)
    }
    fn read(&mut self, from: u64, to: &mut [u8]) -> Result<()> {
        self.1.reads.fetch_add(1, Relaxed);
        self.0.read(from, to)
    }
    fn copy(&mut self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.0.copy(from, to, bytes)
    }
    fn fill32(&mut self, to: u64, bits: u32, count: usize) -> Result<()> {
        self.0.fill32(to, bits, count)
    }
    fn fill16(&mut self, to: u64, bits: u16, count: usize) -> Result<()> {
        self.0.fill16(to, bits, count)
    }
    fn launch(&mut self, kernel: &'static str, launch: Launch, arguments: &[Arg]) -> Result<()> {
        self.1.launches.fetch_add(1, Relaxed);
        self.0.launch(kernel, launch, arguments)
    }
    fn vendor_product(&mut self, product: &VendorProduct) -> Result<bool> {
        self.0.vendor_product(product)
    }
    fn begin_capture(&mut self) -> Result<bool> {
        self.1.captures.fetch_add(1, Relaxed);
        match self.1.refuses.load(Relaxed) {
            1 => Ok(false),
            _ => self.0.begin_capture(),
        }
    }
    fn end_capture(&mut self) -> Result<Option<Graph>> {
        let graph = self.0.end_capture()?;
        if self.1.refuses.load(Relaxed) == 2 {
            graph.into_iter().for_each(|graph| self.0.forget(graph));
            return Ok(None);
        }
        self.1.graphs.fetch_add(1, Relaxed);
        Ok(graph)
    }
    fn replay(&mut self, graph: Graph) -> Result<()> {
        self.1.replays.fetch_add(1, Relaxed);
        self.0.replay(graph)
    }
    fn forget(&mut self, graph: Graph) {
        self.1.graphs.fetch_sub(1, Relaxed);
        self.0.forget(graph);
    }
}

fn watched() -> (Cuda, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    let driver = Watched(Emulated::new(1), seen.clone());
    (Cuda::new(Box::new(driver)), seen)
}

const TOKENS: usize = 40;

fn network(backend: Cuda, precision: DType, recompute: bool) -> Network<Cuda> {
    let dir = fixtures().join("models/qwen3-tiny");
    let spec = ModelSpec::from_dir(&dir).unwrap();
    let table = ParamTable::new(&spec);
    let work = Workload {
        purpose: Purpose::Train { recompute },
        tokens: TOKENS,
        sequence_length: TOKENS,
        stats: 3 * TOKENS / 2,
        head_rows: 7,
        precision,
        workspace: Cuda::WORKSPACE_BYTES,
    };
    let mut network = Network::new(backend, spec, table, work).unwrap();
    let files = WeightFiles::open(&dir).unwrap();
    network
        .load_weights(|p, start, out| files.read_f32_from(&p.name, &p.shape, start, out))
        .unwrap();
    network
}

/// Sequences of these lengths, with some labels masked; no two seeds give the same.
fn batch(lengths: &[usize], seed: usize) -> Batch {
    let mut batch = Batch::default();
    let mut state = seed as u64 * 7919 + 17;
    let mut random = |below: u64| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
        (state >> 33) % below
    };
    for &len in lengths {
        let ids: Vec<i32> = (0..len).map(|_| random(200) as i32 + 3).collect();
        let mask = |&id: &i32| if random(4) == 0 { IGNORE } else { id };
        let labels: Vec<i32> = ids.iter().map(mask).collect();
        batch.push(&ids, &labels);
    }
    batch
}

const OPTIONS: AdamWOptions = AdamWOptions {
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.01,
    max_grad_norm: 1.0,
};

/// Updates whose sizes repeat and change, with accumulation and evaluations between them: all numbers
/// that come back, and the weights at the end.
fn train(network: &mut Network<Cuda>) -> Vec<f64> {
    let updates: [&[&[usize]]; 6] = [
        &[&[12, 9]],
        &[&[9, 12]],
        &[&[5, 5, 5, 6], &[21]],
        &[&[3, 18]],
        &[&[40], &[17, 23]],
        &[&[10, 11], &[4, 17], &[20, 1]],
    ];
    let mut numbers = Vec::new();
    for (step, micro_batches) in updates.iter().enumerate() {
        for (i, lengths) in micro_batches.iter().enumerate() {
            let scale = 1.0 / (10 + step) as f64;
            let batch = batch(lengths, 10 * step + i);
            network.forward_backward(&batch, scale).unwrap();
        }
        let rate = 1e-3 / (step + 1) as f64;
        let clip = network.update(&OPTIONS, rate, 1.0).unwrap();
        let sums = network.take_sums().unwrap();
        numbers.extend([f64::from(clip.norm), sums.loss, sums.entropy]);
        network.forward_loss(&batch(&[8, 13], step)).unwrap();
        network.forward_loss(&batch(&[2, 2, 2], step)).unwrap();
        numbers.push(network.take_sums().unwrap().loss);
    }
    for param in network.table().params.clone() {
        let mut values = vec![0.0; param.len()];
        network.read_weight(&param, 0, &mut values).unwrap();
        numbers.extend(values.iter().copied().map(f64::from));
    }
    numbers
}

fn bits(numbers: &[f64]) -> Vec<u64> {
    numbers.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_network_trains_to_the_same_bits_with_and_without_graphs() {
    for (precision, recompute) in [(DType::F32, false), (DType::BF16, true)] {
        let (mut direct, launched) = watched();
        direct.set_graphs(false);
        let expected = train(&mut network(direct, precision, recompute));
        assert_eq!(launched.captures.load(Relaxed), 0);
        assert_eq!(launched.replays.load(Relaxed), 0);

        let (backend, seen) = watched();
        let found = train(&mut network(backend, precision, recompute));
        assert_eq!(bits(&found), bits(&expected), "{precision:?}");
        let (replays, graphs) = (seen.replays.load(Relaxed), seen.graphs.load(Relaxed));
        assert!(replays > 2 * graphs && graphs >= 3, "{replays} {graphs}");
        assert!(seen.launches.load(Relaxed) < launched.launches.load(Relaxed));
    }
}

/// Sequences that fill 20 and 21 tokens in many ways: what is launched depends on the key alone, else
/// the comparison of a replay would fail.
#[test]
fn equal_keys_launch_equally_however_the_tokens_lie() {
    let (backend, seen) = watched();
    let mut network = network(backend, DType::BF16, false);
    for seed in 0..40 {
        let cut = 1 + seed * 5 % 17;
        let batch = batch(&[cut, 18 - cut, 2 + seed % 2], seed);
        network
            .forward_backward(&batch, 1.0 / (seed + 1) as f64)
            .unwrap();
        network.take_sums().unwrap();
    }
    assert_eq!(seen.graphs.load(Relaxed), 4);
    assert_eq!(seen.replays.load(Relaxed), 2 * (40 - 2));
}

#[test]
fn two_networks_do_not_share_graphs() {
    let alone = train(&mut network(watched().0, DType::F32, false));
    let mut first = network(watched().0, DType::F32, false);
    let mut second = network(watched().0, DType::BF16, false);
    for seed in 0..4 {
        let batch = batch(&[9, 12], seed);
        first.forward_backward(&batch, 0.1).unwrap();
        second.forward_backward(&batch, 0.1).unwrap();
    }
    first.zero_gradients();
    assert_eq!(bits(&train(&mut first)), bits(&alone));
}

#[test]
fn a_device_without_graphs_trains_all_the_same() {
    let expected = train(&mut network(watched().0, DType::F32, false));
    for refuses in [1, 2] {
        let (backend, seen) = watched();
        seen.refuses.store(refuses, Relaxed);
        let found = train(&mut network(backend, DType::F32, false));
        assert_eq!(bits(&found), bits(&expected));
        assert_eq!(seen.captures.load(Relaxed), 1, "it is not asked again");
        assert_eq!(seen.replays.load(Relaxed), 0);
    }
}

#[test]
fn graphs_that_were_not_used_for_long_are_given_back() {
    let (backend, seen) = watched();
    let mut network = network(backend, DType::F32, false);
    for _ in 0..2 {
        for tokens in 2..=TOKENS {
            let batch = batch(&[tokens], tokens);
            for _ in 0..2 {
                network.forward_backward(&batch, 0.1).unwrap();
            }
        }
        network.take_sums().unwrap();
    }
    let (captures, graphs) = (seen.captures.load(Relaxed), seen.graphs.load(Relaxed));
    assert!(captures > graphs && graphs <= 64, "{captures} {graphs}");
}

#[test]
fn an_update_waits_for_the_device_once() {
    let (backend, seen) = watched();
    let mut network = network(backend, DType::BF16, false);
    for seed in 0..3 {
        for i in 0..2 {
            let batch = batch(&[9, 12], 10 * seed + i);
            network.forward_backward(&batch, 0.1).unwrap();
        }
        network.update(&OPTIONS, 1e-3, 1.0).unwrap();
        assert!(network.take_sums().unwrap().supervised > 0);
        assert_eq!(seen.reads.load(Relaxed), seed + 1);
    }
}

/// A copy to the host has no place in a recording. The work is done all the same, without a graph.
#[test]
fn an_error_inside_a_capture_costs_the_graph_alone() {
    let (mut cuda, seen) = watched();
    let region = |start: usize| Region {
        offset: 4 * start,
        len: 4,
        dtype: DType::F32,
    };
    let workspace = Region {
        offset: 64,
        len: 0,
        dtype: DType::F32,
    };
    cuda.allocate(64, workspace).unwrap();
    let key = Recording {
        part: "a test",
        sizes: [1, 2],
    };
    for round in 0..3 {
        cuda.fill(region(0), round as f32);
        cuda.recorded(key, |cuda| {
            cuda.copy(region(0), region(4));
            cuda.download(region(4), &mut [0.0; 4]);
        });
        cuda.status().unwrap();
        let mut found = [0.0; 4];
        cuda.download(region(4), &mut found);
        assert_eq!(found, [round as f32; 4]);
    }
    assert_eq!(seen.replays.load(Relaxed), 0);
}

#[test]
fn a_key_that_does_not_tell_sequences_apart_is_a_failure() {
    let (mut cuda, _) = watched();
    let region = Region {
        offset: 0,
        len: 4,
        dtype: DType::F32,
    };
    cuda.allocate(16, Region { len: 0, ..region }).unwrap();
    let key = Recording {
        part: "a test",
        sizes: [3, 4],
    };
    for value in [1.0, 1.0, 1.0] {
        cuda.recorded(key, |cuda| cuda.fill(region, value));
        cuda.status().unwrap();
    }
    cuda.recorded(key, |cuda| cuda.fill(region, 2.0));
    let error = cuda.status().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.to_string().contains("a test"), "{error}");
}
