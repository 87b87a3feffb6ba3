//! Weights from and to a Hugging Face model folder.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::families::read_json_object;
use super::params::{Param, ParamTable};
use super::spec::ModelSpec;
use crate::dtype::DType;
use crate::error::ResultExt;
use crate::io::{
    AtomicFolder, DEFAULT_SHARD_BYTES, TensorMeta, WeightFiles, is_weight_file, write_safetensors,
};
use crate::{Error, ErrorKind, Result};

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS: &str = "special_tokens_map.json";

/// Files that travel unchanged from the model that training began with.
const COMPANIONS: &[&str] = &[
    GENERATION_CONFIG,
    "tokenizer.json",
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS,
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
    "LICENSE.txt",
    "LICENSE.md",
    "NOTICE",
    "NOTICE.txt",
];

/// Templates beside the default one, under this folder.
const TEMPLATES: &str = "additional_chat_templates";

/// What stands in the model folder and is no part of the model: the tensors that were not read.
pub type ExtraTensors = Vec<String>;

/// Reads the weights of the model folder `dir` into `weights`, laid out as `table`; alignment gaps
/// become zero. Returns the names of tensors that the model does not use (rotary buffers of old
/// files, an `lm_head.weight` beside tied embeddings).
///
/// # Errors
/// As [`WeightFiles::open`] and [`WeightFiles::read_f32`]; [`ErrorKind::Internal`] if `weights` has
/// not `table.len` elements.
pub fn load_weights(
    dir: impl AsRef<Path>,
    table: &ParamTable,
    weights: &mut [f32],
) -> Result<ExtraTensors> {
    if weights.len() != table.len {
        return Err(Error::new(
            ErrorKind::Internal,
            format!("{} elements for a table of {}", weights.len(), table.len),
        ));
    }
    let files = WeightFiles::open(dir)?;
    weights.fill(0.0);
    for param in &table.params {
        let to = &mut weights[param.offset..][..param.len()];
        files.read_f32(&param.name, &param.shape, to)?;
    }
    let known: std::collections::HashSet<&str> =
        table.params.iter().map(|p| p.name.as_str()).collect();
    Ok(files
        .names()
        .filter(|n| !known.contains(n))
        .map(str::to_owned)
        .collect())
}

/// How a model folder is written, and what in it differs from the source.
#[derive(Clone, Debug, PartialEq)]
pub struct SaveOptions {
    /// The number format of the weights.
    pub dtype: DType,
    /// Weight files are at most this long; longer only for a single tensor that is.
    pub max_shard_bytes: u64,
    /// What takes the place of the source's own.
    pub overrides: Overrides,
}

impl Default for SaveOptions {
    fn default() -> Self {
        Self {
            dtype: DType::F32,
            max_shard_bytes: DEFAULT_SHARD_BYTES,
            overrides: Overrides::default(),
        }
    }
}

impl From<DType> for SaveOptions {
    fn from(dtype: DType) -> Self {
        Self {
            dtype,
            ..Self::default()
        }
    }
}

/// What a run was told to use instead of the tokenizer files of its model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// The end-of-sequence token and its id. Generation also ends at the tokens that ended it before.
    pub eos_token: Option<(String, u32)>,
    /// Chat templates by name, among them `default`; empty: those of the source.
    pub chat_templates: BTreeMap<String, String>,
}

/// Writes a model folder that transformers loads to `dest`: the weights, `config.json` of `source`
/// with their dtype, and the tokenizer, template and licence files of `source`, changed as
/// [`SaveOptions::overrides`] says. The folder appears whole or not at all; an earlier model at
/// `dest` stays until then, and files there that belong to no model (logs, checkpoints) stay after.
/// `dest` may be `source`.
///
/// `read(param, start, chunk)` delivers the elements of a tensor from `start` on, in float32; it is
/// called in the order of `table.params`, so a device can copy its weights piece by piece.
///
/// # Errors
/// [`ErrorKind::Model`] if `source` has no `config.json`, describes another model than `spec`, or has
/// a file to be changed that is no JSON object; those of `read` and of [`write_safetensors`];
/// [`ErrorKind::Io`] naming the file.
pub fn save_model_folder(
    dest: impl AsRef<Path>,
    source: impl AsRef<Path>,
    spec: &ModelSpec,
    table: &ParamTable,
    options: &SaveOptions,
    read: impl FnMut(&Param, usize, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let dest = dest.as_ref();
    let saving = || format!("saving the model to {}", dest.display());
    let mut folder = AtomicFolder::create(dest).context(saving)?;
    write_model(&mut folder, source, spec, table, options, read).context(saving)?;
    folder.merge(is_model_file).context(saving)
}

/// The files of [`save_model_folder`], in a folder that the caller goes on with.
///
/// # Errors
/// As [`save_model_folder`].
pub fn write_model(
    folder: &mut AtomicFolder,
    source: impl AsRef<Path>,
    spec: &ModelSpec,
    table: &ParamTable,
    options: &SaveOptions,
    read: impl FnMut(&Param, usize, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let source = source.as_ref();
    if &ModelSpec::from_dir(source)? != spec {
        return Err(Error::new(
            ErrorKind::Model,
            format!(
                "{}/config.json describes another model than the one to be saved",
                source.display()
            ),
        ));
    }
    let SaveOptions {
        dtype,
        max_shard_bytes,
        ref overrides,
    } = *options;
    write_config(folder, source, dtype, overrides)?;
    copy_companions(folder, source, overrides)?;
    write_overrides(folder, source, overrides)?;
    write_weights(folder, table, dtype, max_shard_bytes, read)
}

/// Writes the tensors of `table` into `folder` under their Hugging Face names.
pub(super) fn write_weights(
    folder: &mut AtomicFolder,
    table: &ParamTable,
    dtype: DType,
    max_shard_bytes: u64,
    mut read: impl FnMut(&Param, usize, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let params = &table.params;
    let meta = |p: &Param| TensorMeta {
        name: p.name.clone(),
        shape: p.shape.clone(),
    };
    let tensors: Vec<_> = params.iter().map(meta).collect();
    write_safetensors(
        folder,
        "model",
        &tensors,
        dtype,
        max_shard_bytes,
        |i, start, chunk| read(&params[i], start, chunk),
    )
}

/// True for names that belong to a model in an existing folder and may be replaced or removed.
pub fn is_model_file(name: &str) -> bool {
    name == CONFIG || name == TEMPLATES || COMPANIONS.contains(&name) || is_weight_file(name)
}

/// `config.json` of the source with the dtype that is saved, under the key that the file uses.
fn write_config(
    folder: &mut AtomicFolder,
    source: &Path,
    dtype: DType,
    overrides: &Overrides,
) -> Result<()> {
    let mut config = read_json_object(&source.join(CONFIG))?;
    let mut named = false;
    for key in ["dtype", "torch_dtype"] {
        if let Some(value) = config.get_mut(key) {
            *value = dtype.name().into();
            named = true;
        }
    }
    if !named {
        // All releases read this one.
        config.insert("torch_dtype".into(), dtype.name().into());
    }
    if let Some((_, id)) = overrides.eos_token {
        // Without a generation_config.json, generation ends where this file says.
        let ids = match source.join(GENERATION_CONFIG).is_file() {
            true => id.into(),
            false => first_of_ids(id, config.get("eos_token_id")),
        };
        config.insert("eos_token_id".into(), ids);
    }
    write_object(folder, CONFIG, config)
}

fn copy_companions(folder: &mut AtomicFolder, source: &Path, overrides: &Overrides) -> Result<()> {
    let mut names: Vec<String> = COMPANIONS.iter().map(|&n| n.to_owned()).collect();
    if let Ok(entries) = std::fs::read_dir(source.join(TEMPLATES)) {
        let files = entries.flatten().map(|e| e.file_name());
        names.extend(files.filter_map(|f| Some(format!("{TEMPLATES}/{}", f.to_str()?))));
    }
    names.retain(|name| !overrides.replace(name));
    for name in names {
        let path = source.join(&name);
        if path.is_file() {
            let content = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
            folder.write(&name, &content)?;
        }
    }
    Ok(())
}

impl Overrides {
    /// True for the files that [`write_overrides`] writes, or that would contradict them.
    fn replace(&self, name: &str) -> bool {
        let eos = self.eos_token.is_some();
        let templates = !self.chat_templates.is_empty();
        match name {
            TOKENIZER_CONFIG => eos || templates,
            GENERATION_CONFIG | SPECIAL_TOKENS => eos,
            _ => templates && (name.starts_with("chat_template") || name.starts_with(TEMPLATES)),
        }
    }
}

/// The companions that [`Overrides::replace`] names, as the overrides want them.
fn write_overrides(folder: &mut AtomicFolder, source: &Path, overrides: &Overrides) -> Result<()> {
    let object = |name: &str| {
        let path = source.join(name);
        path.is_file().then(|| read_json_object(&path)).transpose()
    };
    let templates = &overrides.chat_templates;
    if overrides.replace(TOKENIZER_CONFIG) {
        let mut config = object(TOKENIZER_CONFIG)?.unwrap_or_default();
        if let Some((token, _)) = &overrides.eos_token {
            config.insert("eos_token".into(), token.as_str().into());
        }
        if !templates.is_empty() {
            // The template has one home, the files below.
            config.remove("chat_template");
        }
        write_object(folder, TOKENIZER_CONFIG, config)?;
    }
    for (name, template) in templates {
        let file = match name.as_str() {
            "default" => "chat_template.jinja".to_owned(),
            // A name is the tokenizer's author's choice and must not lead out of the folder.
            name if name.is_empty() || name.contains(['/', '\\', '\0']) => {
                let message = format!("chat template name {name:?} cannot be a file name");
                return Err(Error::new(ErrorKind::Template, message));
            }
            name => format!("{TEMPLATES}/{name}.jinja"),
        };
        folder.write(&file, template.as_bytes())?;
    }
    let Some((token, id)) = &overrides.eos_token else {
        return Ok(());
    };
    if let Some(mut map) = object(SPECIAL_TOKENS)? {
        map.insert("eos_token".into(), token.as_str().into());
        write_object(folder, SPECIAL_TOKENS, map)?;
    }
    if let Some(mut generation) = object(GENERATION_CONFIG)? {
        let ids = first_of_ids(*id, generation.get("eos_token_id"));
        generation.insert("eos_token_id".into(), ids);
        write_object(folder, GENERATION_CONFIG, generation)?;
    }
    Ok(())
}

/// The ids with `id` before them: one as a number, several as a list.
fn first_of_ids(id: u32, ids: Option<&Value>) -> Value {
    let earlier = match ids {
        Some(Value::Array(ids)) => ids.as_slice(),
        Some(Value::Null) | None => &[],
        Some(one) => std::slice::from_ref(one),
    };
    let earlier = earlier
        .iter()
        .filter(|other| other.as_u64().is_some_and(|n| n != u64::from(id)));
    match Vec::from_iter(earlier.cloned()) {
        others if others.is_empty() => id.into(),
        others => [vec![id.into()], others].concat().into(),
    }
}

fn write_object(folder: &mut AtomicFolder, name: &str, object: Map<String, Value>) -> Result<()> {
    let text = format!("{:#}\n", Value::Object(object));
    folder.write(name, text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::atomic::test_disk;
    use crate::model::{InitOptions, init_model};

    /// However early the disk fills up, the model that stood there stays whole.
    #[test]
    fn full_disk_while_saving_keeps_the_earlier_model() {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("model");
        init_model(&model, &InitOptions::preset("tiny").unwrap()).unwrap();
        let spec = ModelSpec::from_dir(&model).unwrap();
        let table = ParamTable::new(&spec);
        let load = || {
            let mut weights = vec![0.0; table.len];
            load_weights(&model, &table, &mut weights).map(|_| weights)
        };
        let before = load().unwrap();
        for foreign in [false, true] {
            if foreign {
                std::fs::write(model.join("train_log.jsonl"), "").unwrap();
            }
            for (free, file) in [
                (10, "config.json"),
                (2_000, "tokenizer.json"),
                (500_000, "model.safetensors"),
            ] {
                let error = test_disk::with_free_bytes(free, || {
                    save_model_folder(
                        &model,
                        &model,
                        &spec,
                        &table,
                        &SaveOptions::default(),
                        |_, _, chunk| {
                            chunk.fill(0.0);
                            Ok(())
                        },
                    )
                })
                .unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Io);
                assert!(
                    error.to_string().contains(&format!("model/{file}")),
                    "{error}"
                );
                assert_eq!(load().unwrap(), before);
                assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
            }
        }
    }
}
