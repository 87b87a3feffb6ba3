//! `sft report`: one HTML page about a run, to look at and to send to others. It needs nothing but a
//! browser: no network, no other file.

mod alternatives;
mod evaluations;
mod facts;
mod page;
mod rules;
pub mod run;
mod series;
mod table;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use sft::config::Config;
use sft::io::write_file;
use sft::{Error, ErrorKind, Result};

use crate::console;
use run::Run;

#[derive(clap::Args)]
pub struct Args {
    /// The output folder of a run, or a log: train_log.jsonl, a peer's trainer_state.json
    run: PathBuf,
    /// Where to write the page; `-` for standard output [default: report.html beside the log]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The configuration of the run, where there is no run.json that has it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let given = args.config.as_deref().map(Config::from_file).transpose()?;
    let run = Run::read(&args.run, given)?;
    let page = page::html(&run)?;
    let file = args.output.clone().unwrap_or_else(|| beside(&run.log));
    if file == Path::new("-") {
        console::print(&page);
        return Ok(ExitCode::SUCCESS);
    }
    if file == run.log {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!("--output: {} is the log itself", file.display()),
        ));
    }
    write_file(&file, |out| out.write(page.as_bytes()))?;
    console::line(&format!("Report: {}", file.display()));
    Ok(ExitCode::SUCCESS)
}

/// `report.html` in the folder of a run; a log by another name gets a page by that name, so that several
/// in one folder keep their own.
fn beside(log: &Path) -> PathBuf {
    let stem = log.file_stem().and_then(|stem| stem.to_str());
    match stem {
        Some(stem) if !run::is_of_a_run(log) => log.with_file_name(format!("{stem}.report.html")),
        _ => log.with_file_name("report.html"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_lies_beside_its_log() {
        let cases = [
            ("out/train_log.jsonl", "out/report.html"),
            ("out/trainer_state.json", "out/report.html"),
            ("logs/a.jsonl", "logs/a.report.html"),
            ("b", "b.report.html"),
        ];
        for (log, page) in cases {
            assert_eq!(beside(Path::new(log)), Path::new(page));
        }
    }
}
