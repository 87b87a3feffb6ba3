//! `sft plan`: the memory of a run, before anything is loaded.

use std::path::PathBuf;
use std::process::ExitCode;

use sft::memory::{MemoryPlan, SegmentKind};
use sft::{Error, ErrorKind, Result};

use crate::console;
use crate::overrides::{Overrides, configuration};

#[derive(clap::Args)]
#[command(after_help = crate::KEYS_ARE_FLAGS)]
pub struct Args {
    /// The configuration, YAML or JSON
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Every segment with its offset and lifetime, as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, overrides: &Overrides) -> Result<ExitCode> {
    let config = configuration(args.config.as_deref(), overrides)?;
    let plan = sft::engine::plan(&config)?;
    if args.json {
        let json = serde_json::to_string_pretty(&plan)
            .map_err(|e| Error::new(ErrorKind::Internal, "memory plan").with_source(e))?;
        console::line(&json);
    } else {
        console::print(&table(&plan));
    }
    Ok(ExitCode::SUCCESS)
}

const KINDS: [(&str, SegmentKind); 7] = [
    ("weights", SegmentKind::Weights),
    ("gradients", SegmentKind::Gradients),
    ("optimizer", SegmentKind::Optimizer),
    ("activations", SegmentKind::Activations),
    ("scratch", SegmentKind::Scratch),
    ("batch", SegmentKind::Batch),
    ("keys and values", SegmentKind::KvCache),
];

fn table(plan: &MemoryPlan) -> String {
    let mut text = String::new();
    for (name, kind) in KINDS {
        let bytes = plan.bytes_of(kind);
        if bytes > 0 {
            text += &format!("{name:<16} {:>12}\n", mebibytes(bytes));
        }
    }
    text + &format!(
        "{:<16} {:>12}  (segments that never live together share bytes)\n",
        "in all",
        mebibytes(plan.total_bytes)
    )
}

fn mebibytes(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}
