use std::path::PathBuf;

use train::Run;

use crate::Result;
use crate::results::{RESULTS_FILE, TaskResult, read_results};

/// A table with one line a run: its filter, how much it was drawn from, and its scores.
#[derive(Debug, Clone, PartialEq)]
pub struct Table {
    pub header: Vec<String>,
    pub rows: Vec<Vec<String>>,
    /// What the reader must know: runs that are off their recipe, tasks that some runs lack.
    pub notes: Vec<String>,
}

/// Reads runs' folders and lays them side by side, in the order given. `average` is the plain mean of the tasks shown,
/// given only to runs that have them all.
pub fn report(folders: &[PathBuf]) -> Result<Table> {
    let mut runs: Vec<(String, Option<Run>, Vec<TaskResult>)> = Vec::new();
    let mut notes = Vec::new();
    for folder in folders {
        let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy().into_owned();
        if folders.len() > 1 && !folder.join(RESULTS_FILE).exists() {
            notes.push(format!("{name} holds no results and is left out"));
            continue;
        }
        runs.push((name, folder.join(train::RUN_FILE).exists().then(|| Run::read(folder)).transpose()?, read_results(folder)?));
    }
    let mut tasks: Vec<(String, String)> = Vec::new();
    for result in runs.iter().flat_map(|(_, _, results)| results) {
        if !tasks.iter().any(|(key, _)| *key == result.key) {
            tasks.push((result.key.clone(), result.dataset.clone()));
        }
    }
    let average = format!("average of {}", tasks.len());
    let fixed = ["run", "filter", "subset size", "samples seen"].map(str::to_string);
    let header = fixed.into_iter().chain(tasks.iter().map(|(_, name)| name.clone())).chain([average]).collect();
    let rows = runs.iter().map(|(name, run, results)| {
        let score = |key: &str| results.iter().find(|r| r.key == key).map(TaskResult::score);
        let scores: Vec<Option<f64>> = tasks.iter().map(|(key, _)| score(key)).collect();
        let cell = |score: Option<f64>| score.map_or("-".to_string(), |s| format!("{s:.3}"));
        let all: Option<Vec<f64>> = scores.iter().copied().collect();
        if all.is_none() {
            notes.push(format!("{name} lacks tasks that others have, and has no average"));
        }
        if run.as_ref().is_some_and(|run| !run.on_recipe) {
            notes.push(format!("{name} is off the recipe of its scale"));
        }
        let [filter, size, seen] = match run {
            Some(run) => [run.receipt.filter.clone(), run.receipt.subset_size.to_string(), run.samples_seen.to_string()],
            None => ["-", "-", "-"].map(str::to_string),
        };
        let mean = all.map(|all| all.iter().sum::<f64>() / all.len() as f64);
        [name.clone(), filter, size, seen].into_iter().chain(scores.into_iter().map(cell)).chain([cell(mean)]).collect()
    });
    let rows = rows.collect();
    Ok(Table { header, rows, notes })
}
