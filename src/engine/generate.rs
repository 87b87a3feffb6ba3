//! Text from a model folder: greedy or sampled, so that a user can look at what was learnt.

use super::any_network::AnyNetwork;
use super::device::OpenDevice;
use super::hooks::Hooks;
use super::prepare::{model_folder, open_network};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::{Purpose, Workload};
use crate::model::{GenerationDefaults, ModelSpec};
use crate::rng::Stream;

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingOptions {
    /// Divides the logits; 0 always takes the most likely token.
    pub temperature: f64,
    /// Keep the most likely tokens whose probabilities sum to this; 1 keeps all.
    pub top_p: f64,
    /// Keep this many most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Seed of the choices.
    pub seed: u64,
    /// Tokens to write at most.
    pub max_new_tokens: usize,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            seed: 42,
            max_new_tokens: 128,
        }
    }
}

/// A model that writes text.
pub struct Generator {
    network: Box<dyn AnyNetwork>,
    end_tokens: Vec<i32>,
    capacity: usize,
}

impl Generator {
    /// Loads the model folder of `config` with room for `capacity` tokens, prompt included.
    ///
    /// # Errors
    /// Those of opening the model.
    pub fn open(config: &Config, capacity: usize, mut hooks: Hooks) -> Result<Self> {
        let device = OpenDevice::open(config, &mut hooks)?;
        let needs = device.needs();
        let folder = model_folder(config)?;
        let spec = ModelSpec::from_dir(folder)?;
        needs.check(&spec)?;
        let defaults = GenerationDefaults::from_dir(folder)?;
        let capacity = capacity.clamp(1, spec.max_position_embeddings);
        let work = Workload {
            purpose: Purpose::Generate { capacity },
            tokens: capacity,
            sequence_length: capacity,
            stats: 1,
            head_rows: 1,
            precision: needs.precision,
            workspace: needs.workspace,
        };
        let network = open_network(config, device, spec, work, &mut hooks)?;
        let end_tokens = defaults.eos_token_ids.iter().map(|&id| id as i32).collect();
        Ok(Self {
            network,
            end_tokens,
            capacity,
        })
    }

    /// Also ends the text at this token.
    pub fn add_end_token(&mut self, id: i32) {
        self.end_tokens.push(id);
    }

    /// Continues `prompt`, handing each new token to `each` until an end token (which is not handed
    /// on), the limit, or `each` returning false.
    ///
    /// # Errors
    /// `Batch` for a prompt that is empty, longer than the capacity or outside the vocabulary;
    /// `InvalidArgument` for sampling options out of range.
    pub fn generate(
        &mut self,
        prompt: &[i32],
        options: &SamplingOptions,
        mut each: impl FnMut(i32) -> bool,
    ) -> Result<()> {
        options.validate()?;
        if prompt.len() >= self.capacity {
            return Err(Error::new(
                ErrorKind::Batch,
                format!(
                    "a prompt of {} tokens leaves no room in a context of {}",
                    prompt.len(),
                    self.capacity
                ),
            ));
        }
        let stream = Stream::new(options.seed, SAMPLING_STREAM);
        let mut logits = self.network.prefill(prompt)?;
        let room = options.max_new_tokens.min(self.capacity - prompt.len());
        for i in 0..room {
            let token = choose(&logits, options, stream.uniform(i as u64));
            if self.end_tokens.contains(&token) || !each(token) || i + 1 == room {
                break;
            }
            logits = self.network.decode(token, prompt.len() + i)?;
        }
        Ok(())
    }
}

/// The random stream of generation, apart from those of training.
const SAMPLING_STREAM: u64 = 0x7361_6d70_6c65;

impl SamplingOptions {
    fn validate(&self) -> Result<()> {
        let fail = |message: String| Err(Error::new(ErrorKind::InvalidArgument, message));
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return fail(format!(
                "temperature: must be 0 or more, found {}",
                self.temperature
            ));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return fail(format!(
                "top_p: must lie above 0 and up to 1, found {}",
                self.top_p
            ));
        }
        Ok(())
    }
}

/// The token at `uniform` in [0, 1) of the tempered, cut and renormalised distribution.
fn choose(logits: &[f32], options: &SamplingOptions, uniform: f64) -> i32 {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    // The most likely first; equal ones by id, so that the choice is the same everywhere.
    let by_logit = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    if options.temperature == 0.0 {
        return order.into_iter().min_by(by_logit).unwrap_or(0) as i32;
    }
    order.sort_by(by_logit);
    if options.top_k > 0 {
        order.truncate(options.top_k);
    }
    let top = f64::from(logits[order[0]]);
    let weight = |i: &usize| ((f64::from(logits[*i]) - top) / options.temperature).exp();
    let weights: Vec<f64> = order.iter().map(weight).collect();
    let total: f64 = weights.iter().sum();
    let mut kept = 0.0;
    let mut count = 0;
    while count < weights.len() && (count == 0 || kept < options.top_p * total) {
        kept += weights[count];
        count += 1;
    }
    let mut left = uniform * kept;
    let chosen = weights[..count].iter().position(|w| {
        left -= w;
        left < 0.0
    });
    order[chosen.unwrap_or(count - 1)] as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_first_of_equals() {
        let options = SamplingOptions::default();
        assert_eq!(choose(&[1.0, 3.0, 3.0, 2.0], &options, 0.9), 1);
    }

    #[test]
    fn sampling_follows_the_cut_distribution() {
        let logits = [0.0f32, 2f32.ln(), 1f32.ln() - 50.0];
        let options = SamplingOptions {
            temperature: 1.0,
            ..SamplingOptions::default()
        };
        assert_eq!(choose(&logits, &options, 0.0), 1);
        assert_eq!(choose(&logits, &options, 0.66), 1);
        assert_eq!(choose(&logits, &options, 0.67), 0);
        let cut = SamplingOptions {
            top_p: 0.5,
            ..options
        };
        assert_eq!(choose(&logits, &cut, 0.999), 1);
        let cut = SamplingOptions {
            top_k: 1,
            ..options
        };
        assert_eq!(choose(&logits, &cut, 0.999), 1);
    }
}
