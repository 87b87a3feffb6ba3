//! `sft init`: a configuration with every key explained.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::Value;
use sft::config::{Config, keys};
use sft::{Error, ErrorKind, Result};

use crate::console;

#[derive(clap::Args)]
pub struct Args {
    /// The file to write; without it the text goes to standard output
    file: Option<PathBuf>,
    /// Replace the file if it exists
    #[arg(long)]
    force: bool,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    let text = commented_config();
    let Some(path) = &args.file else {
        console::print(&text);
        return Ok(ExitCode::SUCCESS);
    };
    if path.exists() && !args.force {
        let message = format!("{} exists; --force replaces it", path.display());
        return Err(Error::new(ErrorKind::Exists, message));
    }
    std::fs::write(path, text).map_err(|e| Error::io(path, e))?;
    console::line(&format!(
        "Wrote {0}. Name your model and data in it, then: sft train --config {0}",
        path.display()
    ));
    Ok(ExitCode::SUCCESS)
}

/// What a first run needs to say; every other key stands commented at its default.
const STARTER: &[(&str, &str)] = &[
    ("model_name_or_path", "model"),
    ("dataset_name", "train.jsonl"),
    ("val_size", "0.05"),
    ("learning_rate", "2e-5"),
    ("num_train_epochs", "3"),
    ("eval_strategy", "steps"),
    ("eval_steps", "50"),
    ("save_strategy", "best"),
    ("load_best_model_at_end", "true"),
    ("output_dir", "out"),
    (
        "stop",
        "\n  - {rule: plateau, metric: eval_loss, patience: 3, min_delta: 0.005}\n  \
         #- {rule: target, metric: eval_loss, at_most: 1.5}\n  \
         #- {rule: overfit, patience: 2}\n  \
         #- {rule: divergence, factor: 3}\n  \
         #- {rule: budget, max_seconds: 3600}",
    ),
];

fn commented_config() -> String {
    let defaults: Value = serde_json::from_str(&Config::default().to_json()).unwrap_or_default();
    let mut text = String::from(
        "# A run of `sft train`. Keys are TRL's where TRL has the thing.\n\
         # `#key: value` is a key at its default.\n",
    );
    let mut section = "";
    for key in keys()
        .iter()
        .filter(|key| key.section != "Not yet supported")
    {
        if key.section != section {
            section = key.section;
            let _ = writeln!(text, "\n# --- {section} ---");
        }
        text.push('\n');
        for doc in key.doc {
            let _ = writeln!(text, "#{doc}");
        }
        match STARTER.iter().find(|(name, _)| *name == key.name) {
            Some((name, value)) if value.starts_with('\n') => {
                let _ = writeln!(text, "{name}:{value}");
            }
            Some((name, value)) => {
                let _ = writeln!(text, "{name}: {value}");
            }
            None => {
                let _ = writeln!(text, "#{}: {}", key.name, as_yaml(&defaults[key.name]));
            }
        }
    }
    text
}

/// A default as one writes it: text without quotes, small numbers as `1e-8`.
fn as_yaml(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64() {
            Some(x) if x != 0.0 && x.abs() < 1e-3 => format!("{x:e}"),
            _ => number.to_string(),
        },
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_writes_is_a_sound_configuration() {
        let config = Config::from_yaml_str(&commented_config(), "init").unwrap();
        config.validate().unwrap();
    }

    #[test]
    fn the_commented_keys_stand_at_their_defaults() {
        let config = Config::from_yaml_str(&commented_config(), "init").unwrap();
        let uncommented: String = commented_config()
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(key) if !key.starts_with(' ') => format!("{key}\n"),
                _ => format!("{line}\n"),
            })
            .collect();
        assert_eq!(Config::from_yaml_str(&uncommented, "init").unwrap(), config);
        for key in keys()
            .iter()
            .filter(|key| key.section != "Not yet supported")
        {
            assert!(
                uncommented.contains(&format!("\n{}:", key.name)),
                "{}",
                key.name
            );
        }
    }
}
