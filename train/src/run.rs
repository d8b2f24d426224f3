mod together;

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use storage::{Missing, Receipt, Samples, Subset};

use crate::backend::Pixels;
use crate::checkpoint::{write_model, write_whole};
use crate::config::{OpenClipConfig, PreprocessConfig};
use crate::group::Group;
use crate::journal::{Lines, Unreadable};
use crate::loader::{self, Batch, Order, Shuffle};
use crate::parameters::Parameters;
use crate::plan::Plan;
use crate::recipe::Recipe;
use crate::saved::{self, Saved, Seen, State};
use crate::step::Trainer;
use crate::text::Tokenizer;
use crate::{Error, Result};

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
    /// What it was computed on.
    #[serde(default)]
    pub device: String,
    /// Images were read shrunk to this shorter side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shrunk: Option<usize>,
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
/// The subset that a run was trained on.
pub const SUBSET_FILE: &str = "subset.npy";
const SAMPLES_FILE: &str = "samples.parquet";

/// Besides those that stay, a checkpoint to go on from is written now and then, and replaced by the next.
const SAVE_EVERY: Duration = Duration::from_secs(600);

impl Run {
    /// Reads a finished run's `run.json`.
    pub fn read(folder: &Path) -> Result<Run> {
        let path = folder.join(RUN_FILE);
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        serde_json::from_str(&text).map_err(|source| Error::Config { path, source })
    }
}

/// What a training says of itself while it runs.
pub enum Event<'a> {
    /// It goes on from a checkpoint.
    Resumed {
        step: u64,
        from: &'a Path,
    },
    /// Of the step that is being computed, this share is done.
    Part {
        step: u64,
        share: f64,
    },
    Step(StepReport),
}

/// What a run is trained on, and where it comes from.
pub struct Data {
    pub subset: Subset,
    pub samples: Samples,
    pub missing: Missing,
    pub receipt: Receipt,
}

/// Trains on `data` and writes `out`: the checkpoint, those on the way, `metrics.jsonl`, `subset.npy`,
/// `receipt.json` and `run.json`. Call it inside a tokio runtime; it blocks. `stop` ends it soon, with a checkpoint and an
/// error; other errors leave a checkpoint too, but for a loss that is not finite. Of a group each process is called with the
/// same data and plan, and the first alone writes.
pub fn train(data: Data, plan: &Plan, group: Group, out: &Path, stop: &AtomicBool, on_event: &dyn Fn(Event)) -> Result<Run> {
    let Data { subset, samples, missing, receipt } = data;
    let mut training = Training::start(samples, &receipt, plan, group, out, on_event)?;
    if training.files.is_some() {
        subset.write(&out.join(SUBSET_FILE))?;
    }
    drop(subset);
    match training.steps(stop, on_event) {
        Ok(()) => training.finish(missing, receipt),
        Err(diverged @ Error::Diverged { .. }) => Err(diverged),
        // Steps that are done are not lost with the one that failed.
        Err(e) => {
            // Of a device that has failed nothing can be read, and nothing is written over.
            if training.trainer.model.backend.check().is_ok() {
                training.save()?;
            }
            let (step, steps) = (training.state.step, plan.steps());
            // While other processes were waited for.
            Err(if matches!(e, Error::Stopped { .. }) { Error::Interrupted { step, steps } } else { e })
        }
    }
}

/// A training under way.
struct Training<'a> {
    plan: &'a Plan,
    out: &'a Path,
    /// None for all but the first process of a group.
    files: Option<Files>,
    samples: Samples,
    trainer: Trainer,
    state: State,
    /// The step of the newest checkpoint.
    saved: u64,
    seen: Seen,
    /// Where samples are tracked, the first position of each one's uid.
    first: Vec<u32>,
    /// When this part of the run began, and the seconds of those before it.
    start: Instant,
    seconds_before: f64,
}

/// What is written as the run goes.
struct Files {
    /// Nobody else writes to the folder while it is held.
    _lock: File,
    metrics: Lines,
    unreadable: Unreadable,
}

impl<'a> Training<'a> {
    fn start(
        samples: Samples,
        receipt: &Receipt,
        plan: &'a Plan,
        mut group: Group,
        out: &'a Path,
        on_event: &dyn Fn(Event),
    ) -> Result<Training<'a>> {
        let (batch_size, world) = (plan.recipe.batch_size, group.world());
        if batch_size % world != 0 {
            return Err(Error::Share { batch_size, world });
        }
        if group.rank() > 0 {
            return Training::join(samples, plan, group, out);
        }
        match Training::lead(samples, receipt, plan, out, on_event) {
            Ok((mut training, moments)) => {
                training.trainer.group = group;
                training.invite(moments)?;
                training.trainer.meet()?;
                Ok(training)
            }
            Err(e) => {
                together::decline(&mut group, &e)?;
                Err(e)
            }
        }
    }

    /// The first process, or one alone: takes the folder, and what it holds.
    fn lead(
        samples: Samples,
        receipt: &Receipt,
        plan: &'a Plan,
        out: &'a Path,
        on_event: &dyn Fn(Event),
    ) -> Result<(Training<'a>, Option<[Vec<f32>; 2]>)> {
        let capacity = plan.capacity()?;
        if out.join("pool.lance").exists() {
            return Err(Error::RunInPool { path: out.to_path_buf() });
        }
        if out.join(RUN_FILE).exists() {
            return Err(Error::RunExists { path: out.to_path_buf() });
        }
        if plan.resume && !out.join("checkpoints").exists() {
            return Err(Error::NothingToResume { path: out.to_path_buf() });
        }
        std::fs::create_dir_all(out).map_err(Error::io(out))?;
        let lock_path = out.join(".lock");
        let lock = File::create(&lock_path).map_err(Error::io(&lock_path))?;
        lock.try_lock().map_err(|_| Error::RunBusy { path: out.to_path_buf() })?;
        let about = plan.about(&samples);
        let (state, values, moments, mut seen) = match (Saved::newest(out)?, plan.resume) {
            (Some(_), false) => return Err(Error::RunUnfinished { path: out.to_path_buf() }),
            (None, true) => return Err(Error::NothingToResume { path: out.to_path_buf() }),
            (None, false) => {
                let values = Parameters::new(&plan.model).draw(plan.seed);
                let state = State { step: 0, seconds: 0.0, unreadable: 0, loss: 0.0, about };
                (state, values, None, Seen::default())
            }
            (Some(saved), true) => {
                about.check(&saved.state.about, out)?;
                if saved.state.step >= plan.steps() {
                    let (path, done, steps) = (out.to_path_buf(), saved.state.step, plan.steps());
                    return Err(Error::NothingLeft { path, done, steps });
                }
                on_event(Event::Resumed { step: saved.state.step, from: &saved.folder });
                (saved.state, saved.values, Some(saved.moments), saved.seen)
            }
        };
        let mut first: Vec<u32> = Vec::new();
        if plan.track_samples {
            if seen.counts.is_empty() {
                seen = Seen { counts: vec![0; samples.len()], last_loss: vec![f32::NAN; samples.len()] };
            }
            for i in 0..samples.len() {
                let again = i > 0 && samples.uid(i) == samples.uid(i - 1);
                first.push(if again { first[i - 1] } else { i as u32 });
            }
        }
        write_receipt(receipt, plan, out)?;
        let metrics = Lines::open(out, "metrics.jsonl", state.step)?;
        let unreadable = Unreadable::open(out, state.step)?;
        let files = Some(Files { _lock: lock, metrics, unreadable });
        let mut trainer = plan.trainer(&values, capacity)?;
        if let Some([m, v]) = &moments {
            trainer.resume(state.step, [m, v]);
        }
        let (saved, seconds_before) = (state.step, state.seconds);
        let start = Instant::now();
        Ok((Training { plan, out, files, samples, trainer, state, saved, seen, first, start, seconds_before }, moments))
    }

    /// The steps that are left.
    fn steps(&mut self, stop: &AtomicBool, on_event: &dyn Fn(Event)) -> Result<()> {
        let plan = self.plan;
        let steps = plan.steps();
        let left = self.state.step..steps;
        let (part, parts) = (self.trainer.group.rank(), self.trainer.group.world());
        let (seed, batch_size, shuffle) = (plan.seed, plan.recipe.batch_size, plan.shuffle);
        let order = Order { seed, batch_size, shuffle, steps: left.clone(), part, parts };
        let batches = loader::start(self.samples.clone(), &plan.model, Arc::new(Tokenizer::default()), order);
        let mut last_save = Instant::now();
        for step in left.start + 1..=steps {
            let interrupted = Error::Interrupted { step: step - 1, steps };
            let step_start = Instant::now();
            let Some(batch) = self.share(next(&batches, stop))? else { return Err(interrupted) };
            let waited = step_start.elapsed().as_secs_f64();
            let flops = self.trainer.model.backend.flops();
            let goes_on = |share: f64| {
                on_event(Event::Part { step, share });
                !stop.load(Ordering::Relaxed)
            };
            let Some(report) = train_step(&mut self.trainer, &batch, &goes_on)? else { return Err(interrupted) };
            if !report.loss.is_finite() {
                return Err(Error::Diverged { step, loss: report.loss });
            }
            self.state.step = step;
            self.state.loss = report.loss;
            self.state.unreadable += batch.draws_replaced;
            self.seen.add(&batch.which, &self.first, &report.losses);
            if let Some(files) = &mut self.files {
                files.unreadable.add(step, &batch.unreadable)?;
            }
            let seconds = step_start.elapsed().as_secs_f64();
            let report = StepReport {
                step,
                steps,
                loss: report.loss,
                learning_rate: report.learning_rate,
                logit_scale: report.logit_scale,
                gradient_norm: report.gradient_norm,
                samples_per_second: plan.recipe.batch_size as f64 / seconds,
                data_wait: waited / seconds,
                flops_per_second: (self.trainer.model.backend.flops() - flops) / (seconds - waited),
            };
            if let Some(files) = &mut self.files {
                files.metrics.write(&report)?;
            }
            on_event(Event::Step(report));
            if step < steps && (plan.keeps(step) || last_save.elapsed() > SAVE_EVERY) {
                self.save()?;
                last_save = Instant::now();
            }
        }
        Ok(())
    }

    /// A checkpoint of where the run stands, if it has moved.
    fn save(&mut self) -> Result<()> {
        if self.state.step == self.saved || self.files.is_none() {
            return Ok(());
        }
        self.state.seconds = self.seconds();
        saved::save(self.out, &self.state, &config(self.plan), &self.trainer, &self.seen, |step| self.plan.keeps(step))?;
        self.saved = self.state.step;
        Ok(())
    }

    fn seconds(&self) -> f64 {
        self.seconds_before + self.start.elapsed().as_secs_f64()
    }

    fn finish(self, missing: Missing, receipt: Receipt) -> Result<Run> {
        let (plan, out, seconds) = (self.plan, self.out, self.seconds());
        let writes = self.files.is_some();
        if writes {
            write_model(out, &config(plan), |range| self.trainer.values(range))?;
            self.trainer.model.backend.check()?;
        }
        if plan.track_samples && writes {
            storage::write_seen(&out.join(SAMPLES_FILE), &self.samples, &self.seen.counts, &self.seen.last_loss)?;
        }
        let (steps, samples_seen) = (self.state.step, self.state.step * plan.recipe.batch_size as u64);
        let run = Run {
            pool: plan.pool.clone(),
            scale: plan.recipe.scale.clone(),
            on_recipe: plan.off_recipe().is_empty(),
            recipe: plan.recipe.clone(),
            seed: plan.seed,
            shuffle: plan.shuffle,
            device: self.trainer.model.backend.name(),
            shrunk: plan.shrunk,
            steps,
            samples_seen,
            samples: self.samples.len() as u64,
            not_in_pool: missing.not_in_pool,
            no_image: missing.no_image,
            unreadable: self.state.unreadable,
            loss: self.state.loss,
            seconds,
            samples_per_second: samples_seen as f64 / seconds,
            receipt,
        };
        if writes {
            write_json(&out.join(RUN_FILE), &run)?;
            // The run is whole: what it could have gone on from goes.
            saved::prune(out, |step| plan.keeps(step), |_| false);
        }
        Ok(run)
    }
}

/// The next batch, or none where the training is to stop.
fn next(batches: &Receiver<Result<Batch>>, stop: &AtomicBool) -> Result<Option<Batch>> {
    loop {
        match batches.recv_timeout(Duration::from_millis(50)) {
            Ok(batch) => return batch.map(Some),
            Err(RecvTimeoutError::Disconnected) => return Err(Error::WorkerPanicked),
            Err(RecvTimeoutError::Timeout) if stop.load(Ordering::Relaxed) => return Ok(None),
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// The subset's receipt, and what of the training is not the scale's recipe.
fn write_receipt(receipt: &Receipt, plan: &Plan, out: &Path) -> Result<()> {
    let mut value = serde_json::to_value(receipt).expect("a receipt is plain data");
    value["scale"] = plan.recipe.scale.clone().into();
    value["on_recipe"] = plan.off_recipe().is_empty().into();
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

pub(crate) fn train_step(trainer: &mut Trainer, batch: &Batch, goes_on: &dyn Fn(f64) -> bool) -> Result<Option<crate::step::Report>> {
    let size = trainer.model.config.vision_cfg.image_size;
    let sample = 3 * size * size;
    let preprocess = PreprocessConfig::default();
    let pixels = |range: Range<usize>| {
        let bytes = &batch.pixels[range.start * sample..range.end * sample];
        Pixels::Bytes { bytes, mean: preprocess.mean, std: preprocess.std }
    };
    trainer.step(&batch.captions, pixels, goes_on)
}

impl Seen {
    /// Nothing where samples are not tracked. All entries of a uid are counted at its first.
    fn add(&mut self, which: &[u32], first: &[u32], losses: &[f32]) {
        if self.counts.is_empty() {
            return;
        }
        for (&i, &loss) in which.iter().zip(losses) {
            let i = first[i as usize] as usize;
            self.counts[i] += 1;
            self.last_loss[i] = loss;
        }
    }
}
