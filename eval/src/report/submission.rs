use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use storage::Subset;
use train::{CONFIG_FILE, Encoder, Run, SCALES, SUBSET_FILE, WEIGHTS_FILE};

use super::runs::RunResults;
use crate::results::RESULTS_FILE;
use crate::set::hex;
use crate::task::scored;
use crate::{Aggregate, Error, Result};

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

/// Writes what `evaluate.py --submit` would upload into `out`, which must be empty or not there: `SCALE_scale/results.jsonl`,
/// `SCALE_scale/samples/*.npy`, the weights if asked for, and `metadata.json`, the entry for the leaderboard's table. Refuses
/// a run that is not on its recipe or not wholly evaluated, with all reasons at once.
pub fn submit(run: &RunResults, submission: &Submission, out: &Path) -> Result<Vec<PathBuf>> {
    let refuse = |reasons: Vec<String>| Error::NotSubmittable { run: run.name.clone(), reasons };
    let Some(of) = &run.run else { return Err(refuse(vec!["it is no run of tarn train: its recipe is not known".into()])) };
    let samples = submission.samples.clone().unwrap_or_else(|| run.folder.join(SUBSET_FILE));
    let reasons = reasons(run, of, &samples);
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
        (run.folder.join("receipt.json"), scale.join("receipt.json")),
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
    if !SCALES[2..].contains(&of.scale.as_str()) {
        reasons.push(format!("the leaderboard has the scales {}, it is of {}", SCALES[2..].join(", "), of.scale));
    }
    let off = of.recipe.off_recipe();
    if !off.is_empty() {
        reasons.push(format!("it is off its recipe: {}", off.join(", ")));
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
    match Encoder::open(&run.folder).map(|encoder| hex(&encoder.digest())) {
        Ok(digest) if run.results.iter().any(|result| result.listed() && result.checkpoint != digest) => {
            reasons.push("results are of other weights than the run's".into());
        }
        Ok(_) => {}
        Err(e) => reasons.push(format!("its weights cannot be read: {e}")),
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
        "checkpoint": WEIGHTS_FILE,
        "batch_size": of.recipe.batch_size,
        "learning_rate": of.recipe.learning_rate,
        "method_name": submission.method,
        "author": submission.author,
        "email": submission.email,
        "hf_username": submission.hf_username,
        "hf_repo_name": submission.hf_repo,
        "track": submission.track,
        "writeup": submission.writeup,
        "average": Aggregate::Average.of(|task| run.score(&task.key)),
    });
    for result in run.results.iter().filter(|result| result.listed()) {
        if let Some(score) = result.score() {
            metadata[&result.dataset] = score.into();
        }
    }
    metadata
}
