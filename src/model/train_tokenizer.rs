//! A byte-level BPE tokenizer trained on the strings of JSONL files.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use super::families::qwen2_tokenizer;
use crate::{Error, ErrorKind, Result};

/// The first token ids, in order.
pub(super) const SPECIAL_TOKENS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// More merges than this take minutes to train and gain nothing on a small corpus.
const MAX_TRAINED_VOCAB: usize = 16_384;

/// Returns the content of `tokenizer.json` with at most `vocab_size` tokens.
///
/// # Errors
/// [`ErrorKind::Model`] if the vocabulary cannot hold all bytes; [`ErrorKind::Data`] naming the
/// corpus file and line.
pub(super) fn train_tokenizer(vocab_size: usize, corpus: &[PathBuf]) -> Result<String> {
    let alphabet = ByteLevel::alphabet();
    let least = alphabet.len() + SPECIAL_TOKENS.len();
    if vocab_size < least {
        return Err(Error::new(
            ErrorKind::Model,
            format!(
                "`vocab_size` is {vocab_size}, but the bytes and the special tokens need {least}"
            ),
        ));
    }
    let tokenizer_error = |e: tokenizers::Error| {
        Error::new(ErrorKind::Tokenizer, "cannot train the tokenizer").with_source(e)
    };
    let trainer = BpeTrainer::builder()
        .vocab_size(vocab_size.min(MAX_TRAINED_VOCAB))
        .show_progress(false)
        .initial_alphabet(alphabet.into_iter().collect())
        .special_tokens(SPECIAL_TOKENS.map(|t| AddedToken::from(t, true)).to_vec())
        .build();
    // Qwen2's cut for every family, since transformers gives a qwen2 folder no other.
    let mut tokenizer = Tokenizer::new(BPE::default());
    qwen2_tokenizer(&mut tokenizer);

    let failure = Arc::new(Mutex::new(None));
    let texts = corpus
        .iter()
        .flat_map(|path| CorpusFile::open(path, failure.clone()));
    let mut trainer = TrainerWrapper::BpeTrainer(trainer);
    tokenizer
        .train(&mut trainer, texts)
        .map_err(tokenizer_error)?;
    if let Some(error) = failure.lock().ok().and_then(|mut slot| slot.take()) {
        return Err(error);
    }
    tokenizer.to_string(true).map_err(tokenizer_error)
}

/// The strings of one JSONL file. The trainer takes no errors from its iterator, so the first one
/// ends the texts and waits in `failure`.
struct CorpusFile {
    path: PathBuf,
    lines: Option<std::io::Lines<BufReader<File>>>,
    line_number: usize,
    texts: Vec<String>,
    failure: Arc<Mutex<Option<Error>>>,
}

impl CorpusFile {
    fn open(path: &Path, failure: Arc<Mutex<Option<Error>>>) -> Self {
        let mut corpus = Self {
            path: path.to_owned(),
            lines: None,
            line_number: 0,
            texts: Vec::new(),
            failure,
        };
        match File::open(path) {
            Ok(file) => corpus.lines = Some(BufReader::new(file).lines()),
            Err(e) => corpus.fail(e),
        }
        corpus
    }

    fn fail(&mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) {
        self.lines = None;
        let place = match self.line_number {
            0 => self.path.display().to_string(),
            n => format!("{}:{n}", self.path.display()),
        };
        if let Ok(mut slot) = self.failure.lock() {
            slot.get_or_insert_with(|| Error::new(ErrorKind::Data, place).with_source(source));
        }
    }

    /// Reads the texts of the next line; false at the end.
    fn advance(&mut self) -> bool {
        let Some(line) = self.lines.as_mut().and_then(Iterator::next) else {
            return false;
        };
        self.line_number += 1;
        match line {
            Ok(line) if line.trim().is_empty() => {}
            Ok(line) => match serde_json::from_str(&line) {
                Ok(value) => collect_strings(value, &mut self.texts),
                Err(e) => self.fail(e),
            },
            Err(e) => self.fail(e),
        }
        true
    }
}

impl Iterator for CorpusFile {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        while self.texts.is_empty() {
            if !self.advance() {
                return None;
            }
        }
        self.texts.pop()
    }
}

fn collect_strings(value: Value, texts: &mut Vec<String>) {
    match value {
        Value::String(text) => texts.push(text),
        Value::Array(items) => items.into_iter().for_each(|v| collect_strings(v, texts)),
        Value::Object(map) => map.into_iter().for_each(|(_, v)| collect_strings(v, texts)),
        _ => {}
    }
}
