//! Which layers attend within a window. The network has one window for all layers, so a model that
//! mixes windowed and full layers is refused.

use super::ConfigJson;
use crate::{Error, ErrorKind, Result};

const DEFAULT_WINDOW: usize = 4096;

/// Mistral's rule: `sliding_window` (null is none) holds for every layer.
pub(super) fn every_layer(config: &ConfigJson, num_layers: usize) -> Result<Option<usize>> {
    let window = read_window(config)?;
    match layer_types(config, num_layers)? {
        Some(windowed) => uniform(config, &windowed, window, "layer_types"),
        None => Ok(window),
    }
}

/// Qwen's rule: with `use_sliding_window`, the layers from `max_window_layers` on have the window;
/// `layer_types` overrides which ones.
pub(super) fn upper_layers(config: &ConfigJson, num_layers: usize) -> Result<Option<usize>> {
    let window = match config.bool_or("use_sliding_window", false)? {
        true => read_window(config)?,
        false => None,
    };
    if let Some(windowed) = layer_types(config, num_layers)? {
        return uniform(config, &windowed, window, "layer_types");
    }
    let first = config.count_or("max_window_layers", 28)?;
    let windowed: Vec<bool> = (0..num_layers)
        .map(|i| window.is_some() && i >= first)
        .collect();
    uniform(config, &windowed, window, "max_window_layers")
}

fn read_window(config: &ConfigJson) -> Result<Option<usize>> {
    match config.optional("sliding_window") {
        Some(serde_json::Value::Null) => Ok(None),
        _ => config.size_or("sliding_window", DEFAULT_WINDOW).map(Some),
    }
}

/// True for each layer with a window; `None` when the file does not say.
fn layer_types(config: &ConfigJson, num_layers: usize) -> Result<Option<Vec<bool>>> {
    let Some(value) = config.get("layer_types") else {
        return Ok(None);
    };
    let expected = format!("a list of {num_layers} strings, one for each hidden layer");
    let list = value
        .as_array()
        .filter(|list| list.len() == num_layers)
        .ok_or_else(|| config.invalid("layer_types", &expected))?;
    let windowed = list.iter().map(|item| match item.as_str() {
        Some("full_attention") => Ok(false),
        Some("sliding_attention") => Ok(true),
        Some(_) => Err(config.unsupported(
            "layer_types",
            "\"full_attention\" and \"sliding_attention\", the same for all layers",
        )),
        None => Err(config.invalid("layer_types", &expected)),
    });
    windowed.collect::<Result<_>>().map(Some)
}

fn uniform(
    config: &ConfigJson,
    windowed: &[bool],
    window: Option<usize>,
    key: &str,
) -> Result<Option<usize>> {
    if windowed.iter().all(|w| !w) {
        return Ok(None);
    }
    if !windowed.iter().all(|&w| w) {
        return Err(config.unsupported(key, "one kind of attention in all layers"));
    }
    if window.is_none() {
        return Err(Error::new(
            ErrorKind::Model,
            format!(
                "{}: `layer_types` asks for sliding attention, but `sliding_window` or \
                 `use_sliding_window` turns it off",
                config.place()
            ),
        ));
    }
    Ok(window)
}
