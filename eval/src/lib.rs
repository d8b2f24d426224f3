//! Zero-shot evaluation of a checkpoint: tasks and their data, the classifier, metrics and reports.
//! Reads no training data.

mod aggregate;
mod association;
mod classification;
mod classifier;
mod error;
mod evaluate;
mod faces;
mod images;
pub mod metric;
pub mod report;
mod results;
mod retrieval;
mod set;
mod source;
mod stream;
mod task;

pub use aggregate::Aggregate;
pub use association::metrics as association_metrics;
pub use error::{Error, Result};
pub(crate) use evaluate::Evaluated;
pub use evaluate::{Event, Options, evaluate};
pub use faces::metrics as face_metrics;
pub use images::{EvalImage, for_each_image};
pub use results::{OTHERS_FILE, RESULTS_FILE, TaskResult, read_results};
pub use retrieval::recalls;
pub use set::{EvalSet, Found, find};
pub use stream::Unreadable;
pub use task::{Kind, Task, of_key, scored, tasks};
