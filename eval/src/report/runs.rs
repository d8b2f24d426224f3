use std::path::{Path, PathBuf};

use serde::Deserialize;
use train::{RUN_FILE, Run};

use crate::results::{OTHERS_FILE, RESULTS_FILE, TaskResult, read_results};
use crate::{Error, Result};

/// A score of a run, of a task or over several.
pub(super) type ScoreOf<'a> = Box<dyn Fn(&RunResults) -> Option<f64> + 'a>;

/// What a run's folder, or any folder with results, says.
#[derive(Debug)]
pub struct RunResults {
    /// The folder's name, with that of the run for its checkpoints on the way.
    pub name: String,
    pub folder: PathBuf,
    /// That of the run, for its checkpoints on the way too.
    pub run_folder: PathBuf,
    /// None for checkpoints that were not trained here.
    pub run: Option<Run>,
    /// That of a checkpoint on the way.
    pub step: Option<u64>,
    pub samples_seen: u64,
    pub results: Vec<TaskResult>,
    /// Samples seen and the loss, of every step.
    pub losses: Vec<(f64, f64)>,
    /// What its subset is like: names and values.
    pub facts: Vec<(String, String)>,
}

impl RunResults {
    pub fn result(&self, key: &str) -> Option<&TaskResult> {
        self.results.iter().find(|result| result.key == key)
    }

    pub fn score(&self, key: &str) -> Option<f64> {
        self.result(key)?.score()
    }

    pub fn has_listed(&self) -> bool {
        self.results.iter().any(TaskResult::listed)
    }
}

/// Reads the folders given, each a run or a folder of runs, and gives notes on what is left out.
pub(super) fn read(folders: &[PathBuf]) -> Result<(Vec<RunResults>, Vec<String>)> {
    let (mut runs, mut notes): (Vec<RunResults>, Vec<String>) = (Vec::new(), Vec::new());
    for folder in folders {
        if !folder.is_dir() {
            return Err(Error::NoFolder { path: folder.clone() });
        }
        let inside = match has_results(folder) {
            true => vec![folder.clone()],
            false => with_results(folder)?,
        };
        let has_subfolders = inside.first().is_some_and(|first| first != folder);
        if inside.is_empty() && folders.len() > 1 {
            notes.push(format!("{} holds no results and is left out", name_of(folder)));
        } else if inside.is_empty() {
            return Err(Error::NoResults { path: folder.clone() });
        }
        for folder in inside.into_iter().filter(|folder| runs.iter().all(|run| run.folder != *folder)).collect::<Vec<_>>() {
            match read_run(&folder) {
                Ok(run) => runs.push(run),
                Err(e @ Error::Json { .. }) if runs.is_empty() && folders.len() == 1 && !has_subfolders => return Err(e),
                Err(e @ Error::Json { .. }) => notes.push(format!("{} is left out: {e}", name_of(&folder))),
                Err(e) => return Err(e),
            }
        }
    }
    if runs.is_empty() {
        return Err(Error::NoResults { path: folders.first().cloned().unwrap_or_default() });
    }
    // Names that two runs have are told apart by the folder above.
    let names: Vec<String> = runs.iter().map(|run| run.name.clone()).collect();
    for run in &mut runs {
        if names.iter().filter(|name| **name == run.name).count() > 1 {
            let above = run.folder.parent().map(name_of).unwrap_or_default();
            run.name = format!("{above}/{}", run.name);
        }
    }
    Ok((runs, notes))
}

fn has_results(folder: &Path) -> bool {
    folder.join(RESULTS_FILE).exists() || folder.join(OTHERS_FILE).exists()
}

fn with_results(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(Error::io(folder))?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir() && has_results(path)).collect();
    found.sort();
    Ok(found)
}

fn name_of(folder: &Path) -> String {
    let absolute = std::fs::canonicalize(folder).unwrap_or_else(|_| folder.to_path_buf());
    absolute.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned()
}

fn read_run(folder: &Path) -> Result<RunResults> {
    let absolute = std::fs::canonicalize(folder).map_err(Error::io(folder))?;
    // RUN/checkpoints/step_00000123
    let of = absolute.parent().filter(|above| name_of(above) == "checkpoints").and_then(Path::parent);
    let (run_folder, name) = match of {
        Some(run) => (run, format!("{}/{}", name_of(run), name_of(folder))),
        None => (absolute.as_path(), name_of(folder)),
    };
    let run = run_folder.join(RUN_FILE).exists().then(|| Run::read(run_folder)).transpose()?;
    let batch_size = run.as_ref().map_or(1, |run| run.recipe.batch_size);
    let losses = read_losses(&run_folder.join("metrics.jsonl"), batch_size);
    let step: Option<u64> = of.and_then(|_| name_of(folder).rsplit('_').next()?.parse().ok());
    let samples_seen = step.map_or(run.as_ref().map_or(0, |run| run.samples_seen), |step| step * batch_size as u64);
    let run_folder = run_folder.to_path_buf();
    Ok(RunResults {
        step,
        samples_seen,
        name,
        folder: folder.to_path_buf(),
        run_folder,
        run,
        results: read_results(folder)?,
        losses,
        facts: Vec::new(),
    })
}

#[derive(Deserialize)]
struct Step {
    step: u64,
    loss: f64,
}

/// A curve is no reason to have no report: lines that cannot be read are left out.
fn read_losses(path: &Path, batch_size: usize) -> Vec<(f64, f64)> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let steps = text.lines().filter_map(|line| serde_json::from_str::<Step>(line).ok());
    steps.map(|step| (step.step as f64 * batch_size as f64, step.loss)).collect()
}
