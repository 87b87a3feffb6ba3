//! Data files: JSON lines, read in chunks, each line a row of one of the known formats.
//!
//! The first row of a file decides its format; a later row that does not fit is an error that names
//! file, line and key. Only one chunk of lines is in memory at a time.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};

/// What the rows of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// `input_ids`, with `labels`, or `completion_mask` and `assistant_masks`, or none.
    Tokens,
    /// `conversations: [{from, value}]`, as ShareGPT writes them.
    ShareGpt,
    /// `prompt` and `completion` as lists of messages.
    ChatPromptCompletion,
    /// `prompt` and `completion` as texts.
    PromptCompletion,
    /// `messages: [{role, content}]`.
    Messages,
    /// A text under `dataset_text_field`.
    Text,
}

impl Format {
    /// Whether the rows are conversations, rendered by the chat template.
    pub fn is_chat(self) -> bool {
        matches!(
            self,
            Self::ShareGpt | Self::ChatPromptCompletion | Self::Messages
        )
    }

    /// Whether the rows tell the prompt from the completion.
    pub fn has_completion(self) -> bool {
        matches!(self, Self::ChatPromptCompletion | Self::PromptCompletion)
    }

    /// The format of a row; the formats are tried in the order that TRL tries them in.
    fn of(row: &Map<String, Value>, text_field: &str) -> Result<Self, String> {
        let has = |key: &str| row.get(key).is_some_and(|v| !v.is_null());
        let is_list = |key: &str| row.get(key).is_some_and(Value::is_array);
        if has("input_ids") {
            Ok(Self::Tokens)
        } else if has("conversations") {
            Ok(Self::ShareGpt)
        } else if has("prompt") && is_list("prompt") {
            Ok(Self::ChatPromptCompletion)
        } else if has("prompt") {
            Ok(Self::PromptCompletion)
        } else if has("messages") {
            Ok(Self::Messages)
        } else if has(text_field) {
            Ok(Self::Text)
        } else {
            let keys: Vec<_> = row.keys().map(|k| format!("{k:?}")).collect();
            let keys = match keys.is_empty() {
                true => "no key".to_string(),
                false => keys.join(", "),
            };
            Err(format!(
                "the row has {keys}, but none of \"messages\", \"prompt\" with \"completion\", \
                 {text_field:?} (dataset_text_field), \"conversations\" or \"input_ids\""
            ))
        }
    }
}

/// One row, ready for the tokenizer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Row {
    Tokens {
        ids: Vec<i32>,
        labels: Option<Vec<i32>>,
        completion_mask: Option<Vec<bool>>,
        assistant_masks: Option<Vec<bool>>,
    },
    Text(String),
    PromptCompletion {
        prompt: String,
        completion: String,
    },
    Messages {
        messages: Vec<Value>,
        chat: ChatExtras,
    },
    ChatPromptCompletion {
        prompt: Vec<Value>,
        completion: Vec<Value>,
        chat: ChatExtras,
    },
}

/// What a conversation brings for its template beside the messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ChatExtras {
    pub tools: Option<Value>,
    pub variables: Option<Map<String, Value>>,
}

impl Row {
    /// Reads a row of the given format. The error names the key path.
    fn read(mut row: Map<String, Value>, format: Format, text_field: &str) -> Result<Self, String> {
        match format {
            Format::Tokens => {
                let ids: Vec<i32> = list(&row, "input_ids")?.ok_or_else(|| missing("input_ids"))?;
                let same_length = |key: &str, len: Option<usize>| match len {
                    Some(len) if len != ids.len() => {
                        Err(format!("{key}: {len} entries for {} input_ids", ids.len()))
                    }
                    _ => Ok(()),
                };
                let labels: Option<Vec<i32>> = list(&row, "labels")?;
                same_length("labels", labels.as_ref().map(Vec::len))?;
                let mask = |key: &str| -> Result<Option<Vec<bool>>, String> {
                    let bits: Option<Vec<i32>> = list(&row, key)?;
                    same_length(key, bits.as_ref().map(Vec::len))?;
                    Ok(bits.map(|bits| bits.into_iter().map(|b| b != 0).collect()))
                };
                Ok(Self::Tokens {
                    completion_mask: mask("completion_mask")?,
                    assistant_masks: mask("assistant_masks")?,
                    labels,
                    ids,
                })
            }
            Format::Text => text(&mut row, text_field).map(Self::Text),
            Format::PromptCompletion => Ok(Self::PromptCompletion {
                prompt: text(&mut row, "prompt")?,
                completion: text(&mut row, "completion")?,
            }),
            Format::ChatPromptCompletion => Ok(Self::ChatPromptCompletion {
                prompt: messages(&mut row, "prompt")?,
                completion: messages(&mut row, "completion")?,
                chat: chat_extras(&mut row)?,
            }),
            Format::Messages => Ok(Self::Messages {
                messages: messages(&mut row, "messages")?,
                chat: chat_extras(&mut row)?,
            }),
            Format::ShareGpt => {
                if let Some(Value::Array(turns)) = row.get_mut("conversations") {
                    turns.iter_mut().for_each(from_sharegpt);
                }
                Ok(Self::Messages {
                    messages: messages(&mut row, "conversations")?,
                    chat: chat_extras(&mut row)?,
                })
            }
        }
    }
}

/// Renames `from` and `value` to `role` and `content`, and the roles to those that chat templates
/// know. (TRL renames the keys alone, and a template then prints `human` and `gpt`.)
fn from_sharegpt(turn: &mut Value) {
    let Value::Object(turn) = turn else { return };
    let named = [("from", "role"), ("value", "content")];
    for (theirs, ours) in named {
        if !turn.contains_key(ours)
            && let Some(value) = turn.shift_remove(theirs)
        {
            turn.insert(ours.into(), value);
        }
    }
    if let Some(Value::String(role)) = turn.get_mut("role") {
        let known = match role.as_str() {
            "human" => "user",
            "gpt" | "chatgpt" | "bing" | "bard" | "model" | "bot" => "assistant",
            "function" | "function_response" | "observation" => "tool",
            _ => return,
        };
        *role = known.into();
    }
}

fn missing(key: &str) -> String {
    format!(
        "{key}: missing, but the first row of the file has it; all rows of a file must have one \
         format"
    )
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn text(row: &mut Map<String, Value>, key: &str) -> Result<String, String> {
    match row.get_mut(key) {
        Some(Value::String(text)) => Ok(std::mem::take(text)),
        None | Some(Value::Null) => Err(missing(key)),
        Some(other) => Err(format!("{key}: expected a text, found {}", kind(other))),
    }
}

fn list(row: &Map<String, Value>, key: &str) -> Result<Option<Vec<i32>>, String> {
    let items = match row.get(key) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(items)) => items,
        Some(other) => return Err(format!("{key}: expected a list, found {}", kind(other))),
    };
    let number = |(i, item): (usize, &Value)| {
        let number = match item {
            Value::Bool(bit) => Some(i64::from(*bit)),
            _ => item.as_i64(),
        };
        number.and_then(|n| i32::try_from(n).ok()).ok_or_else(|| {
            format!("{key}[{i}]: expected a whole number below 2147483648, found {item}")
        })
    };
    let items: Result<_, _> = items.iter().enumerate().map(number).collect();
    items.map(Some)
}

fn messages(row: &mut Map<String, Value>, key: &str) -> Result<Vec<Value>, String> {
    let items = match row.get_mut(key) {
        Some(Value::Array(items)) => std::mem::take(items),
        None | Some(Value::Null) => return Err(missing(key)),
        Some(other) => {
            return Err(format!(
                "{key}: expected a list of messages, found {}",
                kind(other)
            ));
        }
    };
    if items.is_empty() {
        return Err(format!("{key}: a conversation needs at least one message"));
    }
    for (i, item) in items.iter().enumerate() {
        let Value::Object(message) = item else {
            return Err(format!(
                "{key}[{i}]: expected an object with role and content, found {}",
                kind(item)
            ));
        };
        match message.get("role") {
            Some(Value::String(_)) => {}
            Some(other) => {
                return Err(format!(
                    "{key}[{i}].role: expected a text, found {}",
                    kind(other)
                ));
            }
            None if message.contains_key("from") => {
                return Err(format!(
                    "{key}[{i}].role: missing; rows with from and value are read under the key \
                     \"conversations\""
                ));
            }
            None => return Err(format!("{key}[{i}].role: missing")),
        }
        match message.get("content") {
            None | Some(Value::Null | Value::String(_) | Value::Array(_)) => {}
            Some(other) => {
                return Err(format!(
                    "{key}[{i}].content: expected a text or a list of parts, found {}",
                    kind(other)
                ));
            }
        }
    }
    Ok(items)
}

fn chat_extras(row: &mut Map<String, Value>) -> Result<ChatExtras, String> {
    let tools = match row.get_mut("tools").map(Value::take) {
        None | Some(Value::Null) => None,
        Some(Value::String(json)) => Some(
            serde_json::from_str(&json)
                .map_err(|e| format!("tools: the text is not valid JSON: {e}"))?,
        ),
        Some(tools) => Some(tools),
    };
    if let Some(tools) = &tools
        && !tools.is_array()
        && !tools.is_null()
    {
        return Err(format!("tools: expected a list, found {}", kind(tools)));
    }
    let variables = match row.get_mut("chat_template_kwargs").map(Value::take) {
        None | Some(Value::Null) => None,
        Some(Value::Object(variables)) => Some(variables),
        Some(other) => {
            return Err(format!(
                "chat_template_kwargs: expected an object, found {}",
                kind(&other)
            ));
        }
    };
    Ok(ChatExtras { tools, variables })
}

/// Which part of a data folder is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    /// `train.jsonl`.
    Train,
    /// `validation.jsonl`, else `test.jsonl`.
    Validation,
}

impl Split {
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Train => &["train.jsonl"],
            Self::Validation => &["validation.jsonl", "test.jsonl"],
        }
    }

    /// The data file that `path` means: itself, or, when it is a folder, the file of this part in it.
    /// `Ok(None)` when the folder has no validation part.
    pub fn file(self, path: impl AsRef<Path>) -> Result<Option<PathBuf>> {
        let path = path.as_ref();
        let missing = |what: String| Err(Error::new(ErrorKind::Data, what));
        if path.is_file() {
            return Ok(Some(path.to_path_buf()));
        }
        if !path.is_dir() {
            return missing(format!(
                "{} does not exist; the data is a .jsonl file or a folder with train.jsonl",
                path.display()
            ));
        }
        let file = self.names().iter().map(|name| path.join(name));
        match (file.into_iter().find(|f| f.is_file()), self) {
            (None, Self::Train) => missing(format!("{} has no train.jsonl", path.display())),
            (found, _) => Ok(found),
        }
    }
}

/// Lines of a chunk at most, and bytes after which a chunk is full.
const CHUNK_LINES: usize = 1024;
const CHUNK_BYTES: usize = 4 << 20;

/// A line and its number, from 1.
pub(super) type Line = (u64, String);

/// A file of rows.
pub(super) struct DataFile {
    path: PathBuf,
    reader: BufReader<File>,
    line: u64,
    buffer: Vec<u8>,
}

impl DataFile {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        Ok(Self {
            path: path.to_path_buf(),
            reader: BufReader::with_capacity(1 << 18, file),
            line: 0,
            buffer: Vec::new(),
        })
    }

    /// The next lines that are not blank; empty at the end of the file.
    pub fn chunk(&mut self) -> Result<Vec<Line>> {
        let mut lines = Vec::new();
        let mut bytes = 0;
        while lines.len() < CHUNK_LINES && bytes < CHUNK_BYTES {
            self.buffer.clear();
            let read = self.reader.read_until(b'\n', &mut self.buffer);
            if read.map_err(|e| Error::io(&self.path, e))? == 0 {
                break;
            }
            self.line += 1;
            let mut content = self.buffer.as_slice();
            if self.line == 1 {
                content = content.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(content);
            }
            let text = std::str::from_utf8(content).map_err(|e| {
                let place = format!("{}:{}", self.path.display(), self.line);
                let column = e.valid_up_to() + 1;
                let message = format!("{place}:{column}: the line is not UTF-8 from here on");
                Error::new(ErrorKind::Data, message)
            })?;
            let text = text.trim_end_matches(['\n', '\r']);
            if !text.trim().is_empty() {
                bytes += text.len();
                lines.push((self.line, text.to_string()));
            }
        }
        Ok(lines)
    }

    /// The format that a row decides.
    pub fn format(&self, first: &Line, text_field: &str) -> Result<Format> {
        let row = parse_line(&self.path, first)?;
        Format::of(&row, text_field).map_err(|e| at(&self.path, first.0, &e))
    }
}

/// The row in a line of the file at `path`.
pub(super) fn read_row(path: &Path, line: &Line, format: Format, text_field: &str) -> Result<Row> {
    let row = parse_line(path, line)?;
    Row::read(row, format, text_field).map_err(|e| at(path, line.0, &e))
}

fn parse_line(path: &Path, (number, text): &Line) -> Result<Map<String, Value>> {
    let value: Value = serde_json::from_str(text).map_err(|e| {
        let place = format!("{}:{number}:{}", path.display(), e.column());
        // serde_json ends its message with its own place, which is always line 1 here.
        let message = e.to_string();
        let message = message.split(" at line ").next().unwrap_or(&message);
        Error::new(
            ErrorKind::Data,
            format!("{place}: not valid JSON: {message}"),
        )
    })?;
    match value {
        Value::Object(row) => Ok(row),
        Value::Array(_) => Err(at(
            path,
            *number,
            "a list instead of an object; the file must hold one JSON object on each line, not one \
             list of them",
        )),
        other => Err(at(
            path,
            *number,
            &format!("expected a JSON object, found {}", kind(&other)),
        )),
    }
}

fn at(path: &Path, line: u64, message: &str) -> Error {
    let place = path.display();
    Error::new(ErrorKind::Data, format!("{place}:{line}: {message}"))
}
