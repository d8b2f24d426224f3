use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A line of `eval_results.jsonl`, in the form of DataComp's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskResult {
    pub key: String,
    /// The name in tables.
    pub dataset: String,
    /// `acc1`, `acc5` where there are five classes, `mean_per_class_recall`, and `main_metric`, the value that counts.
    pub metrics: BTreeMap<String, f64>,
    /// Images evaluated, and left out because they could not be read.
    #[serde(default)]
    pub samples: u64,
    #[serde(default)]
    pub unreadable: u64,
    /// The name of the main metric.
    #[serde(default)]
    pub main_metric: String,
}

pub const RESULTS_FILE: &str = "eval_results.jsonl";

impl TaskResult {
    /// The main metric's value.
    pub fn score(&self) -> f64 {
        self.metrics.get("main_metric").copied().unwrap_or(f64::NAN)
    }

    pub(crate) fn line(&self) -> String {
        let mut line = serde_json::to_string(self).expect("results are plain data");
        line.push('\n');
        line
    }
}

/// The results in a run's folder; of a task evaluated twice the later.
pub fn read_results(folder: &Path) -> Result<Vec<TaskResult>> {
    let path = folder.join(RESULTS_FILE);
    if !path.exists() {
        return Err(Error::NoResults { path: folder.to_path_buf() });
    }
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    let mut results: Vec<TaskResult> = Vec::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        let result: TaskResult = serde_json::from_str(line).map_err(|source| Error::Json { path: path.clone(), source })?;
        results.retain(|earlier| earlier.key != result.key);
        results.push(result);
    }
    Ok(results)
}
