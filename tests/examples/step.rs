//! Times training steps on made-up samples: `--example step -- MODEL BATCH STEPS`, for `tests/peers/training.py`.

use std::time::Instant;

use train::backend::Cpu;
use train::model::{Capacity, Model};
use train::parameters::Parameters;
use train::step::Trainer;
use train::{ModelConfig, Recipe};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, batch, steps] = args.as_slice() else {
        eprintln!("usage: step MODEL BATCH STEPS");
        std::process::exit(2);
    };
    let (batch, steps): (usize, usize) = (batch.parse().unwrap(), steps.parse().unwrap());
    let config = ModelConfig::named(model).expect("a known model");
    let values = Parameters::new(&config).draw(1);
    let recipe = Recipe { batch_size: batch, ..Recipe::named("tiny").unwrap() };
    let mut trainer = Trainer::new(Model::new(Cpu::new(), &config, &values, Capacity::of(&config, batch, 40, 1)), recipe);
    let sample = 3 * config.vision_cfg.image_size.pow(2);
    let pixels: Vec<f32> = (0..batch * sample).map(|i| (i * 7919 % 1000) as f32 / 250.0 - 2.0).collect();
    // Captions of 8 to 31 tokens.
    let captions: Vec<Vec<u32>> = (0..batch)
        .map(|i| [vec![49406], (0..6 + i * 5 % 24).map(|j| (300 + i * 31 + j * 17) as u32).collect(), vec![49407]].concat())
        .collect();
    for _ in 0..steps {
        let start = Instant::now();
        let report = trainer.step(&captions, |range| pixels[range.start * sample..range.end * sample].to_vec());
        println!(
            "{:.4} s {:.2} samples/s loss {:.4}",
            start.elapsed().as_secs_f64(),
            batch as f64 / start.elapsed().as_secs_f64(),
            report.loss
        );
    }
}
