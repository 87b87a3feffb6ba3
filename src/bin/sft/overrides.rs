//! Configuration keys on the command line: `--KEY VALUE`, `--KEY=VALUE`, or `--KEY` alone for true;
//! dashes for underscores, dots for nested keys.

use std::path::{Path, PathBuf};

use sft::config::{Config, keys, peer_keys};
use sft::{Result, error::ResultExt};

/// Keys and values in the order given.
pub type Overrides = Vec<(String, String)>;

/// Takes the configuration keys out of `args`; what is left is the command's own.
pub fn split(args: Vec<String>) -> (Vec<String>, Overrides) {
    let mut rest = Vec::new();
    let mut overrides = Overrides::new();
    let mut args = args.into_iter().peekable();
    while let Some(arg) = args.next() {
        let Some((key, value)) = as_key(&arg) else {
            rest.push(arg);
            continue;
        };
        let value = value
            .or_else(|| args.next_if(|next| !next.starts_with("--")))
            .unwrap_or_else(|| "true".to_owned());
        overrides.push((key, value));
    }
    (rest, overrides)
}

/// `--max-length=5` as `("max_length", Some("5"))`, if that is a key.
fn as_key(arg: &str) -> Option<(String, Option<String>)> {
    let flag = arg.strip_prefix("--")?;
    let (name, value) = match flag.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (flag, None),
    };
    let name = name.replace('-', "_");
    let head = name.split('.').next().unwrap_or_default();
    let known = keys().iter().any(|k| k.name == head) || peer_keys().iter().any(|p| p.name == head);
    // Other spellings have one more home: the configuration knows them, the key list does not.
    let known = known || matches!(head, "activation_checkpointing" | "test_split_size");
    known.then_some((name, value))
}

/// The configuration of a command: command line over file over default.
pub fn configuration(file: Option<&Path>, overrides: &Overrides) -> Result<Config> {
    let mut config = match file {
        Some(path) => Config::from_file(path)?,
        None => Config::default(),
    };
    for (key, value) in overrides {
        config
            .set(key, value.as_str())
            .context(|| "command line".to_owned())?;
    }
    // The library keeps nothing outside of what it is told; a command may use the user's cache.
    if config.cache_dir.is_none() {
        config.cache_dir = user_cache();
    }
    Ok(config)
}

/// `sft` in the user's cache folder, where there is one.
fn user_cache() -> Option<PathBuf> {
    let named = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty());
    let cache = named("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| named("HOME").map(|home| Path::new(&home).join(".cache")))?;
    Some(cache.join("sft"))
}

/// The configuration's own words for a flag that nobody knows, such as `--learning-rat`.
pub fn unknown_flag(flag: &str) -> String {
    let name = flag
        .trim_start_matches('-')
        .split('=')
        .next()
        .unwrap_or_default();
    match Config::default().set(&name.replace('-', "_"), "") {
        Err(error) => error.to_string(),
        Ok(()) => format!("`{name}` is not a flag of this command"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_words(line: &str) -> (Vec<String>, Overrides) {
        split(line.split(' ').map(str::to_owned).collect())
    }

    fn pair(key: &str, value: &str) -> (String, String) {
        (key.to_owned(), value.to_owned())
    }

    #[test]
    fn keys_are_taken_wherever_they_stand() {
        let (rest, overrides) = split_words("--max-length 5 --config a.yaml --seed=7 --no-such 1");
        assert_eq!(rest, ["--config", "a.yaml", "--no-such", "1"]);
        assert_eq!(overrides, [pair("max_length", "5"), pair("seed", "7")]);
    }

    #[test]
    fn a_key_alone_is_true_and_a_negative_number_is_a_value() {
        let (rest, overrides) = split_words("--packing --max_steps -1 --fp16");
        assert!(rest.is_empty());
        assert_eq!(
            overrides,
            [
                pair("packing", "true"),
                pair("max_steps", "-1"),
                pair("fp16", "true")
            ]
        );
    }

    #[test]
    fn a_value_may_hold_an_equals_sign_or_be_empty() {
        let (_, overrides) = split_words("--eos_token=a=b --output_dir=");
        assert_eq!(
            overrides,
            [pair("eos_token", "a=b"), pair("output_dir", "")]
        );
    }

    #[test]
    fn a_dotted_key_belongs_to_its_head() {
        let (_, overrides) = split_words("--lr-scheduler-kwargs.num_cycles 2");
        assert_eq!(overrides, [pair("lr_scheduler_kwargs.num_cycles", "2")]);
    }

    #[test]
    fn later_flags_win() {
        let (_, overrides) = split_words("--seed 1 --seed 2");
        assert_eq!(configuration(None, &overrides).unwrap().seed, 2);
    }

    #[test]
    fn an_unknown_flag_names_the_nearest_key() {
        assert!(unknown_flag("--learning-rat=3").contains("`learning_rate`"));
    }
}
