//! The logits of a model folder as JSON, for comparing with another engine's:
//! `cargo run --release --example dump_logits -- MODEL_DIR TOKEN…`
//!
//! The tokens are ids, or one `.json` file that holds a list of them. Written to standard output:
//! `{"input_ids": […], "positions": […], "logits": [[…] for each position]}`.

use serde_json::json;
use sft::data::{Batch, IGNORE};
use sft::dtype::DType;
use sft::error::ResultExt;
use sft::io::WeightFiles;
use sft::memory::{Purpose, Workload};
use sft::model::{ModelSpec, ParamTable};
use sft::ops::Cpu;
use sft::train::Network;
use sft::{Error, ErrorKind, Result};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, tokens @ ..] = args.as_slice() else {
        return Err(usage());
    };
    let ids = token_ids(tokens)?;
    let logits = logits(model, &ids)?;
    let positions: Vec<usize> = (0..ids.len()).collect();
    println!(
        "{}",
        json!({"input_ids": ids, "positions": positions, "logits": logits})
    );
    Ok(())
}

/// One row of the vocabulary's size for each token.
fn logits(model: &str, ids: &[i32]) -> Result<Vec<Vec<f32>>> {
    let spec = ModelSpec::from_dir(model)?;
    let table = ParamTable::new(&spec);
    let vocab_size = spec.vocab_size;
    let work = Workload {
        purpose: Purpose::Evaluate,
        tokens: ids.len(),
        sequence_length: ids.len(),
        stats: ids.len(),
        head_rows: ids.len(),
        precision: DType::F32,
        workspace: 0,
    };
    let mut network = Network::new(Cpu::new(0)?, spec, table, work)?;
    let files = WeightFiles::open(model)?;
    network.load_weights(|param, start, values| {
        files.read_f32_from(&param.name, &param.shape, start, values)
    })?;

    let mut batch = Batch::default();
    batch.push(ids, &vec![IGNORE; ids.len()]);
    network.check_batch(&batch)?;
    let mut rows = Vec::new();
    network.logits(&batch, |_, chunk| {
        rows.extend(chunk.chunks(vocab_size).map(<[f32]>::to_vec));
    })?;
    Ok(rows)
}

fn token_ids(args: &[String]) -> Result<Vec<i32>> {
    let ids: Vec<i32> = match args {
        [file] if file.ends_with(".json") => {
            let text = std::fs::read_to_string(file).map_err(|e| Error::io(file, e))?;
            let parsed = serde_json::from_str(&text).map_err(|_| usage());
            parsed.context(|| file.clone())?
        }
        ids => {
            let parsed: Result<_, _> = ids.iter().map(|id| id.parse()).collect();
            parsed.map_err(|_| usage())?
        }
    };
    match ids.is_empty() {
        true => Err(usage()),
        false => Ok(ids),
    }
}

fn usage() -> Error {
    let message = "usage: dump_logits MODEL_DIR TOKEN… (ids, or a .json file with a list of ids)";
    Error::new(ErrorKind::InvalidArgument, message)
}
