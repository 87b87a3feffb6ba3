//! `sft preview`: rows as the model sees them, token by token, with those marked that are trained on.

use std::path::PathBuf;
use std::process::ExitCode;

use sft::Result;
use sft::data::PreviewToken;
use sft::engine::{Hooks, LogLevel, open_tokenizer, training_rows};

use crate::console;
use crate::overrides::{Overrides, configuration};

#[derive(clap::Args)]
#[command(after_help = crate::KEYS_ARE_FLAGS)]
pub struct Args {
    /// The configuration, YAML or JSON
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Rows to show
    #[arg(long, value_name = "N", default_value_t = 3)]
    rows: usize,
    /// The first row to show, from 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    from: usize,
}

pub fn run(args: &Args, overrides: &Overrides) -> Result<ExitCode> {
    let config = configuration(args.config.as_deref(), overrides)?;
    let hooks = Hooks {
        log: Some(Box::new(|level, text| {
            if level == LogLevel::Warning {
                console::note(&format!("warning: {text}"));
            }
        })),
        ..Hooks::default()
    };
    let (dataset, report) = training_rows(&config, hooks)?;
    let (tokenizer, _) = open_tokenizer(&config)?;
    let colour = console::colour();
    for row in (args.from..dataset.len()).take(args.rows) {
        let tokens = dataset.preview(row, &tokenizer)?;
        let supervised = tokens.iter().filter(|token| token.supervised).count();
        console::line(&format!(
            "--- row {row} of {} · {} tokens, {supervised} trained on",
            dataset.len(),
            tokens.len()
        ));
        console::line(&marked(&tokens, colour));
    }
    console::line(&format!("--- {report}"));
    Ok(ExitCode::SUCCESS)
}

/// The tokens one after another: with `colour`, those trained on in green and neighbours in two
/// shades; without, each of those in brackets. `⏎` shows where a token ends a line.
fn marked(tokens: &[PreviewToken], colour: bool) -> String {
    const GREEN: [&str; 2] = ["\x1b[30;42m", "\x1b[30;102m"];
    const GREY: [&str; 2] = ["\x1b[90m", "\x1b[37m"];
    let mut out = String::new();
    for (i, token) in tokens.iter().enumerate() {
        if token.starts_sequence && i > 0 {
            out += "\n· · ·\n";
        }
        let text = visible(&token.text);
        match (colour, token.supervised) {
            (true, supervised) => {
                let shades = if supervised { GREEN } else { GREY };
                // Colour must not run over the end of a line.
                let text = text.replace('\n', &format!("\x1b[0m\n{}", shades[i % 2]));
                out += &format!("{}{text}\x1b[0m", shades[i % 2]);
            }
            (false, true) => out += &format!("[{text}]"),
            (false, false) => out += &text,
        }
    }
    out
}

/// A row must not steer the terminal: control characters show as escapes.
fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out += "⏎\n",
            c if c.is_control() => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str, supervised: bool, starts_sequence: bool) -> PreviewToken {
        PreviewToken {
            id: 0,
            text: text.to_owned(),
            supervised,
            starts_sequence,
        }
    }

    #[test]
    fn supervised_tokens_stand_in_brackets_each() {
        let row = [
            token("Q:", false, true),
            token(" yes", true, false),
            token("!\n", true, false),
        ];
        assert_eq!(marked(&row, false), "Q:[ yes][!⏎\n]");
        assert_eq!(marked(&[], false), "");
    }

    #[test]
    fn sequences_of_a_packed_row_are_apart() {
        let row = [token("a", false, true), token("b", true, true)];
        assert_eq!(marked(&row, false), "a\n· · ·\n[b]");
    }

    #[test]
    fn colour_is_closed_after_every_token_and_a_row_cannot_add_its_own() {
        let row = [token("a", false, true), token("\x1b[2J\n", true, false)];
        let text = marked(&row, true);
        assert_eq!(text.matches("\x1b[0m").count(), 3, "{text:?}");
        assert!(
            !text.contains("\x1b[2J") && text.contains("\\u{1b}[2J"),
            "{text:?}"
        );
    }
}
