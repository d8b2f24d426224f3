use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use storage::{Missing, Receipt, Samples};

use crate::backend::{Backend, Cpu};
use crate::checkpoint::Checkpoint;
use crate::config::{ModelConfig, OpenClipConfig, PreprocessConfig};
use crate::loader::{self, Batch, Order};
use crate::model::Model;
use crate::parameters::{Parameters, part};
use crate::recipe::Recipe;
use crate::step::Trainer;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result, image};

/// What to train, but for the data.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The pool that the samples are of, for `run.json`.
    pub pool: String,
    pub recipe: Recipe,
    pub model: ModelConfig,
    pub seed: u64,
    /// Samples whose activations are held at once; by default as many as fit in some 3 GB.
    pub micro_batch: Option<usize>,
    /// Stop after so many steps of the schedule.
    pub max_steps: Option<u64>,
}

/// `RUN/run.json`: a finished run, and the way back to its query.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// The pool that it was trained on.
    pub pool: String,
    pub scale: String,
    pub on_recipe: bool,
    pub recipe: Recipe,
    pub seed: u64,
    pub steps: u64,
    pub samples_seen: u64,
    /// Entries of the subset that were drawn from, and those that could not be.
    pub samples: u64,
    pub not_in_pool: u64,
    pub no_image: u64,
    /// Draws replaced because the image could not be read.
    pub unreadable: u64,
    pub loss: f32,
    pub seconds: f64,
    pub samples_per_second: f64,
    pub receipt: Receipt,
}

/// The figures of a step, a line of `RUN/metrics.jsonl`.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct StepReport {
    /// Counted from 1.
    pub step: u64,
    pub steps: u64,
    pub loss: f32,
    pub learning_rate: f32,
    pub logit_scale: f32,
    pub samples_per_second: f64,
    /// The share of the step's time that it waited for its batch.
    pub data_wait: f64,
}

pub const RUN_FILE: &str = "run.json";

impl Run {
    /// Reads a finished run's `run.json`.
    pub fn read(folder: &Path) -> Result<Run> {
        let path = folder.join(RUN_FILE);
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        serde_json::from_str(&text).map_err(|source| Error::Config { path, source })
    }
}

impl Plan {
    fn check(&self) -> Result<usize> {
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
        match self.micro_batch {
            Some(0) => Err(Error::Zero { what: "the micro-batch" }),
            Some(micro_batch) if micro_batch > batch_size => Err(Error::MicroBatch { micro_batch, batch_size }),
            Some(micro_batch) => Ok(micro_batch),
            None => Ok(default_micro_batch(&self.model).min(batch_size)),
        }
    }
}

/// The largest power of two of samples whose activations take at most 3 GB: each block keeps 16 values a token and
/// channel.
fn default_micro_batch(model: &ModelConfig) -> usize {
    let (vision, text) = (&model.vision_cfg, &model.text_cfg);
    let values = 16 * (vision.tokens() * vision.width * vision.layers + text.context_length * text.width * text.layers);
    let samples = (3 << 30) / (4 * values);
    (samples / 2 + 1).next_power_of_two()
}

/// Trains on `samples` and writes `out`: the checkpoint, `metrics.jsonl`, `receipt.json` and `run.json`.
/// Call it inside a tokio runtime; it blocks. `stop` ends it after the current step, with an error.
pub fn train(
    samples: Samples,
    missing: Missing,
    receipt: Receipt,
    plan: &Plan,
    out: &Path,
    stop: &AtomicBool,
    on_step: &dyn Fn(StepReport),
) -> Result<Run> {
    let micro_batch = plan.check()?;
    if out.join(RUN_FILE).exists() {
        return Err(Error::RunExists { path: out.to_path_buf() });
    }
    std::fs::create_dir_all(out).map_err(Error::io(out))?;
    receipt.write(&out.join("receipt.json"))?;
    let metrics_path = out.join("metrics.jsonl");
    let mut metrics = BufWriter::new(File::create(&metrics_path).map_err(Error::io(&metrics_path))?);

    let values = Parameters::new(&plan.model).draw(plan.seed);
    let model = Model::new(Cpu::new(), &plan.model, &values, micro_batch);
    let mut trainer = Trainer::new(model, plan.recipe.clone());
    let all_steps = plan.recipe.steps();
    let steps = plan.max_steps.map_or(all_steps, |max| max.min(all_steps));
    let n_samples = samples.len() as u64;
    let order = Order { seed: plan.seed, batch_size: plan.recipe.batch_size, steps: 0..steps };
    let batches = loader::start(samples, &plan.model, Arc::new(Tokenizer::default()), order);

    let start = Instant::now();
    let (mut loss, mut unreadable) = (f32::NAN, 0);
    for step in 1..=steps {
        let step_start = Instant::now();
        let batch = batches.recv().map_err(|_| Error::WorkerPanicked)??;
        let waited = step_start.elapsed();
        let report = train_step(&mut trainer, &batch);
        if !report.loss.is_finite() {
            return Err(Error::Diverged { step, loss: report.loss });
        }
        (loss, unreadable) = (report.loss, unreadable + batch.unreadable as u64);
        let seconds = step_start.elapsed().as_secs_f64();
        let report = StepReport {
            step,
            steps,
            loss,
            learning_rate: report.learning_rate,
            logit_scale: report.logit_scale,
            samples_per_second: plan.recipe.batch_size as f64 / seconds,
            data_wait: waited.as_secs_f64() / seconds,
        };
        let line = serde_json::to_string(&report).expect("figures are plain data");
        writeln!(metrics, "{line}").and_then(|()| metrics.flush()).map_err(Error::io(&metrics_path))?;
        on_step(report);
        if stop.load(Ordering::Relaxed) && step < steps {
            return Err(Error::Interrupted { step, steps });
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let samples_seen = steps * plan.recipe.batch_size as u64;
    let config = OpenClipConfig { model_cfg: plan.model.clone(), preprocess_cfg: PreprocessConfig::default() };
    let values = trainer.model.backend.read(part(trainer.model.values, &(0..trainer.model.parameters.len)));
    Checkpoint { config, values }.write(out)?;
    let run = Run {
        pool: plan.pool.clone(),
        scale: plan.recipe.scale.clone(),
        on_recipe: plan.recipe.is_on_recipe() && steps == all_steps && ModelConfig::named(&plan.recipe.model).as_ref() == Some(&plan.model),
        recipe: plan.recipe.clone(),
        seed: plan.seed,
        steps,
        samples_seen,
        samples: n_samples,
        not_in_pool: missing.not_in_pool,
        no_image: missing.no_image,
        unreadable,
        loss,
        seconds,
        samples_per_second: samples_seen as f64 / seconds,
        receipt,
    };
    let path = out.join(RUN_FILE);
    let mut text = serde_json::to_string_pretty(&run).expect("a run is plain data");
    text.push('\n');
    std::fs::write(&path, text).map_err(Error::io(&path))?;
    Ok(run)
}

fn train_step(trainer: &mut Trainer<Cpu>, batch: &Batch) -> crate::step::Report {
    let size = trainer.model.config.vision_cfg.image_size;
    let sample = 3 * size * size;
    let preprocess = PreprocessConfig::default();
    trainer.step(&batch.captions, |range| {
        let mut pixels = vec![0.0; range.len() * sample];
        let bytes = &batch.pixels[range.start * sample..range.end * sample];
        pixels.par_chunks_mut(sample).zip(bytes.par_chunks(sample)).for_each(|(out, bytes)| image::normalize(out, bytes, &preprocess));
        pixels
    })
}
