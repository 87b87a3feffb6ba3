//! Chat templates: the model's own Jinja text, rendered as transformers renders it, with the parts
//! that the assistant says.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use minijinja::{Environment, Value};
use serde_json::{Map, Value as Json};

use super::generation;
use super::jinja;
use super::python;
use super::tokenizer::Tokenizer;
use crate::error::{Error, ErrorKind, Result};

/// A conversation to render.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conversation<'a> {
    /// Objects with `role` and `content`, and what else the template knows.
    pub messages: &'a [Json],
    /// JSON schemas of functions.
    pub tools: Option<&'a Json>,
    /// Further variables (`chat_template_kwargs`); they win over the others.
    pub variables: Option<&'a Map<String, Json>>,
    /// End with the beginning of an assistant turn.
    pub add_generation_prompt: bool,
}

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    env: Environment<'static>,
    /// Name and text of each template.
    sources: BTreeMap<String, String>,
    special_tokens: BTreeMap<String, String>,
    has_generation: bool,
    /// The time at which the clock stands still.
    now: Option<String>,
}

const DEFAULT: &str = "default";
/// The named template that is preferred when there are tools.
const TOOL_USE: &str = "tool_use";

impl ChatTemplate {
    /// Compiles a template text; `tokenizer` provides `bos_token`, `eos_token` and so on.
    pub fn new(source: impl Into<String>, tokenizer: &Tokenizer) -> Result<Self> {
        Self::with_special_tokens(source, tokenizer.special_tokens().clone())
    }

    /// Compiles a template text with the given `bos_token`, `eos_token` and so on.
    pub fn with_special_tokens(
        source: impl Into<String>,
        special_tokens: BTreeMap<String, String>,
    ) -> Result<Self> {
        let sources = BTreeMap::from([(DEFAULT.to_string(), source.into())]);
        Self::compile(sources, special_tokens)
    }

    /// Stops the clock that templates read with `strftime_now`, at a local time such as
    /// `2026-03-14T15:09:26`: a run whose template names the day then gives the same tokens on
    /// every day.
    pub fn with_now(mut self, now: &str) -> Result<Self> {
        let strftime_now =
            python::strftime_at(now).map_err(|e| template_error("the time for strftime_now", e))?;
        self.env.add_function("strftime_now", strftime_now);
        self.now = Some(now.to_string());
        Ok(self)
    }

    /// The template that comes with the tokenizer: `chat_template.jinja` (and named ones under
    /// `additional_chat_templates`), else `chat_template` of `tokenizer_config.json` (a text, or a
    /// list of named ones); `None` when it has none.
    pub fn of(tokenizer: &Tokenizer) -> Result<Option<Self>> {
        let sources = template_sources(tokenizer.folder(), tokenizer.config())?;
        match sources.is_empty() {
            true => Ok(None),
            false => Self::compile(sources, tokenizer.special_tokens().clone()).map(Some),
        }
    }

    /// The template in a `.jinja` file, or that of the tokenizer in a folder. Only the template is
    /// taken: special tokens stay those of `tokenizer`.
    pub fn open(path: impl AsRef<Path>, tokenizer: &Tokenizer) -> Result<Self> {
        let path = path.as_ref();
        if path.is_dir() {
            let other = Tokenizer::open(path)?;
            let sources = template_sources(path, other.config())?;
            if sources.is_empty() {
                return Err(Error::new(
                    ErrorKind::Template,
                    format!("{} has no chat template", path.display()),
                ));
            }
            return Self::compile(sources, tokenizer.special_tokens().clone());
        }
        let source = fs::read_to_string(path).map_err(|e| Error::io(path, e))?;
        Self::new(source, tokenizer).map_err(|e| e.context(path.display().to_string()))
    }

    fn compile(
        sources: BTreeMap<String, String>,
        special_tokens: BTreeMap<String, String>,
    ) -> Result<Self> {
        let mut env = jinja::environment().map_err(|e| template_error("Jinja", e))?;
        env.add_filter(generation::FILTER, generation::mark);

        let mut has_generation = false;
        for (name, source) in &sources {
            let (rewritten, found) = generation::rewrite(source);
            has_generation |= found;
            env.add_template_owned(name.clone(), rewritten)
                .map_err(|e| template_error("the chat template does not compile", e))?;
        }
        if !sources.contains_key(DEFAULT) {
            let names: Vec<_> = sources.keys().map(String::as_str).collect();
            return Err(Error::new(
                ErrorKind::Template,
                format!(
                    "the tokenizer has chat templates named {} but none named \"default\"; give \
                     the one to use as chat_template_path",
                    names.join(", ")
                ),
            ));
        }
        Ok(Self {
            env,
            sources,
            special_tokens,
            has_generation,
            now: None,
        })
    }

    /// Whether the template marks what the assistant says with `{% generation %}`.
    pub fn has_generation(&self) -> bool {
        self.has_generation
    }

    /// The text of the template (of the default one, when there are several).
    pub fn source(&self) -> &str {
        &self.sources[DEFAULT]
    }

    /// The texts of all templates by name; one is named `default`.
    pub fn sources(&self) -> &BTreeMap<String, String> {
        &self.sources
    }

    /// The conversation as text.
    ///
    /// Fails when the template raises; the message is the template's.
    pub fn render(&self, conversation: &Conversation) -> Result<String> {
        self.render_marked(conversation, None)
    }

    /// The conversation as text, and the bytes of it that the assistant says: what the
    /// `{% generation %}` blocks wrote, or, for a template without them, what each assistant
    /// message added to the conversation before it.
    ///
    /// The second way renders the conversation up to each assistant message, once with the
    /// beginning of its turn and once with all of it. Where these are not prefixes of the whole
    /// text (a template may render earlier turns differently once later ones exist), the spans
    /// would be guesses, and the call fails.
    pub fn render_with_spans(
        &self,
        conversation: &Conversation,
    ) -> Result<(String, Vec<Range<usize>>)> {
        let text = self.render(conversation)?;
        let spans = match self.has_generation {
            true => self.generation_spans(conversation, &text)?,
            false => self.turn_spans(conversation, &text)?,
        };
        Ok((text, spans))
    }

    fn generation_spans(
        &self,
        conversation: &Conversation,
        text: &str,
    ) -> Result<Vec<Range<usize>>> {
        let markers = generation::unused_markers(text)?;
        let marked = self.render_marked(conversation, Some(markers))?;
        generation::spans(&marked, text, markers)
    }

    fn turn_spans(&self, conversation: &Conversation, text: &str) -> Result<Vec<Range<usize>>> {
        let mut spans: Vec<Range<usize>> = Vec::new();
        let messages = conversation.messages;
        for (i, message) in messages.iter().enumerate() {
            if message.get("role").and_then(Json::as_str) != Some("assistant") {
                continue;
            }
            let until = |end: usize, add_generation_prompt: bool| {
                self.render(&Conversation {
                    messages: &messages[..end],
                    add_generation_prompt,
                    ..*conversation
                })
            };
            let spoken = until(i, true).and_then(|before| Ok((before, until(i + 1, false)?)));
            let span = spoken.ok().and_then(|(before, after)| {
                let is_prefix = text.starts_with(&after) && after.starts_with(&before);
                is_prefix.then_some(before.len()..after.len())
            });
            let Some(span) = span.filter(|s| spans.last().is_none_or(|l| l.end <= s.start)) else {
                return Err(Error::new(
                    ErrorKind::Template,
                    format!(
                        "assistant_only_loss: the chat template has no {{% generation %}} blocks, \
                         and what messages[{i}] adds to the text cannot be told, because the \
                         template writes the beginning of a conversation differently once it goes \
                         on. Put {{% generation %}} … {{% endgeneration %}} around the assistant's \
                         words in a copy of the template and name it as chat_template_path, or \
                         train on prompt and completion"
                    ),
                ));
            };
            spans.push(span);
        }
        Ok(spans.into_iter().filter(|s| !s.is_empty()).collect())
    }

    fn render_marked(
        &self,
        conversation: &Conversation,
        markers: Option<[char; 2]>,
    ) -> Result<String> {
        if conversation.messages.is_empty() {
            return Err(Error::new(
                ErrorKind::Template,
                "a conversation needs at least one message",
            ));
        }
        let tools = conversation.tools.filter(|t| !t.is_null());
        let name = match tools.is_some() && self.sources.contains_key(TOOL_USE) {
            true => TOOL_USE,
            false => DEFAULT,
        };
        let mut variables: BTreeMap<&str, Value> = BTreeMap::new();
        for (name, token) in &self.special_tokens {
            variables.insert(name, Value::from(token.as_str()));
        }
        variables.insert(
            "messages",
            conversation.messages.iter().map(message).collect(),
        );
        variables.insert("tools", tools.map_or(Value::from(()), python::value));
        variables.insert("documents", Value::from(()));
        variables.insert(
            "add_generation_prompt",
            Value::from(conversation.add_generation_prompt),
        );
        for (name, value) in conversation.variables.into_iter().flatten() {
            variables.insert(name, python::value(value));
        }
        if let Some(markers) = markers {
            variables.insert(generation::MARKERS, Value::from(String::from_iter(markers)));
        }
        let template = self.env.get_template(name);
        template
            .and_then(|t| t.render(Value::from_pairs(variables)))
            .map_err(|e| template_error("the chat template cannot render a conversation", e))
    }

    /// What decides what the template renders.
    pub(super) fn hash_into(&self, hasher: &mut blake3::Hasher) {
        hasher.update(self.now.as_deref().unwrap_or_default().as_bytes());
        for (name, source) in self.sources.iter().chain(&self.special_tokens) {
            for part in [name, source] {
                hasher.update(&(part.len() as u64).to_le_bytes());
                hasher.update(part.as_bytes());
            }
        }
    }
}

/// A message as transformers 5 hands it to a template: keys that are null are left out, and what a
/// model thought is found under both names that templates use.
fn message(json: &Json) -> Value {
    let Json::Object(fields) = json else {
        return python::value(json);
    };
    let present = || fields.iter().filter(|(_, v)| !v.is_null());
    let reasoning = ["reasoning_content", "thinking", "reasoning"]
        .iter()
        .find_map(|&name| fields.get(name).filter(|v| !v.is_null()));
    let Some(reasoning) = reasoning.map(python::value) else {
        return Value::from_pairs(present().map(|(k, v)| (k.as_str(), python::value(v))));
    };
    let thinking = [("thinking", reasoning.clone())].into_iter();
    let rest = present().map(|(k, v)| (k.as_str(), python::value(v)));
    let content = [("reasoning_content", reasoning)];
    // Of equal keys the last counts.
    Value::from_pairs(thinking.chain(rest).chain(content))
}

fn template_error(what: &str, e: minijinja::Error) -> Error {
    Error::new(ErrorKind::Template, what).with_source(e)
}

/// The templates beside a tokenizer, by name.
fn template_sources(folder: &Path, config: &Map<String, Json>) -> Result<BTreeMap<String, String>> {
    let mut sources = BTreeMap::new();
    match config.get("chat_template") {
        None | Some(Json::Null) => {}
        Some(Json::String(source)) => {
            sources.insert(DEFAULT.to_string(), source.clone());
        }
        Some(Json::Array(named)) => {
            for entry in named {
                let text = |key: &str| entry.get(key).and_then(Json::as_str).map(str::to_string);
                if let (Some(name), Some(source)) = (text("name"), text("template")) {
                    sources.insert(name, source);
                }
            }
        }
        Some(_) => {
            return Err(Error::new(
                ErrorKind::Template,
                format!(
                    "{}: chat_template must be a text or a list of {{name, template}}",
                    folder.join("tokenizer_config.json").display()
                ),
            ));
        }
    }
    // Templates in files take the place of all others, as in transformers.
    let files = template_files(folder)?;
    Ok(if files.is_empty() { sources } else { files })
}

/// `chat_template.jinja` as the default, and `additional_chat_templates/<name>.jinja`.
fn template_files(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut paths = vec![(DEFAULT.to_string(), folder.join("chat_template.jinja"))];
    if let Ok(entries) = fs::read_dir(folder.join("additional_chat_templates")) {
        let named = |path: PathBuf| {
            let name = path.file_name()?.to_str()?.strip_suffix(".jinja")?;
            Some((name.to_string(), path))
        };
        paths.extend(entries.flatten().filter_map(|e| named(e.path())));
    }
    let mut sources = BTreeMap::new();
    for (name, path) in paths {
        match fs::read_to_string(&path) {
            Ok(source) => {
                sources.insert(name, source);
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Error::io(path, e)),
        }
    }
    Ok(sources)
}
