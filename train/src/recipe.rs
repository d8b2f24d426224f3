//! DataComp's fixed recipes: everything about training but the data.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The hyper-parameters of a scale. Source: DataComp's `scale_configs.py`; `tiny` is tarn's own, for two cores.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    pub scale: String,
    pub model: String,
    pub batch_size: usize,
    pub learning_rate: f32,
    pub warmup: u64,
    pub samples_seen: u64,
    pub beta1: f32,
    pub beta2: f32,
    pub eps: f32,
    pub weight_decay: f32,
    /// Gradients are scaled down to this norm, all together; DataComp's recipes do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient_clip: Option<f32>,
}

pub const SCALES: [&str; 6] = ["tiny", "debug", "small", "medium", "large", "xlarge"];

impl Recipe {
    pub fn named(scale: &str) -> Result<Recipe> {
        let (model, batch_size, learning_rate, warmup, samples_seen, beta2) = match scale {
            "tiny" => ("tiny", 128, 2e-3, 20, 19_200, 0.98),
            "debug" => ("ViT-B-32", 1024, 1e-4, 500, 128_000, 0.98),
            "small" => ("ViT-B-32", 4096, 5e-4, 500, 12_800_000, 0.98),
            "medium" => ("ViT-B-32", 4096, 5e-4, 500, 128_000_000, 0.98),
            "large" => ("ViT-B-16", 8192, 5e-4, 500, 1_280_000_000, 0.98),
            "xlarge" => ("ViT-L-14", 90112, 1e-3, 10_000, 12_800_000_000, 0.95),
            _ => return Err(Error::UnknownScale { name: scale.to_string(), known: SCALES.to_vec() }),
        };
        Ok(Recipe {
            scale: scale.to_string(),
            model: model.to_string(),
            batch_size,
            learning_rate,
            warmup,
            samples_seen,
            beta1: 0.9,
            beta2,
            eps: 1e-6,
            weight_decay: 0.2,
            gradient_clip: None,
        })
    }

    /// What was changed of the scale that it names.
    pub fn off_recipe(&self) -> Vec<&'static str> {
        let Ok(named) = Recipe::named(&self.scale) else { return vec!["scale"] };
        let Recipe { model, batch_size, learning_rate, warmup, samples_seen, beta1, beta2, eps, weight_decay, gradient_clip, .. } = self;
        let changed = [
            ("model", *model != named.model),
            ("batch size", *batch_size != named.batch_size),
            ("learning rate", *learning_rate != named.learning_rate),
            ("warm-up", *warmup != named.warmup),
            ("samples seen", *samples_seen != named.samples_seen),
            ("betas", (*beta1, *beta2) != (named.beta1, named.beta2)),
            ("eps", *eps != named.eps),
            ("weight decay", *weight_decay != named.weight_decay),
            ("gradient clipping", *gradient_clip != named.gradient_clip),
        ];
        changed.into_iter().filter(|(_, changed)| *changed).map(|(what, _)| what).collect()
    }

    /// Whole batches in the samples seen; 0 for a batch size of 0.
    pub fn steps(&self) -> u64 {
        self.samples_seen.checked_div(self.batch_size as u64).unwrap_or(0)
    }

    /// The learning rate of step `step`, counted from 0: linear warm-up, then a cosine to 0 at step `steps`.
    /// Source: open_clip's `scheduler.py`.
    pub fn learning_rate_at(&self, step: u64) -> f32 {
        if step < self.warmup {
            return self.learning_rate * (step + 1) as f32 / self.warmup as f32;
        }
        let progress = (step - self.warmup) as f64 / self.steps().saturating_sub(self.warmup).max(1) as f64;
        (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())) as f32 * self.learning_rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedule_warms_up_and_falls_to_zero() {
        let recipe = Recipe { warmup: 4, samples_seen: 10 * 128, ..Recipe::named("tiny").unwrap() };
        assert_eq!(recipe.steps(), 10);
        assert_eq!(recipe.learning_rate_at(0), recipe.learning_rate / 4.0);
        assert_eq!(recipe.learning_rate_at(3), recipe.learning_rate);
        assert_eq!(recipe.learning_rate_at(4), recipe.learning_rate);
        assert!((recipe.learning_rate_at(7) - recipe.learning_rate * 0.5).abs() < 1e-9);
        assert!(recipe.learning_rate_at(9) < 0.1 * recipe.learning_rate);
        assert_eq!(recipe.off_recipe(), ["warm-up", "samples seen"]);
        assert!(Recipe::named("xlarge").unwrap().off_recipe().is_empty());
    }
}
