//! The model's own tokenizer: `tokenizer.json`, with the names of its special tokens from
//! `tokenizer_config.json` and `special_tokens_map.json`.
//!
//! Padding and truncation settings saved in `tokenizer.json` are ignored: a training row is never
//! padded, and where it is cut is the data options' business.
//!
//! Nearly all models' tokenizers and texts take a fast path of our own; the `tokenizers` crate, whose
//! tokens it has to give, encodes the others.

mod bpe;
mod config;
mod fast;
#[cfg(test)]
mod tests;
mod words;

use std::collections::BTreeMap;
use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, PostProcessorWrapper};

use self::bpe::Bpe;
use self::fast::FastPath;
use crate::error::{Error, ErrorKind, Result};
use crate::model::families::Family;

/// The names that `tokenizer_config.json` gives to special tokens.
const SPECIAL_NAMES: [&str; 7] = [
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
];

/// A text as tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids.
    pub ids: Vec<i32>,
    /// The bytes of the text that each token stands for; several tokens of one character share its
    /// bytes, and a token that the tokenizer added by itself stands for none.
    pub offsets: Vec<(usize, usize)>,
}

/// A tokenizer as a model folder has it.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bpe: Option<Bpe>,
    fast: Option<FastPath>,
    folder: PathBuf,
    /// `bos_token` and so on; what a chat template can refer to.
    special: BTreeMap<String, String>,
    config: Map<String, Value>,
    fingerprint: blake3::Hasher,
    vocab_size: usize,
}

impl Tokenizer {
    /// Reads the tokenizer of the model in `folder`.
    ///
    /// Fails when `tokenizer.json` is missing or cannot be understood.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let path = folder.join("tokenizer.json");
        let bytes = fs::read(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Error::new(
                ErrorKind::Tokenizer,
                format!(
                    "{} does not exist; save the tokenizer in its fast form \
                     (AutoTokenizer.from_pretrained(…).save_pretrained(…) writes tokenizer.json)",
                    path.display()
                ),
            ),
            _ => Error::io(&path, e),
        })?;
        let (inner, bpe) = read_both(&bytes);
        let mut inner = inner.map_err(|e| {
            Error::new(ErrorKind::Tokenizer, path.display().to_string()).with_source(e)
        })?;
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .expect("no truncation is always valid");

        let model = read_object(&folder.join("config.json"))?;
        let model_type = model.get("model_type").and_then(Value::as_str);
        let family = model_type.and_then(|name| Family::of(name).ok());
        if let Some(replace) = family.and_then(|f| f.tokenizer) {
            replace(&mut inner);
        }

        let config = read_object(&folder.join("tokenizer_config.json"))?;
        let map = read_object(&folder.join("special_tokens_map.json"))?;
        let mut fingerprint = blake3::Hasher::new();
        fingerprint.update(&bytes);
        fingerprint.update(model_type.unwrap_or_default().as_bytes());
        fingerprint.update(&serde_json::to_vec(&config).expect("JSON values are JSON"));
        fingerprint.update(&serde_json::to_vec(&map).expect("JSON values are JSON"));

        let mut tokenizer = Self {
            inner,
            bpe,
            fast: None,
            folder: folder.to_path_buf(),
            special: special_tokens(&config, &map),
            config,
            fingerprint,
            vocab_size: 0,
        };
        tokenizer.vocab_size = tokenizer.count_ids();
        tokenizer.declare_special_tokens();
        tokenizer.apply_bos_and_eos_flags()?;
        tokenizer.find_fast_path();
        Ok(tokenizer)
    }

    /// Replaces the end-of-sequence token by another of the vocabulary, such as `<|im_end|>` for a
    /// base model that is to learn a chat format.
    pub fn with_eos_token(mut self, token: &str) -> Result<Self> {
        if self.inner.token_to_id(token).is_none() {
            return Err(Error::new(
                ErrorKind::Tokenizer,
                format!(
                    "eos_token {token:?} is not in the vocabulary of {}; choose a token that is",
                    self.folder.display()
                ),
            ));
        }
        self.special.insert("eos_token".into(), token.into());
        self.fingerprint
            .update(b"eos_token")
            .update(token.as_bytes());
        self.declare_special_tokens();
        self.apply_bos_and_eos_flags()?;
        self.find_fast_path();
        Ok(self)
    }

    /// The special tokens by name (`bos_token`, `eos_token`, …).
    pub fn special_tokens(&self) -> &BTreeMap<String, String> {
        &self.special
    }

    /// The text of the end-of-sequence token.
    pub fn eos_token(&self) -> Option<&str> {
        self.special.get("eos_token").map(String::as_str)
    }

    /// The id of the end-of-sequence token.
    pub fn eos_token_id(&self) -> Option<i32> {
        self.special_id("eos_token")
    }

    /// The id of the beginning-of-sequence token.
    pub fn bos_token_id(&self) -> Option<i32> {
        self.special_id("bos_token")
    }

    /// The id of the padding token; the end-of-sequence token when there is none.
    pub fn pad_token_id(&self) -> Option<i32> {
        self.special_id("pad_token").or_else(|| self.eos_token_id())
    }

    /// One more than the highest id, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of a token given as text.
    pub fn token_to_id(&self, token: &str) -> Option<i32> {
        self.inner.token_to_id(token).map(|id| id as i32)
    }

    /// The token of an id as the vocabulary has it (byte-level tokenizers write a space as `Ġ`).
    pub fn id_to_token(&self, id: i32) -> Option<String> {
        self.inner.id_to_token(u32::try_from(id).ok()?)
    }

    /// The tokens of `text`. With `add_special_tokens` the tokenizer adds what it adds to a plain
    /// text (often a beginning-of-sequence token); a text from a chat template has them already.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Encoding> {
        if let Some(encoding) = self.encode_fast(text, add_special_tokens, true) {
            return Ok(encoding);
        }
        let encoding = self
            .inner
            .encode(text, add_special_tokens)
            .map_err(|e| Error::new(ErrorKind::Tokenizer, "cannot encode a text").with_source(e))?;
        Ok(Encoding {
            ids: encoding.get_ids().iter().map(|&id| id as i32).collect(),
            offsets: encoding.get_offsets().to_vec(),
        })
    }

    /// The ids of `text` alone, which is quicker than [`Tokenizer::encode`].
    pub fn ids(&self, text: &str, add_special_tokens: bool) -> Result<Vec<i32>> {
        if let Some(encoding) = self.encode_fast(text, add_special_tokens, false) {
            return Ok(encoding.ids);
        }
        let encoding = self
            .inner
            .encode_fast(text, add_special_tokens)
            .map_err(|e| Error::new(ErrorKind::Tokenizer, "cannot encode a text").with_source(e))?;
        Ok(encoding.get_ids().iter().map(|&id| id as i32).collect())
    }

    /// The text of `ids`; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[i32], skip_special_tokens: bool) -> Result<String> {
        let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
        self.inner
            .decode(&ids, skip_special_tokens)
            .map_err(|e| Error::new(ErrorKind::Tokenizer, "cannot decode tokens").with_source(e))
    }

    /// A decoder that takes ids one by one and gives out text as soon as it is certain.
    pub fn stream(&self, skip_special_tokens: bool) -> TextStream<'_> {
        TextStream {
            tokenizer: self,
            skip_special_tokens,
            ids: Vec::new(),
            read: 0,
        }
    }

    /// Fails when an id is outside a model's vocabulary, naming the token.
    pub fn check_ids(&self, ids: &[i32], vocab_size: usize) -> Result<()> {
        let outside = |&&id: &&i32| usize::try_from(id).map_or(true, |id| id >= vocab_size);
        let Some(&id) = ids.iter().find(outside) else {
            return Ok(());
        };
        let token = self.id_to_token(id).unwrap_or_default();
        Err(Error::new(
            ErrorKind::Tokenizer,
            format!(
                "token {token:?} has id {id}, but the model's vocabulary has {vocab_size} entries \
                 (the tokenizer has {}); use the tokenizer that belongs to the model, or a model \
                 whose embeddings were resized for it",
                self.vocab_size
            ),
        ))
    }

    /// The folder that the tokenizer was read from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// `tokenizer_config.json`; empty when there is none.
    pub(super) fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// A hash of everything that decides what [`Tokenizer::encode`] returns.
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        *self.fingerprint.finalize().as_bytes()
    }

    fn special_id(&self, name: &str) -> Option<i32> {
        self.token_to_id(self.special.get(name)?)
    }

    /// One more than the highest id. A vocabulary is copied to be asked, so our own is if there is one.
    fn count_ids(&self) -> usize {
        let highest = match &self.bpe {
            Some(bpe) => {
                let added = self.inner.get_added_tokens_decoder().into_keys().max();
                added.max(Some(bpe.highest_id()))
            }
            None => self.inner.get_vocab(true).into_values().max(),
        };
        highest.map_or(0, |id| id as usize + 1)
    }

    fn find_fast_path(&mut self) {
        let bpe = self.bpe.as_ref();
        self.fast = bpe.and_then(|bpe| FastPath::new(&self.inner, bpe));
    }

    fn encode_fast(&self, text: &str, special: bool, offsets: bool) -> Option<Encoding> {
        self.fast
            .as_ref()?
            .encode(self.bpe.as_ref()?, text, special, offsets)
    }

    /// A special token that the vocabulary has as an ordinary one is found in texts as a whole.
    fn declare_special_tokens(&mut self) {
        let tokens: Vec<AddedToken> = self
            .special
            .values()
            .filter(|t| self.inner.token_to_id(t).is_some())
            .filter(|t| !self.inner.get_added_vocabulary().is_special_token(t))
            .map(|t| AddedToken::from(t.as_str(), true))
            .collect();
        self.inner.add_special_tokens(&tokens);
    }

    /// `add_bos_token` and `add_eos_token`, when the configuration states them, decide what is added
    /// to a plain text, as in transformers 5.
    fn apply_bos_and_eos_flags(&mut self) -> Result<()> {
        let stated = |name: &str| self.config.get(name).and_then(Value::as_bool);
        let (bos, eos) = (stated("add_bos_token"), stated("add_eos_token"));
        if bos.is_none() && eos.is_none() {
            return Ok(());
        }
        let token = |wanted: Option<bool>, name: &str| {
            let token = self.special.get(name).filter(|_| wanted == Some(true))?;
            Some((token.clone(), self.inner.token_to_id(token)?))
        };
        let (bos, eos) = (token(bos, "bos_token"), token(eos, "eos_token"));
        let part = |token: &Option<(String, u32)>| token.iter().map(|t| t.0.clone()).collect();
        let mut single: Vec<String> = part(&bos);
        single.push("$A".into());
        single.extend::<Vec<String>>(part(&eos));
        let template = TemplateProcessing::builder()
            .try_single(single)
            .map_err(|e| Error::new(ErrorKind::Tokenizer, format!("add_bos_token: {e}")))?
            .special_tokens(bos.into_iter().chain(eos).collect::<Vec<_>>())
            .build()
            .map_err(|e| Error::new(ErrorKind::Tokenizer, format!("add_bos_token: {e}")))?;
        self.inner
            .with_post_processor(Some(PostProcessorWrapper::Template(template)));
        Ok(())
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("folder", &self.folder)
            .field("vocab_size", &self.vocab_size)
            .field("special", &self.special)
            .finish_non_exhaustive()
    }
}

/// Text from ids that come one by one, see [`Tokenizer::stream`].
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    skip_special_tokens: bool,
    /// The ids given out last, which the next ones are decoded beside, and those not yet given out.
    ids: Vec<i32>,
    read: usize,
}

impl TextStream<'_> {
    /// Takes the next id; the text that became certain, `None` while a character is incomplete.
    pub fn push(&mut self, id: i32) -> Result<Option<String>> {
        self.ids.push(id);
        let text = self.decode(&self.ids)?;
        if text.ends_with('\u{FFFD}') {
            return Ok(None);
        }
        self.take(&text)
    }

    /// The rest, with U+FFFD for a character that never became complete.
    pub fn finish(mut self) -> Result<Option<String>> {
        let text = self.decode(&self.ids)?;
        self.take(&text)
    }

    fn take(&mut self, text: &str) -> Result<Option<String>> {
        let before = self.decode(&self.ids[..self.read])?;
        let new = match text.get(before.len()..) {
            Some(new) if !new.is_empty() => new.to_string(),
            _ => return Ok(None),
        };
        self.ids.drain(..self.read);
        self.read = self.ids.len();
        Ok(Some(new))
    }

    fn decode(&self, ids: &[i32]) -> Result<String> {
        self.tokenizer.decode(ids, self.skip_special_tokens)
    }
}

/// The tokenizer in the bytes of a `tokenizer.json`, and its model for the fast path, which a thread of
/// its own reads: rayon's global pool is the host's, not ours to start or to wait in.
fn read_both(bytes: &[u8]) -> (tokenizers::Result<tokenizers::Tokenizer>, Option<Bpe>) {
    std::thread::scope(|scope| {
        let bpe = std::thread::Builder::new().spawn_scoped(scope, || Bpe::read(bytes));
        let tokenizer = tokenizers::Tokenizer::from_bytes(bytes);
        let bpe = match bpe {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(_) => Bpe::read(bytes),
        };
        (tokenizer, bpe)
    })
}

/// The object in the file at `path`; empty when the file does not exist.
fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Map::new()),
        Err(e) => return Err(Error::io(path, e)),
    };
    serde_json::from_slice(&bytes)
        .map_err(|e| Error::new(ErrorKind::Tokenizer, path.display().to_string()).with_source(e))
}

/// The named special tokens. `special_tokens_map.json` is the older place; it counts where the
/// configuration is from that time, which its lack of `added_tokens_decoder` shows.
fn special_tokens(
    config: &Map<String, Value>,
    map: &Map<String, Value>,
) -> BTreeMap<String, String> {
    let sources = match config.contains_key("added_tokens_decoder") {
        true => [map, config],
        false => [config, map],
    };
    let mut special = BTreeMap::new();
    for source in sources {
        for name in SPECIAL_NAMES {
            if let Some(token) = source.get(name).and_then(token_text) {
                special.insert(name.to_string(), token.to_string());
            }
        }
        // Tokens that only this model has a name for, such as `image_token`.
        if let Some(Value::Object(extra)) = source.get("extra_special_tokens") {
            for (name, token) in extra {
                if let Some(token) = token_text(token) {
                    special.insert(name.clone(), token.to_string());
                }
            }
        }
    }
    special
}

/// A token is written as its text, or as an object that has it under `content`.
fn token_text(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        Value::Object(token) => token.get("content")?.as_str(),
        _ => None,
    }
}
