//! `sft watch`: a run that another process trains, followed by its log. It only reads, so it may come
//! and go as it likes.

mod tail;
mod view;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use sft::config::Config;
use sft::engine::RunRecord;
use sft::report::StopReason;
use sft::stop::RuleStatus;
use sft::{Error, ErrorKind, Result};

use crate::progress::{Progress, describe_best, describe_end, describe_state};
use crate::{console, curve};
use tail::Tail;
use view::{End, News, View};

#[derive(clap::Args)]
pub struct Args {
    /// The output folder of the run; it need not be there yet
    run: PathBuf,
    /// Show where the run stands now and return
    #[arg(long)]
    once: bool,
    /// Plain lines instead of a progress bar, on a terminal too
    #[arg(long)]
    plain: bool,
}

/// Time between two looks at the files.
const INTERVAL: Duration = Duration::from_millis(250);

pub fn run(args: &Args) -> Result<ExitCode> {
    if args.run.is_file() {
        return Err(Error::new(
            ErrorKind::InvalidArgument,
            format!(
                "{} is a file: name the output folder of the run",
                args.run.display()
            ),
        ));
    }
    let mut watch = Watch::new(&args.run, args.plain || args.once)?;
    if args.once {
        watch.look()?;
        return watch.summary();
    }
    loop {
        watch.look()?;
        if let Some(end) = &watch.view.end {
            watch.progress.finish();
            watch.tell_end(end);
            return Ok(exit_code(end, watch.config.as_ref()));
        }
        watch.say_waiting();
        std::thread::sleep(INTERVAL);
    }
}

struct Watch {
    folder: PathBuf,
    tail: Tail,
    /// `run.json` as it was last read.
    record: Option<String>,
    config: Option<Config>,
    view: View,
    progress: Progress,
    /// What the log already held has been taken in, and news is shown as it comes.
    following: bool,
    waiting_said: bool,
}

impl Watch {
    fn new(folder: &Path, plain: bool) -> Result<Self> {
        Ok(Self {
            folder: folder.to_owned(),
            tail: Tail::new(folder.join("train_log.jsonl")),
            record: None,
            config: None,
            view: View::new(None)?,
            progress: Progress::new(plain),
            following: false,
            waiting_said: false,
        })
    }

    /// Takes in what is new and shows it.
    fn look(&mut self) -> Result<()> {
        let first = self.record.is_none();
        if self.read_record()? && !first {
            // Resumed or begun anew: the log is cut only now.
            return Ok(());
        }
        let path = self.folder.join("train_log.jsonl");
        let news = self.tail.read().map_err(|e| Error::io(path, e))?;
        if news.again {
            self.begin_view()?;
            self.note("The log was cut: the run goes on from an earlier update.");
        }
        for line in &news.lines {
            match self.view.take_in(line) {
                Ok(news) => self.show(&news),
                Err(error) => self.note(&format!("warning: a line of the log is no row: {error}")),
            }
        }
        if !self.following && !news.lines.is_empty() {
            self.following = true;
            self.show_standing();
        }
        Ok(())
    }

    /// Reads `run.json`. True if it is another than at the last look.
    fn read_record(&mut self) -> Result<bool> {
        // Not there yet, or being replaced: the next look will see it.
        let Ok(text) = std::fs::read_to_string(self.folder.join(RunRecord::FILE_NAME)) else {
            return Ok(false);
        };
        if self.record.as_ref() == Some(&text) {
            return Ok(false);
        }
        self.record = Some(text);
        let known = RunRecord::read(&self.folder).and_then(|record| {
            let config = record.configuration()?;
            View::new(Some(&config))?;
            Ok((record, config))
        });
        match known {
            Ok((record, config)) => {
                let every = config.logging_steps.of(record.total_steps.unwrap_or(0));
                self.progress.begin(record.total_steps, every);
                self.config = Some(config);
                self.note(&header(&self.folder, &record));
            }
            Err(error) => {
                self.config = None;
                self.note(&format!("warning: the stop rules are not known: {error}"));
            }
        }
        self.tail.rewind();
        self.begin_view()?;
        Ok(true)
    }

    fn begin_view(&mut self) -> Result<()> {
        self.view = View::new(self.config.as_ref())?;
        self.following = false;
        Ok(())
    }

    fn note(&self, text: &str) {
        self.progress.printer().line(text);
    }

    fn show(&mut self, news: &News) {
        match news {
            News::Update(report) if self.following => {
                let state = match self.progress.is_live() {
                    true => self.standing(),
                    false => describe_state(report.step, self.view.best(), &self.view.rules()),
                };
                self.progress.step(report, &state);
            }
            News::Update(report) => self.progress.take_in(report),
            News::Evaluation(report) if self.following => {
                self.progress.evaluation(report);
                let standing = self.standing();
                match &self.view.update {
                    Some(update) if self.progress.is_live() => {
                        self.progress.show(update, &standing)
                    }
                    _ => self.note(&standing),
                }
            }
            News::Evaluation(_) | News::End | News::Nothing => {}
        }
    }

    /// The last update and the last evaluation of what the log held already.
    fn show_standing(&self) {
        if let Some(eval) = &self.view.evaluation {
            self.progress.evaluation(eval);
        }
        if let Some(update) = &self.view.update {
            self.progress.show(update, &self.standing());
        }
    }

    /// The best value and where every rule stands.
    fn standing(&self) -> String {
        let best = self.view.best().map(describe_best);
        let rules = self.view.rules();
        // Always in force; worth a word only when it counts.
        let idle = |rule: &&RuleStatus| rule.rule == "non_finite" && rule.counter == 0;
        let rules = rules
            .iter()
            .filter(|rule| !idle(rule))
            .map(RuleStatus::to_string);
        best.into_iter()
            .chain(rules)
            .collect::<Vec<_>>()
            .join(" · ")
    }

    fn say_waiting(&mut self) {
        if !self.waiting_said && self.record.is_none() && self.view.update.is_none() {
            console::note(&format!("Waiting for a run in {}.", self.folder.display()));
            self.waiting_said = true;
        }
    }

    /// What `--once` adds to the present state.
    fn summary(&self) -> Result<ExitCode> {
        let log = self.folder.join("train_log.jsonl");
        if let Some(end) = &self.view.end {
            self.tell_end(end);
            return Ok(exit_code(end, self.config.as_ref()));
        }
        let written = std::fs::metadata(&log).and_then(|log| log.modified());
        let written = match (written, &self.record) {
            (Ok(written), _) => written,
            (Err(_), Some(_)) => {
                console::line("Started; no update yet.");
                return Ok(ExitCode::SUCCESS);
            }
            (Err(error), None) => return Err(Error::io(&log, error)),
        };
        let age = written.elapsed().unwrap_or_default().as_secs();
        console::line(&match self.view.update {
            Some(_) => format!("Not ended; its log was last written {age} s ago."),
            None => format!("No update yet; its log was last written {age} s ago."),
        });
        Ok(ExitCode::SUCCESS)
    }

    fn tell_end(&self, end: &End) {
        let text = describe_end(&end.snapshot, &end.detail);
        // A reason of a later version has no name here.
        let text = match end.snapshot.stop_reason {
            Some(_) => text,
            None => text.replacen("none", &end.code, 1),
        };
        console::line(&text);
        if let (Some(step), Some(value)) = (end.snapshot.best_step, end.snapshot.best_value) {
            console::line(&format!("Best {value:.4} after update {step}."));
        }
        let losses = &self.view.losses;
        if let (Some(first), Some(last)) = (losses.first(), losses.last()) {
            let line = curve::sparkline(losses, 60);
            console::line(&format!("Training loss {first:.3} {line} {last:.3}"));
        }
    }
}

/// The exit code that the run itself had.
fn exit_code(end: &End, config: Option<&Config>) -> ExitCode {
    let restores = config.is_some_and(|config| config.load_best_model_at_end);
    match end.snapshot.stop_reason {
        Some(StopReason::Cancelled) => ExitCode::from(130),
        // Unless there were best weights to put back.
        Some(StopReason::NonFinite) if !(restores && end.snapshot.best_step.is_some()) => {
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// What the run is made of, in one line.
fn header(folder: &Path, record: &RunRecord) -> String {
    let model = &record.model;
    let mut text = format!(
        "{}: {}, {} parameters, {} on {} · started {}",
        folder.display(),
        model.model_type,
        model.parameters,
        record.precision,
        record.device,
        record.started
    );
    if let Some(resumed) = record.resumed.last() {
        text += &format!(" · went on from update {} at {}", resumed.step, resumed.at);
    }
    text
}
