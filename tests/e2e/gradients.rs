//! The trainer's gradients against finite differences, and against themselves under other micro-batches.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use train::backend::{Backend, Cpu};
use train::model::Model;
use train::parameters::Parameters;
use train::step::Trainer;
use train::{ModelConfig, Recipe, TextConfig, VisionConfig};

use crate::{Sandbox, Test};

pub const TESTS: &[Test] = &[("gradients_are_the_slope_of_the_loss", slope), ("micro_batches_change_nothing", micro_batches)];

const BATCH: usize = 5;

fn config() -> ModelConfig {
    ModelConfig {
        embed_dim: 12,
        vision_cfg: VisionConfig { image_size: 16, layers: 2, width: 24, head_width: 8, patch_size: 8 },
        text_cfg: TextConfig { context_length: 9, vocab_size: 49408, width: 16, heads: 2, layers: 2 },
    }
}

/// Pixels and captions of different lengths.
fn batch() -> (Vec<f32>, Vec<Vec<u32>>) {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let pixels = (0..BATCH * 3 * 16 * 16).map(|_| rng.random_range(-2.0..2.0)).collect();
    let caption = |i: usize| [vec![49406], (0..i + 1).map(|j| (j * 37 + i * 11) as u32 + 300).collect(), vec![49407]].concat();
    (pixels, (0..BATCH).map(caption).collect())
}

/// The loss and its gradient at `values`.
fn loss(values: &[f32], micro_batch: usize) -> (f32, Vec<f32>) {
    let recipe = Recipe { batch_size: BATCH, learning_rate: 0.0, ..Recipe::named("tiny").unwrap() };
    let mut trainer = Trainer::new(Model::new(Cpu::new(), &config(), values, micro_batch), recipe);
    let (pixels, captions) = batch();
    let sample = pixels.len() / BATCH;
    let report = trainer.step(&captions, |range| pixels[range.start * sample..range.end * sample].to_vec());
    let after = trainer.model.backend.read(trainer.model.values);
    assert_eq!(values, after, "a learning rate of 0 moves nothing");
    (report.loss, trainer.gradients())
}

fn slope(_: &Sandbox) {
    let parameters = Parameters::new(&config());
    let mut values = parameters.draw(3);
    // Biases and gains that are not constant, so that a lost gradient shows.
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    values.iter_mut().for_each(|v| *v += rng.random_range(-0.05..0.05));
    let (_, gradient) = loss(&values, BATCH);
    for parameter in &parameters.all {
        // Along the gradient itself the slope is its norm: the largest there is, and well above rounding.
        let part = &gradient[parameter.range.clone()];
        let norm = part.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        assert!(norm > 1e-4, "{} has a gradient of norm {norm}", parameter.name);
        let step = 0.01 / norm.max(0.5);
        let at = |direction: f64| {
            let mut moved = values.clone();
            for (value, g) in moved[parameter.range.clone()].iter_mut().zip(part) {
                *value += (direction * step * f64::from(*g) / norm) as f32;
            }
            f64::from(loss(&moved, BATCH).0)
        };
        let slope = (at(1.0) - at(-1.0)) / (2.0 * step);
        // The loss is float32, some 1e-7 of its size of about 2, over twice the step.
        let tolerance = 0.02 * norm + 3e-7 / step;
        assert!((slope - norm).abs() < tolerance, "{}: slope {slope}, gradient {norm}", parameter.name);
    }
}

fn micro_batches(_: &Sandbox) {
    let values = Parameters::new(&config()).draw(3);
    let (whole_loss, whole) = loss(&values, BATCH);
    let norm = whole.iter().map(|g| g * g).sum::<f32>().sqrt();
    for micro_batch in [1, 2, 3] {
        let (part_loss, parts) = loss(&values, micro_batch);
        let distance = whole.iter().zip(&parts).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
        assert!((part_loss - whole_loss).abs() < 1e-5, "micro-batch {micro_batch}: loss {part_loss}, whole {whole_loss}");
        assert!(distance < 1e-5 * norm, "micro-batch {micro_batch}: gradients differ by {distance} of {norm}");
    }
}
