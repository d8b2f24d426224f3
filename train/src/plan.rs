use sha2::{Digest, Sha256};
use storage::Samples;

use crate::config::ModelConfig;
use crate::loader::Shuffle;
use crate::model::Capacity;
use crate::parameters::Parameters;
use crate::parts::hex;
use crate::recipe::Recipe;
use crate::saved::About;
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
    /// Go on with what the folder holds.
    pub resume: bool,
    /// Write `samples.parquet`: how often each sample was seen, and its last loss.
    pub track_samples: bool,
}

/// Checkpoints of a whole schedule, the last being the run's own.
const CHECKPOINTS: u64 = 5;
/// Tokens of a caption that room is made for: longer ones make smaller micro-batches.
const TOKENS_PER_CAPTION: usize = 40;
/// Larger micro-batches are no faster on a CPU.
const LARGEST_MICRO_BATCH: usize = 64;

impl Plan {
    /// What is changed of the scale's recipe.
    pub fn off_recipe(&self) -> Vec<&'static str> {
        let mut off = self.recipe.off_recipe();
        if ModelConfig::named(&self.recipe.model).as_ref() != Some(&self.model) && !off.contains(&"model") {
            off.push("model");
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
        // Values, gradients and two moments; the batch's pixels, twice; its features, and the logits of a block.
        let pixels = 6 * batch_size * self.model.vision_cfg.image_size.pow(2);
        let fixed = 16 * Parameters::new(&self.model).len + pixels + 32 * batch_size * self.model.embed_dim + (64 << 20);
        let room = self.memory.saturating_sub(fixed);
        let samples = match self.micro_batch {
            Some(0) => return Err(Error::Zero { what: "the micro-batch" }),
            Some(micro_batch) if micro_batch > batch_size => return Err(Error::MicroBatch { micro_batch, batch_size }),
            Some(micro_batch) => micro_batch,
            None => {
                let mut samples = batch_size.min(LARGEST_MICRO_BATCH);
                while samples > 1 && of(samples).bytes(&self.model) > room {
                    samples = samples.div_ceil(2);
                }
                let least = fixed + of(samples).bytes(&self.model);
                if least > self.memory {
                    return Err(Error::Memory { least, got: self.memory });
                }
                samples
            }
        };
        // One more than the samples ask for, where captions are long.
        let micro_batches = batch_size.div_ceil(samples) + 1;
        let kept = (room / of(samples).bytes(&self.model).max(1)).clamp(1, micro_batches);
        Ok(Capacity { kept, ..of(samples) })
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
        }
    }
}
