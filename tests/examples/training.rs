//! Times parts of the trainer for `tests/peers/training.py`, a line of samples a second for each round:
//!
//!     step MODEL BATCH STEPS [DEVICE]    training steps on made-up samples; on other devices than the CPU as `tarn doctor`
//!     encode MODEL BATCH ROUNDS          images, then texts, without gradients
//!     load POOL SIZE BATCH ROUNDS        batches of all samples of a pool, at SIZE pixels
//!
//! and, for `tests/peers/agreement.py`, `tokens`: captions as a JSON array in, token ids as JSON lines out.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::sync::Arc;
use std::time::Instant;

use storage::{Pool, Samples, Subset};
use train::backend::{Cpu, Pixels};
use train::loader::{Order, Shuffle};
use train::model::{Capacity, Model};
use train::parameters::Parameters;
use train::step::Trainer;
use train::{Checkpoint, Device, Encoder, ModelConfig, OpenClipConfig, Precision, PreprocessConfig, Recipe, Tokenizer};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<usize>().expect("a number");
    match args[..] {
        ["step", model, batch, steps] => step(model, number(batch), number(steps)),
        ["step", model, batch, steps, device] => step_on(device, model, number(batch), number(steps)),
        ["encode", model, batch, rounds] => encode(model, number(batch), number(rounds)),
        ["load", pool, size, batch, rounds] => load(pool, number(size), number(batch), number(rounds)),
        ["tokens"] => tokens(),
        _ => eprintln!("see the head of tests/examples/training.rs"),
    }
}

fn timed(samples: usize, work: impl FnOnce()) {
    let start = Instant::now();
    work();
    println!("{:.2}", samples as f64 / start.elapsed().as_secs_f64());
}

fn config(model: &str) -> ModelConfig {
    ModelConfig::named(model).expect("a known model")
}

fn pixels(config: &ModelConfig, batch: usize) -> Vec<f32> {
    (0..batch * 3 * config.vision_cfg.image_size.pow(2)).map(|i| (i * 7919 % 1000) as f32 / 250.0 - 2.0).collect()
}

/// Words of captions of 8 to 31 tokens, with their start and end.
fn words(i: usize) -> usize {
    6 + i * 5 % 24
}

fn step(model: &str, batch: usize, steps: usize) {
    let config = config(model);
    let values = Parameters::new(&config).draw(1);
    let recipe = Recipe { batch_size: batch, ..Recipe::named("tiny").expect("a known scale") };
    let model = Model::new(Box::new(Cpu::new()), &config, &values, Capacity::of(&config, batch, 40, 1)).expect("memory");
    let mut trainer = Trainer::new(model, recipe).expect("memory");
    let pixels = pixels(&config, batch);
    let sample = pixels.len() / batch;
    let caption = |i: usize| [vec![49406], (0..words(i)).map(|j| (300 + i * 31 + j * 17) as u32).collect(), vec![49407]].concat();
    let captions: Vec<Vec<u32>> = (0..batch).map(caption).collect();
    for _ in 0..steps {
        timed(batch, || {
            trainer.step(&captions, |range| Pixels::Values(&pixels[range.start * sample..range.end * sample]), &|_| true).unwrap();
        });
    }
}

fn step_on(device: &str, model: &str, batch: usize, steps: usize) {
    let (device, _) = Device::choose(device, Precision::Bf16).unwrap_or_else(|e| panic!("{e}"));
    let t = train::selftest::throughput(device, model, batch, steps).unwrap_or_else(|e| panic!("{e}"));
    println!("{:.2}", batch as f64 / t.step.as_secs_f64());
}

fn encode(model: &str, batch: usize, rounds: usize) {
    let model_cfg = config(model);
    let values = Parameters::new(&model_cfg).draw(1);
    let pixels = pixels(&model_cfg, batch);
    let config = OpenClipConfig { model_cfg, preprocess_cfg: PreprocessConfig::default() };
    let mut encoder = Encoder::new(Checkpoint { config, values }, Device::Cpu).expect("memory");
    let texts: Vec<String> = (0..batch).map(|i| "word ".repeat(words(i))).collect();
    for _ in 0..rounds {
        timed(batch, || drop(encoder.encode_pixels(Pixels::Values(&pixels), batch).expect("features")));
        timed(batch, || drop(encoder.encode_texts(&texts).expect("features")));
    }
}

fn load(pool: &str, size: usize, batch_size: usize, rounds: usize) {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let samples = runtime.block_on(async {
        let pool = Pool::open(pool).await.expect("a pool");
        let all = Samples::of_pool(&pool).await.expect("samples");
        let subset = Subset::new((0..all.len()).filter(|&i| all.has_image(i)).map(|i| all.uid(i)).collect(), None);
        Samples::of_subset(&pool, &subset).await.expect("samples with images").0
    });
    let mut model = config("tiny");
    model.vision_cfg.image_size = size;
    let order = Order { seed: 1, batch_size, shuffle: Shuffle::Full, steps: 0..rounds as u64, part: 0, parts: 1 };
    let _inside = runtime.enter();
    let batches = train::loader::start(samples, &model, Arc::new(Tokenizer::default()), order);
    for _ in 0..rounds {
        timed(batch_size, || drop(batches.recv().expect("a batch").expect("a batch that can be read")));
    }
}

fn tokens() {
    let captions: Vec<String> = serde_json::from_reader(std::io::stdin()).expect("a JSON array of texts");
    let tokenizer = Tokenizer::default();
    captions.iter().for_each(|caption| println!("{:?}", tokenizer.encode(caption, 77)));
}
