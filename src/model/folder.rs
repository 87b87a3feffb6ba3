//! Weights from and to a Hugging Face model folder.

use std::path::Path;

use serde_json::Value;

use super::families::read_json_object;
use super::params::{Param, ParamTable};
use super::spec::ModelSpec;
use crate::dtype::DType;
use crate::error::ResultExt;
use crate::io::{
    AtomicFolder, DEFAULT_SHARD_BYTES, TensorMeta, WeightFiles, is_weight_file, write_safetensors,
};
use crate::{Error, ErrorKind, Result};

/// Files that travel unchanged from the model that training began with.
const COMPANIONS: &[&str] = &[
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
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
    let mut end = 0;
    for param in &table.params {
        weights[end..param.offset].fill(0.0);
        end = param.offset + param.len();
        files.read_f32(&param.name, &param.shape, &mut weights[param.offset..end])?;
    }
    weights[end..].fill(0.0);
    let known: std::collections::HashSet<&str> =
        table.params.iter().map(|p| p.name.as_str()).collect();
    Ok(files
        .names()
        .filter(|n| !known.contains(n))
        .map(str::to_owned)
        .collect())
}

/// Writes a model folder that transformers loads to `dest`: the weights in `dtype`, `config.json` of
/// `source` with that dtype, and the tokenizer, template and licence files of `source`. The folder
/// appears whole or not at all; an earlier model at `dest` stays until then, and files there that
/// belong to no model (logs, checkpoints) stay after. `dest` may be `source`.
///
/// `read(param, start, chunk)` delivers the elements of a tensor from `start` on, in float32; it is
/// called in the order of `table.params`, so a device can copy its weights piece by piece.
///
/// # Errors
/// [`ErrorKind::Model`] if `source` has no `config.json` or describes another model than `spec`;
/// those of `read` and of [`write_safetensors`]; [`ErrorKind::Io`] naming the file.
pub fn save_model_folder(
    dest: impl AsRef<Path>,
    source: impl AsRef<Path>,
    spec: &ModelSpec,
    table: &ParamTable,
    dtype: DType,
    read: impl FnMut(&Param, usize, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let shard_bytes = DEFAULT_SHARD_BYTES;
    save_model_folder_sharded(dest, source, spec, table, dtype, shard_bytes, read)
}

/// As [`save_model_folder`] with files of at most `max_shard_bytes` (more only for a single tensor
/// that is longer).
///
/// # Errors
/// As [`save_model_folder`].
pub fn save_model_folder_sharded(
    dest: impl AsRef<Path>,
    source: impl AsRef<Path>,
    spec: &ModelSpec,
    table: &ParamTable,
    dtype: DType,
    max_shard_bytes: u64,
    read: impl FnMut(&Param, usize, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let (dest, source) = (dest.as_ref(), source.as_ref());
    if &ModelSpec::from_dir(source)? != spec {
        return Err(Error::new(
            ErrorKind::Model,
            format!(
                "{}/config.json describes another model than the one to be saved",
                source.display()
            ),
        ));
    }
    let saving = || format!("saving the model to {}", dest.display());
    let mut folder = AtomicFolder::create(dest).context(saving)?;
    write_config(&mut folder, source, dtype).context(saving)?;
    copy_companions(&mut folder, source).context(saving)?;
    write_weights(&mut folder, table, dtype, max_shard_bytes, read).context(saving)?;
    folder.merge(is_model_file).context(saving)
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
pub(super) fn is_model_file(name: &str) -> bool {
    name == "config.json" || name == TEMPLATES || COMPANIONS.contains(&name) || is_weight_file(name)
}

/// `config.json` of the source with the dtype that is saved, under the key that the file uses.
fn write_config(folder: &mut AtomicFolder, source: &Path, dtype: DType) -> Result<()> {
    let mut config = read_json_object(&source.join("config.json"))?;
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
    let text = format!("{:#}\n", Value::Object(config));
    folder.write("config.json", text.as_bytes())
}

fn copy_companions(folder: &mut AtomicFolder, source: &Path) -> Result<()> {
    let mut names: Vec<String> = COMPANIONS.iter().map(|&n| n.to_owned()).collect();
    if let Ok(entries) = std::fs::read_dir(source.join(TEMPLATES)) {
        let files = entries.flatten().map(|e| e.file_name());
        names.extend(files.filter_map(|f| Some(format!("{TEMPLATES}/{}", f.to_str()?))));
    }
    for name in names {
        let path = source.join(&name);
        if path.is_file() {
            let content = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
            folder.write(&name, &content)?;
        }
    }
    Ok(())
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
                    save_model_folder(&model, &model, &spec, &table, DType::F32, |_, _, chunk| {
                        chunk.fill(0.0);
                        Ok(())
                    })
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
