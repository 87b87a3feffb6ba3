//! `sft plan`: the device and the memory of a run, and what multiplies its matrices, before anything is
//! loaded.

use std::path::PathBuf;
use std::process::ExitCode;

use sft::engine::{GemmChoice, Hooks, plan_run};
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
    /// Every segment with its offset and lifetime, and every product, as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, overrides: &Overrides) -> Result<ExitCode> {
    let config = configuration(args.config.as_deref(), overrides)?;
    let plan = plan_run(&config, Hooks::default())?;
    if args.json {
        let json = serde_json::to_string_pretty(&plan)
            .map_err(|e| Error::new(ErrorKind::Internal, "the plan").with_source(e))?;
        console::line(&json);
    } else {
        console::line(&format!("{:<16} {}", "device", plan.device));
        console::print(&table(&plan.memory));
        console::print(&products(&plan.gemm));
        if let Some(ceiling) = plan.ceiling_flops_per_second {
            console::line(&format!(
                "matrix products  {:>7.3} TFLOP/s  (the fastest of the widest layers)",
                ceiling / 1e12
            ));
        }
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

/// A line for each product: its size, how its factors lie, who multiplies, and the times of both.
fn products(choices: &[GemmChoice]) -> String {
    let mut text = String::new();
    for choice in choices {
        let size = format!("{}×{}×{}", choice.m, choice.n, choice.k);
        let formats = format!("{} → {}", choice.dtype, choice.out);
        let times = match (choice.own_microseconds, choice.cublaslt_microseconds) {
            (Some(own), Some(cublaslt)) => format!("own {own:.1} µs, cublaslt {cublaslt:.1} µs"),
            (Some(own), None) => format!("own {own:.1} µs, cublaslt refuses it"),
            (None, _) => "not measured".to_owned(),
        };
        text += &format!(
            "{:<28} {size:<20} {} {formats:<20} {:<8}  {times}\n",
            choice.product, choice.layout, choice.provider
        );
    }
    text
}

fn mebibytes(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}
