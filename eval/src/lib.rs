//! Zero-shot evaluation of a checkpoint: tasks and their data, the classifier, metrics and reports.
//! Reads no training data.

mod classifier;
mod data;
mod error;
mod evaluate;
pub mod metric;
mod report;
mod results;
mod task;

pub use data::{EvalSet, find};
pub use error::{Error, Result};
pub use evaluate::evaluate;
pub use report::{Table, report};
pub use results::{RESULTS_FILE, TaskResult, read_results};
pub use task::{Task, tasks};
