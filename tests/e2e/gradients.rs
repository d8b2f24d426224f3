//! The trainer's loss and gradients against the plain form in float64 and its finite differences, and against themselves
//! under other micro-batches.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use train::backend::{Cpu, Pixels};
use train::model::{Capacity, Model};
use train::parameters::Parameters;
use train::step::Trainer;
use train::{ModelConfig, Recipe};

use crate::plain::Plain;
use crate::{Sandbox, Test};

pub const TESTS: &[Test] = &[
    ("gradients_are_the_slope_of_the_plain_loss", slope),
    ("gradients_of_other_configurations", configurations),
    ("micro_batches_change_nothing", micro_batches),
    ("clipped_gradients_make_the_same_step_smaller", clipping),
];

const BATCH: usize = 5;

fn config(model: &str, vision: &str, text: &str) -> ModelConfig {
    let json = format!(
        r#"{{"embed_dim": 12, {model}
            "vision_cfg": {{"image_size": 16, "layers": 2, "width": 24, "head_width": 8, {vision} "patch_size": 8}},
            "text_cfg": {{"context_length": 9, "width": 16, "heads": 2, {text} "layers": 2}}}}"#
    );
    serde_json::from_str(&json).unwrap()
}

fn plain_config() -> ModelConfig {
    config("", "", "")
}

/// Parameters whose biases and gains are not constant, so that a lost gradient shows.
fn values(parameters: &Parameters) -> Vec<f32> {
    let mut values = parameters.draw(3);
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    values.iter_mut().for_each(|v| *v += rng.random_range(-0.05..0.05));
    values
}

/// Pixels and captions of different lengths.
fn batch() -> (Vec<f32>, Vec<Vec<u32>>) {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let pixels = (0..BATCH * 3 * 16 * 16).map(|_| rng.random_range(-2.0..2.0)).collect();
    let caption = |i: usize| [vec![49406], (0..i + 1).map(|j| (j * 37 + i * 11) as u32 + 300).collect(), vec![49407]].concat();
    (pixels, (0..BATCH).map(caption).collect())
}

fn trainer(config: &ModelConfig, values: &[f32], capacity: Capacity, learning_rate: f32) -> Trainer {
    let recipe = Recipe { batch_size: BATCH, learning_rate, ..Recipe::named("tiny").unwrap() };
    Trainer::new(Model::new(Box::new(Cpu::new()), config, values, capacity).unwrap(), recipe).unwrap()
}

fn step(trainer: &mut Trainer) -> f32 {
    let (pixels, captions) = batch();
    let sample = pixels.len() / BATCH;
    trainer.step(&captions, |range| Pixels::Values(&pixels[range.start * sample..range.end * sample]), &|_| true).unwrap().unwrap().loss
}

/// The loss and its gradient at `values`.
fn loss(config: &ModelConfig, values: &[f32], capacity: Capacity) -> (f32, Vec<f32>) {
    let mut trainer = trainer(config, values, capacity, 0.0);
    let loss = step(&mut trainer);
    assert_eq!(values, trainer.values(0..trainer.model.parameters.len), "a learning rate of 0 moves nothing");
    (loss, trainer.gradients())
}

/// The loss is the plain form's, and along each parameter's gradient, and across it, it changes as its slope says.
fn check(config: &ModelConfig) {
    let parameters = Parameters::new(config);
    let values = values(&parameters);
    let (pixels, captions) = batch();
    let wide: Vec<f64> = values.iter().map(|&v| f64::from(v)).collect();
    let plain = |values: &[f64]| Plain::new(config, &parameters, values).loss(&pixels, &captions);
    let (got, gradient) = loss(config, &values, Capacity::of(config, BATCH, 9, 1));
    let expected = plain(&wide);
    assert!((f64::from(got) / expected - 1.0).abs() < 1e-6, "loss {got}, plain form {expected}");
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    for parameter in &parameters.all {
        let part: Vec<f64> = gradient[parameter.range.clone()].iter().map(|&g| f64::from(g)).collect();
        let norm = part.iter().map(|g| g * g).sum::<f64>().sqrt();
        assert!(norm > 1e-5, "{} has a gradient of norm {norm}", parameter.name);
        let across: Vec<f64> = part.iter().map(|_| rng.random_range(-1.0..1.0)).collect();
        let length = across.iter().map(|x| x * x).sum::<f64>().sqrt();
        let along = part.iter().map(|g| g / norm).collect::<Vec<_>>();
        let across = across.iter().map(|x| x / length).collect::<Vec<_>>();
        for direction in [along, across] {
            let at = |distance: f64| {
                let mut moved = wide.clone();
                moved[parameter.range.clone()].iter_mut().zip(&direction).for_each(|(value, d)| *value += distance * d);
                plain(&moved)
            };
            let slope = (at(1e-4) - at(-1e-4)) / 2e-4;
            let expected: f64 = direction.iter().zip(&part).map(|(d, g)| d * g).sum();
            assert!((slope - expected).abs() < 1e-4 * norm, "{}: slope {slope}, gradient {expected} of {norm}", parameter.name);
        }
    }
}

fn slope(_: &Sandbox) {
    check(&plain_config());
}

fn configurations(_: &Sandbox) {
    check(&config(r#""quick_gelu": true,"#, r#""mlp_ratio": 2.5, "norm_kwargs": {"eps": 1e-3},"#, r#""mlp_ratio": 3.0,"#));
    check(&config("", r#""no_ln_pre": true,"#, r#""no_causal_mask": true, "norm_kwargs": {"eps": 1e-2},"#));
    let one_layer = config("", "", "");
    let vision_cfg = train::VisionConfig { layers: 1, ..one_layer.vision_cfg };
    let text_cfg = train::TextConfig { layers: 1, ..one_layer.text_cfg };
    check(&ModelConfig { vision_cfg, text_cfg, ..one_layer });
}

fn micro_batches(_: &Sandbox) {
    let config = plain_config();
    let values = values(&Parameters::new(&config));
    let (whole_loss, whole) = loss(&config, &values, Capacity::of(&config, BATCH, 9, 1));
    let norm = whole.iter().map(|g| g * g).sum::<f32>().sqrt();
    // One to five samples, two at most by their tokens, all or some kept.
    for (samples, tokens, kept) in [(1, 9, 1), (1, 9, 3), (2, 18, 1), (2, 18, 2), (3, 27, 1), (3, 9, 1), (5, 12, 4), (2, 18, 9)] {
        let capacity = Capacity { samples, tokens, kept };
        let (part_loss, parts) = loss(&config, &values, capacity);
        let distance = whole.iter().zip(&parts).map(|(a, b)| (a - b) * (a - b)).sum::<f32>().sqrt();
        assert!((part_loss - whole_loss).abs() < 1e-5, "{capacity:?}: loss {part_loss}, whole {whole_loss}");
        assert!(distance < 1e-5 * norm, "{capacity:?}: gradients differ by {distance} of {norm}");
    }
}

fn clipping(_: &Sandbox) {
    let config = plain_config();
    let values = values(&Parameters::new(&config));
    let gradient = loss(&config, &values, Capacity::of(&config, BATCH, 9, 1)).1;
    let norm = gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
    let moments = |clip: Option<f32>| {
        let mut trainer = trainer(&config, &values, Capacity::of(&config, BATCH, 9, 1), 1e-3);
        trainer.recipe.gradient_clip = clip;
        step(&mut trainer);
        trainer.moment(0, 0..trainer.model.parameters.len).iter().map(|m| f64::from(*m).powi(2)).sum::<f64>().sqrt()
    };
    // After one step the first moment is a tenth of the gradient that AdamW saw.
    for (clip, expected) in [(None, norm), (Some(2.0 * norm as f32), norm), (Some(0.5 * norm as f32), 0.5 * norm)] {
        let got = moments(clip) * 10.0;
        assert!((got / expected - 1.0).abs() < 1e-4, "clipped to {clip:?}: norm {got}, expected {expected}");
    }
}
