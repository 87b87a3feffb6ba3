//! How fast weights come from a file into a network's memory, beside `read()` of the same file: see
//! `scripts/bench-start`.   cargo bench --bench start -- MODEL [RUNS]

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use memmap2::MmapMut;
use rayon::prelude::*;
use sft::dtype::DType;
use sft::io::WeightFiles;
use sft::memory::{Purpose, Workload};
use sft::model::{ModelSpec, ParamTable};
use sft::ops::Cpu;
use sft::train::Network;

fn main() -> sft::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let mut arguments = arguments.iter().filter(|a| !a.starts_with("--"));
    let Some(model) = arguments.next().map(Path::new) else {
        return Ok(()); // built and run by `cargo bench` without a model
    };
    let runs = arguments.next().and_then(|n| n.parse().ok()).unwrap_or(10);
    let path = model.join("model.safetensors");
    let bytes = std::fs::metadata(&path).map_or(0, |file| file.len());
    let best = |seconds: Vec<f64>| seconds.into_iter().fold(f64::INFINITY, f64::min);
    let read = best((0..runs).map(|_| read(&path)).collect());
    let kept = best((0..runs).map(|_| read_and_keep(&path)).collect());
    let mut fresh = Vec::new();
    let mut again = Vec::new();
    for _ in 0..runs {
        let (first, second) = load(model)?;
        fresh.push(first);
        again.push(second);
    }
    let rate = |seconds: f64| bytes as f64 / 1e9 / seconds;
    println!("read() of the file        {:6.2} GB/s", rate(read));
    for (what, seconds) in [
        ("the same, kept, all cores", kept),
        ("loaded into new memory", best(fresh)),
        ("loaded into used memory", best(again)),
    ] {
        println!(
            "{what:<25} {:6.2} GB/s, {:.2} of read()",
            rate(seconds),
            read / seconds
        );
    }
    Ok(())
}

/// Reads the file through one buffer of a mebibyte.
fn read(path: &Path) -> f64 {
    let mut buffer = vec![0; 1 << 20];
    let start = Instant::now();
    let mut file = File::open(path).expect("the weights");
    while file.read(&mut buffer).expect("the weights") > 0 {}
    start.elapsed().as_secs_f64()
}

/// Reads the file into new memory on all cores: what loading would take if it did nothing else.
fn read_and_keep(path: &Path) -> f64 {
    const PIECE: usize = 2 << 20;
    let file = File::open(path).expect("the weights");
    let bytes = file.metadata().expect("the weights").len() as usize;
    let start = Instant::now();
    let mut memory = MmapMut::map_anon(bytes).expect("memory");
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    memory
        .par_chunks_mut(PIECE)
        .enumerate()
        .for_each(|(i, piece)| {
            let offset = (i * PIECE) as u64;
            file.read_exact_at(piece, offset).expect("the weights");
        });
    start.elapsed().as_secs_f64()
}

/// Loads the model twice into one network, whose memory is first touched by the first time.
fn load(model: &Path) -> sft::Result<(f64, f64)> {
    let spec = ModelSpec::from_dir(model)?;
    let table = ParamTable::new(&spec);
    let work = Workload {
        purpose: Purpose::Train { recompute: true },
        tokens: 64,
        sequence_length: 64,
        stats: 64,
        head_rows: 64,
        precision: DType::F32,
        workspace: 0,
    };
    let mut network = Network::new(Cpu::new(0)?, spec, table, work)?;
    let mut seconds = || -> sft::Result<f64> {
        let start = Instant::now();
        let files = WeightFiles::open(model)?;
        network.load_weights(|param, first, values| {
            files.read_f32_from(&param.name, &param.shape, first, values)
        })?;
        Ok(start.elapsed().as_secs_f64())
    };
    Ok((seconds()?, seconds()?))
}
