use sha2::{Digest, Sha256};
use storage::Samples;

use crate::config::ModelConfig;
use crate::device::Device;
use crate::loader::Shuffle;
use crate::model::{Capacity, Model};
use crate::parameters::Parameters;
use crate::parts::hex;
use crate::recipe::Recipe;
use crate::saved::About;
use crate::step::Trainer;
use crate::{Error, Result};

/// What to train, but for the data.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The pool that the samples are of, for `run.json`.
    pub pool: String,
    pub recipe: Recipe,
    pub model: ModelConfig,
    pub seed: u64,
    pub shuffle: Shuffle,
    /// Samples whose activations are held at once; by default what `memory` has room for.
    pub micro_batch: Option<usize>,
    /// Bytes for parameters, optimizer and activations, roughly.
    pub memory: usize,
    /// Stop after so many steps of the schedule.
    pub max_steps: Option<u64>,
    /// Images are read shrunk to this shorter side, where they were larger.
    pub shrunk: Option<usize>,
    /// Where to compute.
    pub device: Device,
    /// Go on with what the folder holds.
    pub resume: bool,
    /// Write `samples.parquet`: how often each sample was seen, and its last loss.
    pub track_samples: bool,
}

/// Checkpoints of a whole schedule, the last being the run's own.
const CHECKPOINTS: u64 = 5;
/// Tokens of a caption that room is made for: longer ones make smaller micro-batches.
const TOKENS_PER_CAPTION: usize = 40;

impl Plan {
    /// What is changed of the scale's recipe.
    pub fn off_recipe(&self) -> Vec<&'static str> {
        let mut off = self.recipe.off_recipe();
        if ModelConfig::named(&self.recipe.model).as_ref() != Some(&self.model) && !off.contains(&"model") {
            off.push("model");
        }
        if self.shrunk.is_some() {
            off.push("images");
        }
        if self.steps() < self.recipe.steps() {
            off.push("steps");
        }
        off
    }

    /// Whether the checkpoint of this step is one of those that stay.
    pub(crate) fn keeps(&self, step: u64) -> bool {
        (1..CHECKPOINTS).any(|k| step == (k * self.recipe.steps()).div_ceil(CHECKPOINTS))
    }

    /// Steps that this run does, resumed or not.
    pub fn steps(&self) -> u64 {
        let all = self.recipe.steps();
        self.max_steps.map_or(all, |max| max.min(all))
    }

    /// How much the model holds at once, or why the plan cannot be.
    pub fn capacity(&self) -> Result<Capacity> {
        let batch_size = self.recipe.batch_size;
        for (what, value) in [
            ("the batch size", batch_size as u64),
            ("the number of steps", self.recipe.steps()),
            ("--max-steps", self.max_steps.unwrap_or(1)),
        ] {
            if value == 0 {
                return Err(Error::Zero { what });
            }
        }
        let of = |samples: usize| Capacity::of(&self.model, samples, TOKENS_PER_CAPTION, 1);
        let bytes = |capacity: Capacity| self.device.value_bytes() * capacity.values(&self.model);
        let shared = |capacity: Capacity| self.device.value_bytes() * capacity.workspace(&self.model);
        // Values, gradients and two moments, and values rounded; features; logits of a block; and the pixels, of the batch
        // twice where they are in the same memory, otherwise of two micro-batches.
        let image = 3 * self.model.vision_cfg.image_size.pow(2);
        let parameters = Parameters::new(&self.model).len;
        let fixed = 32 * batch_size * self.model.embed_dim
            + match self.device {
                Device::Cpu | Device::Emulated(_) => 16 * parameters + 2 * image * batch_size + (64 << 20),
                _ => 18 * parameters + 3 * image * batch_size.min(self.device.largest_micro_batch()) + (512 << 20),
            };
        let room = self.memory.saturating_sub(fixed);
        let samples = match self.micro_batch {
            Some(0) => return Err(Error::Zero { what: "the micro-batch" }),
            Some(micro_batch) if micro_batch > batch_size => return Err(Error::MicroBatch { micro_batch, batch_size }),
            Some(micro_batch) => micro_batch,
            None => {
                let mut samples = batch_size.min(self.device.largest_micro_batch());
                while samples > 1 && bytes(of(samples)) + shared(of(samples)) > room {
                    samples = samples.div_ceil(2);
                }
                let least = fixed + bytes(of(samples)) + shared(of(samples));
                if least > self.memory {
                    return Err(Error::Memory { least, got: self.memory });
                }
                samples
            }
        };
        // One more than the samples ask for, where captions are long.
        let micro_batches = batch_size.div_ceil(samples) + 1;
        let room = room.saturating_sub(shared(of(samples)));
        let kept = (room / bytes(of(samples)).max(1)).clamp(1, micro_batches);
        Ok(Capacity { kept, ..of(samples) })
    }

    /// A trainer of these values on the plan's device.
    pub(crate) fn trainer(&self, values: &[f32], capacity: Capacity) -> Result<Trainer> {
        let backend = self.device.open(&self.model)?;
        Trainer::new(Model::new(backend, &self.model, values, capacity)?, self.recipe.clone())
    }

    pub(crate) fn about(&self, samples: &Samples) -> About {
        let mut digest = Sha256::new();
        let mut add = |i: usize| {
            digest.update(samples.uid(i).0);
            digest.update(samples.weight(i).to_le_bytes());
        };
        match self.shuffle {
            Shuffle::Full => (0..samples.len()).for_each(&mut add),
            Shuffle::Blocks(_) => samples.by_place().into_iter().for_each(|i| add(i as usize)),
        }
        About {
            recipe: self.recipe.clone(),
            model: self.model.clone(),
            seed: self.seed,
            shuffle: self.shuffle,
            samples: samples.len() as u64,
            samples_sha256: hex(&digest.finalize()),
            track_samples: self.track_samples,
            shrunk: self.shrunk,
        }
    }
}
