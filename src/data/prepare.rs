//! From data files to tokenised documents: rows are read in chunks, tokenised on all cores and
//! written to the row store in the order of the files.

use std::fs::File;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Map, Value};

use super::cache::{Key, RowFlags, RowStore, RowWriter};
use super::mask;
use super::pack::RowOptions;
use super::source::{self, ChatExtras, DataFile, Format, Line, Row};
use super::template::{ChatTemplate, Conversation};
use super::tokenizer::Tokenizer;
use crate::error::{Error, ErrorKind, Result, ResultExt};

/// How data files become a dataset. The defaults are TRL's.
#[derive(Clone, Debug, PartialEq)]
pub struct DataOptions {
    /// The key of the text in rows that are plain texts.
    pub dataset_text_field: String,
    /// Train on the completion alone; `None`: when the rows have prompt and completion.
    pub completion_only_loss: Option<bool>,
    /// Train on what the assistant says alone. Conversations only.
    pub assistant_only_loss: bool,
    /// Variables for the chat template, for every row; a row's own win.
    pub chat_template_kwargs: Map<String, Value>,
    /// Entries of the model's vocabulary; a token outside is an error.
    pub vocab_size: Option<usize>,
    /// Longest row and packing.
    pub rows: RowOptions,
    /// Where tokenised rows are kept for the next run; `None`: nowhere (they lie in a temporary
    /// file while the dataset lives).
    pub cache_dir: Option<PathBuf>,
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            dataset_text_field: "text".into(),
            completion_only_loss: None,
            assistant_only_loss: false,
            chat_template_kwargs: Map::new(),
            vocab_size: None,
            rows: RowOptions::default(),
            cache_dir: None,
        }
    }
}

/// How far preparing the data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Rows tokenised.
    pub rows: u64,
    /// Tokens that they became.
    pub tokens: u64,
}

/// What preparing a list of files needs.
pub(super) struct Preparation<'a> {
    pub paths: &'a [PathBuf],
    pub tokenizer: &'a Tokenizer,
    pub template: Option<&'a ChatTemplate>,
    pub options: &'a DataOptions,
}

impl Preparation<'_> {
    /// The tokenised documents, and whether they came from the cache. `progress` is called after
    /// each chunk; when it returns false, preparing ends with [`ErrorKind::Cancelled`].
    pub fn run(&self, progress: &mut dyn FnMut(Progress) -> bool) -> Result<(RowStore, bool)> {
        if self.paths.is_empty() {
            return Err(Error::new(ErrorKind::Data, "no data file was given"));
        }
        let key = match self.options.cache_dir {
            Some(_) => self.key()?,
            None => [0; 32],
        };
        let cached = self.options.cache_dir.as_ref().map(|folder| {
            let name: String = key[..16].iter().map(|b| format!("{b:02x}")).collect();
            folder.join(format!("rows-{name}.bin"))
        });
        if let Some(path) = &cached
            && let Some(store) = RowStore::open(path, &key)?
        {
            return Ok((store, true));
        }
        let mut writer = RowWriter::new(cached.as_deref(), key)?;
        let mut done = Progress { rows: 0, tokens: 0 };
        for (number, path) in self.paths.iter().enumerate() {
            self.prepare_file(number as u32, path, &mut writer, &mut done, progress)?;
        }
        Ok((writer.finish()?, false))
    }

    fn prepare_file(
        &self,
        number: u32,
        path: &Path,
        writer: &mut RowWriter,
        done: &mut Progress,
        progress: &mut dyn FnMut(Progress) -> bool,
    ) -> Result<()> {
        let mut file = DataFile::open(path)?;
        let mut encoder = None;
        loop {
            let chunk = file.chunk()?;
            let Some(first) = chunk.first() else { break };
            let encoder = match &encoder {
                Some(encoder) => encoder,
                None => {
                    let format = file.format(first, &self.options.dataset_text_field)?;
                    encoder.insert(
                        self.encoder(format)
                            .context(|| path.display().to_string())?,
                    )
                }
            };
            let encoded: Vec<Result<Document>> = chunk
                .par_iter()
                .map(|line| encoder.encode_line(path, line))
                .collect();
            for (line, document) in chunk.iter().zip(encoded) {
                let document = document?;
                done.rows += 1;
                done.tokens += document.ids.len() as u64;
                writer.push(
                    &document.ids,
                    &document.labels,
                    number,
                    line.0,
                    document.flags,
                )?;
            }
            if !progress(*done) {
                return Err(Error::new(
                    ErrorKind::Cancelled,
                    "preparing the data was cancelled",
                ));
            }
        }
        Ok(())
    }

    /// Checks that rows of `format` can be encoded at all.
    fn encoder(&self, format: Format) -> Result<Encoder<'_>> {
        let options = self.options;
        let fail = |kind, message: &str| Err(Error::new(kind, message));
        if format.is_chat() && self.template.is_none() {
            let folder = self.tokenizer.folder().display();
            return fail(
                ErrorKind::Template,
                &format!(
                    "the rows are conversations, but the tokenizer in {folder} has no chat template; \
                     give one as chat_template_path"
                ),
            );
        }
        if options.assistant_only_loss && !format.is_chat() && format != Format::Tokens {
            return fail(
                ErrorKind::Config,
                "assistant_only_loss needs conversations (\"messages\", or \"prompt\" and \
                 \"completion\" as lists of messages)",
            );
        }
        if options.completion_only_loss == Some(true)
            && !format.has_completion()
            && format != Format::Tokens
        {
            return fail(
                ErrorKind::Config,
                "completion_only_loss needs rows with \"prompt\" and \"completion\"",
            );
        }
        let appends_eos = matches!(format, Format::Text | Format::PromptCompletion);
        if appends_eos && self.tokenizer.eos_token_id().is_none() {
            return fail(
                ErrorKind::Tokenizer,
                "the tokenizer has no eos_token (or its vocabulary lacks it), so a model would \
                 never learn to stop; name one as eos_token",
            );
        }
        Ok(Encoder {
            tokenizer: self.tokenizer,
            template: self.template,
            options,
            format,
            completion_only: options
                .completion_only_loss
                .unwrap_or(format.has_completion()),
        })
    }

    /// Identifies everything that the documents depend on.
    fn key(&self) -> Result<Key> {
        let mut hasher = blake3::Hasher::new();
        for path in self.paths {
            let file = File::open(path).map_err(|e| Error::io(path, e))?;
            let mut content = blake3::Hasher::new();
            content
                .update_reader(file)
                .map_err(|e| Error::io(path, e))?;
            hasher.update(content.finalize().as_bytes());
        }
        hasher.update(&self.tokenizer.fingerprint());
        if let Some(template) = self.template {
            template.hash_into(&mut hasher);
        }
        let options = self.options;
        let text = format!(
            "{:?} {:?} {} {:?} {} {}",
            options.dataset_text_field,
            options.completion_only_loss,
            options.assistant_only_loss,
            options.vocab_size,
            Value::Object(options.chat_template_kwargs.clone()),
            env!("CARGO_PKG_VERSION"),
        );
        hasher.update(text.as_bytes());
        Ok(*hasher.finalize().as_bytes())
    }
}

/// A tokenised row.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Document {
    ids: Vec<i32>,
    labels: Vec<i32>,
    flags: RowFlags,
}

/// Tokenises the rows of one format.
struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    options: &'a DataOptions,
    format: Format,
    completion_only: bool,
}

impl Encoder<'_> {
    fn encode_line(&self, path: &Path, line: &Line) -> Result<Document> {
        let row = source::read_row(path, line, self.format, &self.options.dataset_text_field)?;
        let place = || format!("{}:{}", path.display(), line.0);
        let mut document = self.encode(row).context(place)?;
        if let Some(vocab_size) = self.options.vocab_size {
            self.tokenizer
                .check_ids(&document.ids, vocab_size)
                .context(place)?;
        }
        let eos = self.tokenizer.eos_token_id();
        document.flags.eos_untrained = eos.is_some_and(|eos| !document.labels.contains(&eos));
        Ok(document)
    }

    fn encode(&self, row: Row) -> Result<Document> {
        match row {
            Row::Tokens {
                ids,
                labels,
                completion_mask,
                assistant_masks,
            } => {
                // Without being asked for, a completion mask of ready tokens does not count, as
                // in TRL.
                let completion_mask = completion_mask.filter(|_| self.completion_only);
                let masks: Vec<_> = completion_mask.into_iter().chain(assistant_masks).collect();
                Ok(Document {
                    labels: labels.unwrap_or_else(|| mask::labels(&ids, &masks)),
                    ids,
                    flags: RowFlags::default(),
                })
            }
            Row::Text(text) => {
                let text = self.with_eos(text);
                let ids = self.tokenizer.ids(&text, true)?;
                Ok(Document {
                    labels: ids.clone(),
                    ids,
                    flags: RowFlags::default(),
                })
            }
            Row::PromptCompletion { prompt, completion } => {
                let prompt_ids = self.tokenizer.ids(&prompt, true)?;
                let whole = prompt + &self.with_eos(completion);
                let ids = self.tokenizer.ids(&whole, true)?;
                Ok(self.prompt_and_completion(&prompt_ids, ids, None))
            }
            Row::Messages { messages, chat } => {
                let (ids, mask) = self.conversation(&messages, &chat)?;
                let masks: Vec<_> = mask.into_iter().collect();
                Ok(Document {
                    labels: mask::labels(&ids, &masks),
                    ids,
                    flags: RowFlags::default(),
                })
            }
            Row::ChatPromptCompletion {
                prompt,
                completion,
                chat,
            } => {
                let variables = self.variables(&chat);
                let prompt_text = self.template()?.render(&Conversation {
                    messages: &prompt,
                    tools: chat.tools.as_ref(),
                    variables: Some(&variables),
                    add_generation_prompt: true,
                })?;
                let prompt_ids = self.tokenizer.ids(&prompt_text, false)?;
                let whole = [prompt, completion].concat();
                let (ids, mask) = self.conversation(&whole, &chat)?;
                Ok(self.prompt_and_completion(&prompt_ids, ids, mask))
            }
        }
    }

    /// The completion begins where the tokens of the prompt and those of the whole part: a token
    /// that spans the border belongs to the completion.
    fn prompt_and_completion(
        &self,
        prompt: &[i32],
        ids: Vec<i32>,
        assistant: Option<Vec<bool>>,
    ) -> Document {
        let border = mask::common_prefix(prompt, &ids);
        let completion = (0..ids.len()).map(|i| i >= border).collect();
        let completion = Some(completion).filter(|_| self.completion_only);
        let masks: Vec<_> = completion.into_iter().chain(assistant).collect();
        Document {
            labels: mask::labels(&ids, &masks),
            ids,
            flags: RowFlags {
                prompt_diverges: border < prompt.len(),
                ..RowFlags::default()
            },
        }
    }

    /// Ids of a conversation and, if wanted, which of them the assistant says.
    fn conversation(
        &self,
        messages: &[Value],
        chat: &ChatExtras,
    ) -> Result<(Vec<i32>, Option<Vec<bool>>)> {
        let variables = self.variables(chat);
        let conversation = Conversation {
            messages,
            tools: chat.tools.as_ref(),
            variables: Some(&variables),
            add_generation_prompt: false,
        };
        if !self.options.assistant_only_loss {
            let text = self.template()?.render(&conversation)?;
            return Ok((self.tokenizer.ids(&text, false)?, None));
        }
        let (text, spans) = self.template()?.render_with_spans(&conversation)?;
        let encoding = self.tokenizer.encode(&text, false)?;
        let mask = mask::covered(&encoding.offsets, &spans);
        Ok((encoding.ids, Some(mask)))
    }

    fn variables(&self, chat: &ChatExtras) -> Map<String, Value> {
        let mut variables = self.options.chat_template_kwargs.clone();
        for (name, value) in chat.variables.iter().flatten() {
            variables.insert(name.clone(), value.clone());
        }
        variables
    }

    fn template(&self) -> Result<&ChatTemplate> {
        self.template
            .ok_or_else(|| Error::new(ErrorKind::Internal, "conversations without a template"))
    }

    /// The text, ending with the end-of-sequence token.
    fn with_eos(&self, text: String) -> String {
        match self.tokenizer.eos_token() {
            Some(eos) if !text.ends_with(eos) => text + eos,
            _ => text,
        }
    }
}
