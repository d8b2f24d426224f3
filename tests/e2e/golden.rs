//! Numbers of open_clip 3.3 (PyTorch, CPU, float32) for the model in `clip-tiny`; its README says how they were made.
//! `TARN_TEST_MODEL` may name another folder with the same files for another model.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;
use train::backend::{Cpu, Pixels};
use train::model::{Capacity, Model, Tokens};
use train::step::Trainer;
use train::{Checkpoint, Device, Encoder, Recipe, Tokenizer};

use crate::{DataTest, Sandbox};

pub const TESTS: &[DataTest] = &[
    ("golden_features", features),
    ("golden_pixels", pixels),
    ("golden_features_from_files", features_from_files),
    ("golden_tokens", tokens),
    ("golden_training", training),
];

/// The model's folder.
fn model(data: &Path) -> PathBuf {
    std::env::var_os("TARN_TEST_MODEL").map_or_else(|| data.join("clip-tiny"), PathBuf::from)
}

/// An array of `reference.npz`, flattened.
fn reference<T: npyz::Deserialize>(data: &Path, name: &str) -> Vec<T> {
    let file = std::fs::File::open(model(data).join("reference.npz")).unwrap();
    let mut zip = zip::ZipArchive::new(file).unwrap();
    let mut bytes = Vec::new();
    zip.by_name(&format!("{name}.npy")).unwrap().read_to_end(&mut bytes).unwrap();
    npyz::NpyFile::new(&bytes[..]).unwrap().into_vec().unwrap()
}

fn json(data: &Path, name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(model(data).join(name)).unwrap()).unwrap()
}

fn captions(data: &Path) -> Vec<String> {
    json(data, "reference.json")["captions"].as_array().unwrap().iter().map(|c| c.as_str().unwrap().to_string()).collect()
}

/// The ids of caption `i` up to its end token.
fn caption_ids(tokens: &[i32], i: usize) -> Vec<u32> {
    let row = &tokens[i * 77..(i + 1) * 77];
    let end = row.iter().position(|&id| id == 49407).unwrap();
    row[..=end].iter().map(|&id| id as u32).collect()
}

/// The distance of two arrays relative to the size of the second.
fn relative(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let distance = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>().sqrt();
    distance / b.iter().map(|b| b * b).sum::<f32>().sqrt()
}

fn features(_: &Sandbox, data: &Path) {
    let mut encoder = Encoder::open(&model(data), Device::Cpu).unwrap();
    let pixels = reference::<f32>(data, "pixels");
    let n = pixels.len() / (3 * encoder.config().vision_cfg.image_size.pow(2));
    let images = encoder.encode_pixels(Pixels::Values(&pixels), n).unwrap();
    let distance = relative(&images, &reference(data, "image_features"));
    assert!(distance < 1e-4, "image features differ by {distance}");

    let checkpoint = Checkpoint::read(&model(data)).unwrap();
    let config = &checkpoint.config.model_cfg;
    let ids = reference::<i32>(data, "tokens");
    let n = ids.len() / 77;
    let mut model = Model::new(Box::new(Cpu::new()), config, &checkpoint.values, Capacity::of(config, n, 77, 0)).unwrap();
    let captions: Vec<Vec<u32>> = (0..n).map(|i| caption_ids(&ids, i)).collect();
    let tokens = Tokens::new(&captions, &config.text_cfg);
    let out = model.backend.alloc(n * config.embed_dim);
    model.encode_texts(0, out, &tokens);
    let distance = relative(&model.backend.read(out), &reference(data, "text_features"));
    assert!(distance < 1e-4, "text features differ by {distance}");
    let scale = reference::<f32>(data, "logit_scale")[0];
    assert!((encoder.logit_scale() - scale).abs() < 1e-3 * scale, "logit scale {} and {scale}", encoder.logit_scale());
}

/// Decoding, resizing and cropping give Pillow's pixels, every one.
fn pixels(_: &Sandbox, data: &Path) {
    let encoder = Encoder::open(&model(data), Device::Cpu).unwrap();
    let expected = reference::<f32>(data, "pixels");
    let files = json(data, "reference.json")["images"].clone();
    let sample = 3 * encoder.config().vision_cfg.image_size.pow(2);
    let preprocess = Checkpoint::read(&model(data)).unwrap().config.preprocess_cfg;
    for (file, expected) in files.as_array().unwrap().iter().zip(expected.chunks_exact(sample)) {
        let file = file.as_str().unwrap();
        let pixels = encoder.preprocess(&std::fs::read(model(data).join("images").join(file)).unwrap()).unwrap();
        let steps = (0..sample).map(|i| {
            let (channel, at) = (i / (sample / 3), i % (sample / 3));
            let expected = (expected[i] * preprocess.std[channel] + preprocess.mean[channel]) * 255.0;
            (f32::from(pixels[at * 3 + channel]) - expected).abs()
        });
        let largest = steps.fold(0f32, f32::max);
        assert!(largest < 0.01, "{file}: {largest} of 255");
    }
}

fn features_from_files(_: &Sandbox, data: &Path) {
    let mut encoder = Encoder::open(&model(data), Device::Cpu).unwrap();
    let files = json(data, "reference.json")["images"].clone();
    let pixels: Vec<Vec<u8>> = files
        .as_array()
        .unwrap()
        .iter()
        .map(|file| encoder.preprocess(&std::fs::read(model(data).join("images").join(file.as_str().unwrap())).unwrap()).unwrap())
        .collect();
    let distance = relative(&encoder.encode_images(&pixels).unwrap(), &reference(data, "image_features"));
    assert!(distance < 1e-4, "image features from files differ by {distance}");
}

fn tokens(_: &Sandbox, data: &Path) {
    let (tokenizer, ids) = (Tokenizer::default(), reference::<i32>(data, "tokens"));
    let captions = captions(data);
    assert_eq!(captions.len() * 77, ids.len());
    for (i, caption) in captions.iter().enumerate() {
        assert_eq!(tokenizer.encode(caption, 77), caption_ids(&ids, i), "caption {i}: {caption:?}");
    }
}

/// Ten AdamW steps on one batch.
fn training(_: &Sandbox, data: &Path) {
    let expected = json(data, "training_reference.json");
    let number = |value: &Value| value.as_f64().unwrap();
    let n = expected["caption_indices"].as_array().unwrap().len();
    let checkpoint = Checkpoint::read(&model(data)).unwrap();
    let recipe = Recipe {
        batch_size: n,
        learning_rate: number(&expected["base_lr"]) as f32,
        warmup: expected["warmup"].as_u64().unwrap(),
        samples_seen: n as u64 * expected["total_steps"].as_u64().unwrap(),
        beta1: number(&expected["betas"][0]) as f32,
        beta2: number(&expected["betas"][1]) as f32,
        eps: number(&expected["eps"]) as f32,
        weight_decay: number(&expected["weight_decay"]) as f32,
        ..Recipe::named("tiny").unwrap()
    };
    let config = &checkpoint.config.model_cfg;
    let model = Model::new(Box::new(Cpu::new()), config, &checkpoint.values, Capacity::of(config, n, 77, 1)).unwrap();
    let mut trainer = Trainer::new(model, recipe).unwrap();
    let (pixels, ids) = (reference::<f32>(data, "pixels"), reference::<i32>(data, "tokens"));
    let captions: Vec<Vec<u32>> =
        expected["caption_indices"].as_array().unwrap().iter().map(|i| caption_ids(&ids, i.as_u64().unwrap() as usize)).collect();
    let sample = pixels.len() / n;
    for (step, expected_step) in expected["steps"].as_array().unwrap().iter().enumerate() {
        let report =
            trainer.step(&captions, |range| Pixels::Values(&pixels[range.start * sample..range.end * sample]), &|_| true).unwrap().unwrap();
        let close = |what: &str, got: f64, key: &str, tolerance: f64| {
            let expected = number(&expected_step[key]);
            assert!((got / expected - 1.0).abs() < tolerance, "step {step}: {what} {got}, expected {expected}");
        };
        close("learning rate", f64::from(report.learning_rate), "lr", 1e-5);
        close("loss", f64::from(report.loss), "loss", 1e-4);
        close("logit scale", f64::from(report.logit_scale), "logit_scale", 1e-5);
        let values = trainer.model.backend.read(trainer.model.values);
        let norm = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        close("norm of all parameters", norm, "parameter_norm", 1e-6);
        if step == 0 {
            gradient_norms(&trainer, &expected["gradient_norms_step_0"]);
        }
    }
}

fn gradient_norms(trainer: &Trainer, expected: &Value) {
    let gradients = trainer.gradients();
    let parameters = &trainer.model.parameters;
    assert_eq!(expected.as_object().unwrap().len(), parameters.all.len());
    for parameter in &parameters.all {
        let norm = gradients[parameter.range.clone()].iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        let expected = expected[&parameter.name].as_f64().unwrap();
        assert!((norm / expected - 1.0).abs() < 1e-3, "{}: gradient norm {norm}, expected {expected}", parameter.name);
    }
}
