use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::metric::Metrics;
use crate::task::of_key;
use crate::{Error, Result};

/// The results of DataComp's tasks, as its `evaluate.py` writes them and `aggregate_scores.py` reads them.
pub const RESULTS_FILE: &str = "eval_results.jsonl";
/// Those of other tasks: DataComp's scripts would count them.
pub const OTHERS_FILE: &str = "eval_results_other.jsonl";

/// A line of a results file: DataComp's three fields, then ours.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    pub key: String,
    /// The name in tables.
    pub dataset: String,
    /// All metrics by their names, and `main_metric`, the value that counts. A metric of nothing is null.
    pub metrics: Metrics,
    /// The name of the main metric.
    #[serde(default)]
    pub metric: Option<String>,
    /// The score of chance.
    #[serde(default)]
    pub random: Option<f64>,
    /// Samples evaluated, and left out because an image could not be read.
    #[serde(default)]
    pub samples: u64,
    #[serde(default)]
    pub unreadable: u64,
    /// Digests of the weights and of the data: equal ones need no second evaluation.
    #[serde(default)]
    pub checkpoint: String,
    #[serde(default)]
    pub data: String,
    #[serde(default)]
    pub seconds: f64,
}

impl TaskResult {
    /// The main metric's value, if the task has one.
    pub fn score(&self) -> Option<f64> {
        self.metrics.get("main_metric").copied().flatten()
    }

    /// Whether it is of DataComp's list.
    pub fn listed(&self) -> bool {
        of_key(&self.key).is_some()
    }

    /// Samples that DataComp's set has and this evaluation did not see.
    pub fn lacking(&self) -> u64 {
        of_key(&self.key).and_then(|task| task.size).map_or(0, |size| size.saturating_sub(self.samples))
    }

    fn line(&self) -> String {
        let mut line = serde_json::to_string(self).expect("results are plain data");
        line.push('\n');
        line
    }
}

/// The results in a folder, of DataComp's tasks and of others; of a task evaluated twice the later.
pub fn read_results(folder: &Path) -> Result<Vec<TaskResult>> {
    let files = [RESULTS_FILE, OTHERS_FILE].map(|name| folder.join(name));
    if !files.iter().any(|path| path.exists()) {
        return Err(Error::NoResults { path: folder.to_path_buf() });
    }
    let mut results: Vec<TaskResult> = Vec::new();
    for path in files.iter().filter(|path| path.exists()) {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        for (i, line) in text.split_inclusive('\n').enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let result: TaskResult = match serde_json::from_str(&without_nan(line)) {
                Ok(result) => result,
                // Killed while it was written.
                Err(_) if !line.ends_with('\n') => continue,
                Err(source) => return Err(Error::Json { path: path.clone(), line: i + 1, source }),
            };
            results.retain(|earlier| earlier.key != result.key);
            results.push(result);
        }
    }
    Ok(results)
}

/// Where the predictions of a task lie.
pub(crate) fn predictions(folder: &Path, key: &str) -> PathBuf {
    folder.join("predictions").join(format!("{}.csv", key.replace('/', "-")))
}

/// Python writes NaN for the accuracy of an empty group, which JSON does not have.
fn without_nan(line: &str) -> String {
    line.replace(": NaN", ": null")
}

/// A folder's results while an evaluation adds to them. Nobody else does, until it is dropped.
pub(crate) struct Journal {
    folder: PathBuf,
    pub results: Vec<TaskResult>,
    _lock: File,
}

impl Journal {
    /// Results of other weights are an error, or thrown away where they may be overwritten.
    pub fn open(folder: &Path, checkpoint: &str, overwrite: bool) -> Result<Journal> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let lock_path = folder.join(".lock");
        let lock = File::create(&lock_path).map_err(Error::io(&lock_path))?;
        lock.try_lock().map_err(|_| Error::Busy { path: folder.to_path_buf() })?;
        let mut results = match read_results(folder) {
            Err(Error::NoResults { .. }) => Vec::new(),
            results => results?,
        };
        let others = results.iter().filter(|result| result.checkpoint != checkpoint).count();
        if others > 0 && !overwrite {
            return Err(Error::OtherCheckpoint { path: folder.to_path_buf(), results: others });
        }
        for dropped in results.iter().filter(|result| result.checkpoint != checkpoint) {
            let _ = std::fs::remove_file(predictions(folder, &dropped.key));
        }
        results.retain(|result| result.checkpoint == checkpoint);
        let journal = Journal { folder: folder.to_path_buf(), results, _lock: lock };
        // Without a line that was torn, or that a later one replaced.
        journal.write_all(RESULTS_FILE)?;
        journal.write_all(OTHERS_FILE)?;
        Ok(journal)
    }

    /// Adds a line, or replaces that of the same task.
    pub fn add(&mut self, result: TaskResult) -> Result<()> {
        let file = file_of(&result);
        if let Some(earlier) = self.results.iter_mut().find(|earlier| earlier.key == result.key) {
            *earlier = result;
            return self.write_all(file);
        }
        let path = self.folder.join(file);
        let append = |line: String| {
            let mut file = File::options().create(true).append(true).open(&path)?;
            file.write_all(line.as_bytes())?;
            file.sync_all()
        };
        append(result.line()).map_err(Error::io(&path))?;
        self.results.push(result);
        Ok(())
    }

    /// Replaces a file whole, so that a stop loses nothing.
    fn write_all(&self, file: &str) -> Result<()> {
        let path = self.folder.join(file);
        let text: String = self.results.iter().filter(|result| file_of(result) == file).map(TaskResult::line).collect();
        if text.is_empty() && !path.exists() {
            return Ok(());
        }
        if std::fs::read_to_string(&path).is_ok_and(|there| there == text) {
            return Ok(());
        }
        let part = path.with_extension("part");
        let write = || {
            let mut file = File::create(&part)?;
            file.write_all(text.as_bytes())?;
            storage::put_in_place(&part, &path)
        };
        write().map_err(Error::io(&path))
    }
}

fn file_of(result: &TaskResult) -> &'static str {
    if result.listed() { RESULTS_FILE } else { OTHERS_FILE }
}
