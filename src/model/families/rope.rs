//! Inverse frequencies of rotary position embedding, in the float32 arithmetic of transformers.
//!
//! Every step below is one float32 operation, in the peer's order, because the angles of late
//! positions amplify a last-bit difference. Powers are correctly rounded; PyTorch's vectorised `powf`
//! is off by one unit in the last place for about one entry in a hundred, and so may we differ there.

use super::ConfigJson;
use crate::Result;
use crate::model::Rope;

const DEFAULT_THETA: f64 = 10_000.0;
const SUPPORTED: &str = "\"default\", \"linear\", \"llama3\"";

/// Reads the rotary options in either spelling: `rope_parameters`, or `rope_scaling` beside
/// `rope_theta`.
pub(super) fn read(
    config: &ConfigJson,
    head_dim: usize,
    max_position_embeddings: usize,
) -> Result<Rope> {
    let key = match config
        .get("rope_scaling")
        .is_some_and(|v| v != &serde_json::json!({}))
    {
        true => "rope_scaling",
        false => "rope_parameters",
    };
    let part = config.part(key)?;
    let top_theta = config.positive_or("rope_theta", DEFAULT_THETA)?;
    refuse_partial(config)?;
    let Some(part) = part else {
        return Ok(Rope {
            inv_freq: unscaled(top_theta, head_dim),
        });
    };
    refuse_partial(&part)?;
    for nested in ["full_attention", "sliding_attention"] {
        if part.get(nested).is_some() {
            return Err(part.unsupported(nested, "one set of rotary options for all layers"));
        }
    }
    // Releases before 4.43 wrote `type`.
    let type_key = match part.get("rope_type").is_some() {
        true => "rope_type",
        false => "type",
    };
    let mut inv_freq = unscaled(part.positive_or("rope_theta", top_theta)?, head_dim);
    match part.str_or(type_key, "default")? {
        "default" => {}
        "linear" => {
            let factor = part.required_positive("factor")? as f32;
            inv_freq.iter_mut().for_each(|f| *f /= factor);
        }
        "llama3" => {
            let scaling = Llama3::read(config, &part, max_position_embeddings)?;
            inv_freq.iter_mut().for_each(|f| *f = scaling.apply(*f));
        }
        _ => return Err(part.unsupported(type_key, SUPPORTED)),
    }
    Ok(Rope { inv_freq })
}

fn refuse_partial(config: &ConfigJson) -> Result<()> {
    match config.f64_or("partial_rotary_factor", 1.0)? {
        1.0 => Ok(()),
        _ => Err(config.unsupported("partial_rotary_factor", "1.0")),
    }
}

/// `1 / θ^(2i / head_dim)`, `(head_dim / 2)`.
fn unscaled(theta: f64, head_dim: usize) -> Vec<f32> {
    let theta = f64::from(theta as f32);
    let power = |i: usize| {
        let exponent = (2 * i) as f32 / head_dim as f32;
        theta.powf(f64::from(exponent)) as f32
    };
    (0..head_dim / 2).map(|i| 1.0 / power(i)).collect()
}

/// The scaling of Llama 3.1: long wavelengths are stretched by `factor`, short ones kept, those
/// between interpolated.
struct Llama3 {
    factor: f32,
    low_freq_factor: f32,
    /// `high_freq_factor - low_freq_factor`
    freq_factor_span: f32,
    original_context: f32,
    low_freq_wavelength: f32,
    high_freq_wavelength: f32,
}

impl Llama3 {
    fn read(config: &ConfigJson, part: &ConfigJson, max_positions: usize) -> Result<Self> {
        let factor = part.required_positive("factor")?;
        let low = part.required_positive("low_freq_factor")?;
        let high = part.required_positive("high_freq_factor")?;
        if high <= low {
            return Err(part.invalid("high_freq_factor", "more than `low_freq_factor`"));
        }
        const ORIGINAL: &str = "original_max_position_embeddings";
        // A value beside `rope_parameters` wins over one inside, as in the peer.
        let original = match config.get(ORIGINAL) {
            Some(_) => config.required_size(ORIGINAL)?,
            None => part.size_or(ORIGINAL, max_positions)?,
        } as f64;
        Ok(Self {
            factor: factor as f32,
            low_freq_factor: low as f32,
            freq_factor_span: (high - low) as f32,
            original_context: original as f32,
            low_freq_wavelength: (original / low) as f32,
            high_freq_wavelength: (original / high) as f32,
        })
    }

    fn apply(&self, inv_freq: f32) -> f32 {
        // PyTorch divides a number by a tensor as reciprocal times number.
        let wavelength = (1.0 / inv_freq) * (std::f64::consts::TAU as f32);
        if wavelength < self.high_freq_wavelength {
            return inv_freq;
        }
        if wavelength > self.low_freq_wavelength {
            return inv_freq / self.factor;
        }
        let turns = (1.0 / wavelength) * self.original_context;
        let smooth = (turns - self.low_freq_factor) / self.freq_factor_span;
        (1.0 - smooth) * inv_freq / self.factor + smooth * inv_freq
    }
}
