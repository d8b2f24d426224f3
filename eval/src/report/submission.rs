use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use storage::Subset;
use train::{CONFIG_FILE, Device, Encoder, ModelConfig, Run, SCALES, SUBSET_FILE, WEIGHTS_FILE, hex};

use super::runs::RunResults;
use crate::results::RESULTS_FILE;
use crate::task::scored;
use crate::{Error, Result};

/// What DataComp's leaderboard asks of those who submit. Source: its `evaluate.py`.
#[derive(Debug, Clone)]
pub struct Submission {
    /// `filtering` or `byod`.
    pub track: String,
    pub method: String,
    pub author: String,
    pub email: String,
    pub writeup: Option<String>,
    /// The repository on Hugging Face that the files go to.
    pub hf_username: String,
    pub hf_repo: String,
    /// The uids trained on; by default `subset.npy` in the run's folder.
    pub samples: Option<PathBuf>,
    /// Puts the weights in, too.
    pub checkpoint: bool,
}

const RECEIPT_FILE: &str = "receipt.json";

/// Writes what `evaluate.py --submit` uploads into `out`, which must be empty or not there: `SCALE_scale/results.jsonl`,
/// `SCALE_scale/samples/*.npy`, the weights if asked for (in open_clip's own format, not as `checkpoint.pt`), and
/// `metadata.json`, the entry for the leaderboard's table but for its time. The receipt comes along. Refuses a run that is not
/// on its recipe or not wholly evaluated, with all reasons at once, and writes nothing then.
pub fn submit(run: &RunResults, submission: &Submission, out: &Path) -> Result<Vec<PathBuf>> {
    let refuse = |reasons: Vec<String>| Error::NotSubmittable { run: run.name.clone(), reasons };
    let Some(of) = &run.run else { return Err(refuse(vec!["it is no run of tarn train: its recipe is not known".into()])) };
    let samples = submission.samples.clone().unwrap_or_else(|| run.folder.join(SUBSET_FILE));
    let mut reasons = reasons(run, of, &samples);
    if !submission.email.contains('@') {
        reasons.push(format!("'{}' is no address of email", submission.email));
    }
    if !reasons.is_empty() {
        return Err(refuse(reasons));
    }
    if out.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Error::NotEmpty { path: out.to_path_buf() });
    }
    let scale = out.join(format!("{}_scale", of.scale));
    let samples_name = samples.file_name().unwrap_or_default();
    let mut copies = vec![
        (run.folder.join(RESULTS_FILE), scale.join("results.jsonl")),
        (samples.clone(), scale.join("samples").join(samples_name)),
        (run.folder.join(RECEIPT_FILE), scale.join(RECEIPT_FILE)),
    ];
    if submission.checkpoint {
        copies.extend([WEIGHTS_FILE, CONFIG_FILE].map(|name| (run.folder.join(name), scale.join(name))));
    }
    let mut written = Vec::new();
    for (from, to) in copies {
        let folder = to.parent().unwrap_or(out);
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        std::fs::copy(&from, &to).map_err(Error::io(&from))?;
        written.push(to);
    }
    let path = out.join("metadata.json");
    let text = serde_json::to_string_pretty(&metadata(run, of, submission)).expect("metadata are plain data");
    std::fs::write(&path, text + "\n").map_err(Error::io(&path))?;
    written.push(path);
    Ok(written)
}

/// Everything that stands against it.
fn reasons(run: &RunResults, of: &Run, samples: &Path) -> Vec<String> {
    let mut reasons = Vec::new();
    if run.step.is_some() {
        reasons.push("it is a checkpoint on the way, not the run".into());
    }
    if !SCALES[2..].contains(&of.scale.as_str()) {
        reasons.push(format!("the leaderboard has the scales {}, it is of {}", SCALES[2..].join(", "), of.scale));
    }
    let off = of.recipe.off_recipe();
    if !off.is_empty() || !of.on_recipe {
        let what = if off.is_empty() { "its training says so".to_string() } else { off.join(", ") };
        reasons.push(format!("it is off its recipe: {what}"));
    }
    if of.steps < of.recipe.steps() {
        reasons.push(format!("it was trained for {} of {} steps", of.steps, of.recipe.steps()));
    }
    let missing: Vec<&str> = scored().filter(|task| run.score(&task.key).is_none()).map(|task| task.name.as_str()).collect();
    if !missing.is_empty() {
        reasons.push(format!("it has {} of the 38 tasks, and lacks {}", 38 - missing.len(), missing.join(", ")));
    }
    for result in run.results.iter().filter(|result| result.listed() && (result.lacking() > 0 || result.unreadable > 0)) {
        let (seen, all) = (result.samples, result.samples + result.lacking());
        reasons.push(format!("{} was evaluated on {seen} of {all} samples, {} unreadable", result.dataset, result.unreadable));
    }
    let opened = Encoder::open(&run.folder, Device::Cpu).and_then(|encoder| Ok((hex(&encoder.digest()?), encoder)));
    match opened {
        Ok((digest, encoder)) => {
            if ModelConfig::named(&of.recipe.model).as_ref() != Some(encoder.config()) {
                reasons.push(format!("its weights are not of the model {}", of.recipe.model));
            }
            if run.results.iter().any(|result| result.listed() && result.checkpoint != digest) {
                reasons.push("results are of other weights than the run's".into());
            }
        }
        Err(e) => reasons.push(format!("its weights cannot be read: {e}")),
    }
    if !run.folder.join(RECEIPT_FILE).exists() {
        reasons.push(format!("{} is missing", run.folder.join(RECEIPT_FILE).display()));
    }
    match Subset::read(samples) {
        Ok(subset) if subset.digest() != of.receipt.subset_sha256 => {
            reasons.push(format!("{} is not the subset that it was trained on", samples.display()));
        }
        Ok(_) => {}
        Err(e) => reasons.push(format!("the subset that it was trained on cannot be read: {e}")),
    }
    reasons
}

fn metadata(run: &RunResults, of: &Run, submission: &Submission) -> Value {
    let mut metadata = json!({
        "scale": of.scale,
        "model": of.recipe.model,
        "dataset_size": of.receipt.subset_size.to_string(),
        "checkpoint": submission.checkpoint.then_some(WEIGHTS_FILE),
        "batch_size": of.recipe.batch_size,
        // As it is written, not as float32 rounds it.
        "learning_rate": of.recipe.learning_rate.to_string().parse::<f64>().ok(),
        "method_name": submission.method,
        "author": submission.author,
        "email": submission.email,
        "hf_username": submission.hf_username,
        "hf_repo_name": submission.hf_repo,
        "track": submission.track,
        "writeup": submission.writeup,
    });
    for result in run.results.iter().filter(|result| result.listed()) {
        if let Some(score) = result.score() {
            metadata[&result.dataset] = score.into();
        }
    }
    metadata
}
