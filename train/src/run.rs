use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use storage::{Missing, Receipt, Samples, Uid};

use crate::backend::{Backend, Cpu};
use crate::checkpoint::{Checkpoint, write_whole};
use crate::config::{ModelConfig, OpenClipConfig, PreprocessConfig};
use crate::loader::{self, Batch, Order, Shuffle};
use crate::model::{Capacity, Model};
use crate::parameters::Parameters;
use crate::recipe::Recipe;
use crate::saved::{About, Saved, Seen, State};
use crate::step::Trainer;
use crate::text::Tokenizer;
use crate::{Error, Result, image};

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

/// `RUN/run.json`: a finished run, and the way back to its query.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// The pool that it was trained on.
    pub pool: String,
    pub scale: String,
    pub on_recipe: bool,
    pub recipe: Recipe,
    pub seed: u64,
    pub shuffle: Shuffle,
    pub steps: u64,
    pub samples_seen: u64,
    /// Entries of the subset that were drawn from, and those that could not be.
    pub samples: u64,
    pub not_in_pool: u64,
    pub no_image: u64,
    /// Draws replaced because the image could not be read; `unreadable.jsonl` lists the samples.
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
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradient_norm: Option<f32>,
    pub samples_per_second: f64,
    /// The share of the step's time that it waited for its batch.
    pub data_wait: f64,
    /// Floating-point operations of matrix products a second, while the step computed.
    pub flops_per_second: f64,
}

pub const RUN_FILE: &str = "run.json";
const UNREADABLE_FILE: &str = "unreadable.jsonl";
const SAMPLES_FILE: &str = "samples.parquet";

/// Checkpoints of a whole schedule, the last being the run's own.
const CHECKPOINTS: u64 = 5;
/// Tokens of a caption that room is made for: longer ones make smaller micro-batches.
const TOKENS_PER_CAPTION: usize = 40;
/// Larger micro-batches are no faster on a CPU.
const LARGEST_MICRO_BATCH: usize = 64;

impl Run {
    /// Reads a finished run's `run.json`.
    pub fn read(folder: &Path) -> Result<Run> {
        let path = folder.join(RUN_FILE);
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        serde_json::from_str(&text).map_err(|source| Error::Config { path, source })
    }
}

impl Plan {
    /// Nothing of the recipe is changed, and all of it is done.
    pub fn is_on_recipe(&self) -> bool {
        let whole = self.max_steps.is_none_or(|max| max >= self.recipe.steps());
        self.recipe.is_on_recipe() && whole && ModelConfig::named(&self.recipe.model).as_ref() == Some(&self.model)
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
        // Values, gradients and two moments; then the batch's pixels, twice.
        let fixed = 16 * Parameters::new(&self.model).len + 6 * batch_size * self.model.vision_cfg.image_size.pow(2);
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
                samples
            }
        };
        // One more than the samples ask for, where captions are long.
        let micro_batches = batch_size.div_ceil(samples) + 1;
        let kept = (room / of(samples).bytes(&self.model).max(1)).clamp(1, micro_batches);
        Ok(Capacity { kept, ..of(samples) })
    }

    fn about(&self, receipt: &Receipt, samples: u64) -> About {
        About {
            recipe: self.recipe.clone(),
            model: self.model.clone(),
            seed: self.seed,
            shuffle: self.shuffle,
            subset_sha256: receipt.subset_sha256.clone(),
            samples,
            track_samples: self.track_samples,
        }
    }
}

/// Trains on `samples` and writes `out`: the checkpoint, those on the way, `metrics.jsonl`, `receipt.json` and
/// `run.json`. Call it inside a tokio runtime; it blocks. `stop` ends it after the current step with a checkpoint and
/// an error.
pub fn train(
    samples: Samples,
    missing: Missing,
    receipt: Receipt,
    plan: &Plan,
    out: &Path,
    stop: &AtomicBool,
    on_step: &dyn Fn(StepReport),
) -> Result<Run> {
    let capacity = plan.capacity()?;
    if out.join(RUN_FILE).exists() {
        return Err(Error::RunExists { path: out.to_path_buf() });
    }
    std::fs::create_dir_all(out).map_err(Error::io(out))?;
    let saved = Saved::newest(out)?;
    let about = plan.about(&receipt, samples.len() as u64);
    let mut saved = match (saved, plan.resume) {
        (Some(_), false) => return Err(Error::RunUnfinished { path: out.to_path_buf() }),
        (None, true) => return Err(Error::NothingToResume { path: out.to_path_buf() }),
        (None, false) => first(plan, about),
        (Some(saved), true) => {
            about.check(&saved.state.about, out)?;
            saved
        }
    };
    if saved.seen.counts.is_empty() && plan.track_samples {
        saved.seen = Seen { counts: vec![0; samples.len()], last_loss: vec![f32::NAN; samples.len()] };
    }
    write_receipt(&receipt, plan, out)?;
    let mut metrics = Lines::open(out, "metrics.jsonl", saved.state.step)?;
    let mut unreadable = Unreadable::open(out, saved.state.step)?;

    let model = Model::new(Cpu::new(), &plan.model, &saved.checkpoint.values, capacity);
    let mut trainer = Trainer::new(model, plan.recipe.clone());
    trainer.resume(saved.state.step, [&saved.moments[0], &saved.moments[1]]);
    // They are in the backend now.
    saved.checkpoint.values = Vec::new();
    saved.moments = [Vec::new(), Vec::new()];

    let (steps, all_steps) = (plan.steps(), plan.recipe.steps());
    let remaining = saved.state.step..steps;
    let order = Order { seed: plan.seed, batch_size: plan.recipe.batch_size, shuffle: plan.shuffle, steps: remaining.clone() };
    let batches = loader::start(samples.clone(), &plan.model, Arc::new(Tokenizer::default()), order);

    let (start, seconds_before) = (Instant::now(), saved.state.seconds);
    let mut loss = f32::NAN;
    for step in remaining.start + 1..=steps {
        let step_start = Instant::now();
        let batch = batches.recv().map_err(|_| Error::WorkerPanicked)??;
        let waited = step_start.elapsed().as_secs_f64();
        let flops = trainer.model.backend.flops();
        let report = train_step(&mut trainer, &batch);
        if !report.loss.is_finite() {
            return Err(Error::Diverged { step, loss: report.loss });
        }
        loss = report.loss;
        saved.state.step = step;
        saved.state.unreadable += batch.unreadable.len() as u64;
        saved.seen.add(&batch.which, &report.losses);
        unreadable.add(step, &batch.unreadable)?;
        let seconds = step_start.elapsed().as_secs_f64();
        let report = StepReport {
            step,
            steps,
            loss,
            learning_rate: report.learning_rate,
            logit_scale: report.logit_scale,
            gradient_norm: report.gradient_norm,
            samples_per_second: plan.recipe.batch_size as f64 / seconds,
            data_wait: waited / seconds,
            flops_per_second: (trainer.model.backend.flops() - flops) / (seconds - waited),
        };
        metrics.write(&report)?;
        on_step(report);
        let stopped = stop.load(Ordering::Relaxed) && step < steps;
        let due = (1..CHECKPOINTS).any(|k| step == (k * all_steps).div_ceil(CHECKPOINTS)) && step < steps;
        if stopped || due {
            saved.state.seconds = seconds_before + start.elapsed().as_secs_f64();
            save(&mut saved, &trainer, out)?;
        }
        if stopped {
            return Err(Error::Interrupted { step, steps });
        }
    }
    let seconds = seconds_before + start.elapsed().as_secs_f64();
    let samples_seen = steps * plan.recipe.batch_size as u64;
    Checkpoint { config: config(plan), values: trainer.values() }.write(out)?;
    if plan.track_samples {
        storage::write_seen(&out.join(SAMPLES_FILE), &samples, &saved.seen.counts, &saved.seen.last_loss)?;
    }
    let run = Run {
        pool: plan.pool.clone(),
        scale: plan.recipe.scale.clone(),
        on_recipe: plan.is_on_recipe(),
        recipe: plan.recipe.clone(),
        seed: plan.seed,
        shuffle: plan.shuffle,
        steps,
        samples_seen,
        samples: samples.len() as u64,
        not_in_pool: missing.not_in_pool,
        no_image: missing.no_image,
        unreadable: saved.state.unreadable,
        loss,
        seconds,
        samples_per_second: samples_seen as f64 / seconds,
        receipt,
    };
    write_json(&out.join(RUN_FILE), &run)?;
    Ok(run)
}

/// The subset's receipt, and what of the training is not the scale's recipe.
fn write_receipt(receipt: &Receipt, plan: &Plan, out: &Path) -> Result<()> {
    let mut value = serde_json::to_value(receipt).expect("a receipt is plain data");
    value["scale"] = plan.recipe.scale.clone().into();
    value["on_recipe"] = plan.is_on_recipe().into();
    write_json(&out.join("receipt.json"), &value)
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).expect("plain data");
    text.push('\n');
    write_whole(path, |file| file.write_all(text.as_bytes()))
}

fn config(plan: &Plan) -> OpenClipConfig {
    OpenClipConfig { model_cfg: plan.model.clone(), preprocess_cfg: PreprocessConfig::default() }
}

/// A run before its first step.
fn first(plan: &Plan, about: About) -> Saved {
    let values = Parameters::new(&plan.model).draw(plan.seed);
    Saved {
        state: State { step: 0, seconds: 0.0, unreadable: 0, about },
        moments: [vec![0.0; values.len()], vec![0.0; values.len()]],
        checkpoint: Checkpoint { config: config(plan), values },
        seen: Seen::default(),
    }
}

fn save(saved: &mut Saved, trainer: &Trainer<Cpu>, out: &Path) -> Result<()> {
    saved.checkpoint.values = trainer.values();
    saved.moments = trainer.moments();
    saved.write(out)?;
    saved.checkpoint.values = Vec::new();
    saved.moments = [Vec::new(), Vec::new()];
    Ok(())
}

pub(crate) fn train_step(trainer: &mut Trainer<Cpu>, batch: &Batch) -> crate::step::Report {
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

impl Seen {
    /// Nothing where samples are not tracked.
    fn add(&mut self, which: &[u32], losses: &[f32]) {
        if self.counts.is_empty() {
            return;
        }
        for (&i, &loss) in which.iter().zip(losses) {
            self.counts[i as usize] += 1;
            self.last_loss[i as usize] = loss;
        }
    }
}

/// A file of a line of JSON each, cut back to the step that a run goes on from.
struct Lines {
    path: std::path::PathBuf,
    file: BufWriter<File>,
}

impl Lines {
    fn open(out: &Path, name: &str, step: u64) -> Result<Lines> {
        let path = out.join(name);
        let kept: String = match std::fs::read_to_string(&path) {
            Ok(text) if step > 0 => {
                let of = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["step"].as_u64();
                text.split_inclusive('\n').filter(|line| of(line).is_some_and(|at| at <= step)).collect()
            }
            _ => String::new(),
        };
        write_whole(&path, |file| file.write_all(kept.as_bytes()))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(Error::io(&path))?;
        Ok(Lines { path, file: BufWriter::new(file) })
    }

    fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let line = serde_json::to_string(line).expect("figures are plain data");
        writeln!(self.file, "{line}").and_then(|()| self.file.flush()).map_err(Error::io(&self.path))
    }
}

/// `RUN/unreadable.jsonl`: samples whose draws were replaced, each once. Made with the first of them.
struct Unreadable {
    out: std::path::PathBuf,
    lines: Option<Lines>,
    known: HashSet<Uid>,
}

impl Unreadable {
    fn open(out: &Path, step: u64) -> Result<Unreadable> {
        let path = out.join(UNREADABLE_FILE);
        let mut unreadable = Unreadable { out: out.to_path_buf(), lines: None, known: HashSet::new() };
        if step > 0 && path.exists() {
            unreadable.lines = Some(Lines::open(out, UNREADABLE_FILE, step)?);
            let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
            let of = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["uid"].as_str()?.parse().ok();
            unreadable.known = text.lines().filter_map(of).collect();
        } else {
            let _ = std::fs::remove_file(&path);
        }
        Ok(unreadable)
    }

    fn add(&mut self, step: u64, unreadable: &[(Uid, String)]) -> Result<()> {
        for (uid, reason) in unreadable {
            if !self.known.insert(*uid) {
                continue;
            }
            if self.lines.is_none() {
                self.lines = Some(Lines::open(&self.out, UNREADABLE_FILE, 0)?);
            }
            let line = serde_json::json!({ "step": step, "uid": uid.to_string(), "reason": reason });
            self.lines.as_mut().expect("opened above").write(&line)?;
        }
        Ok(())
    }
}
