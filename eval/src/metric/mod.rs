//! Metrics as pure functions of predictions and labels, under the names that DataComp's results give them.

mod association;
mod classification;
mod groups;
mod retrieval;

use std::collections::BTreeMap;

pub use association::{chosen, jaccard};
pub use classification::{accuracy_at, macro_f1, mean_per_class_recall, top_k};
pub use groups::{Grouping, group_accuracies};
pub use retrieval::first_hits;

/// Values by name; none where there was nothing to take the mean of.
pub type Metrics = BTreeMap<String, Option<f64>>;

/// Further metrics of a classification, under WILDS's names.
pub(crate) const WILDS_SCORES: [&str; 3] = ["acc_avg", "recall-macro_all", "F1-macro_all"];

/// The mean, none of nothing.
pub fn mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut n) = (0.0, 0u64);
    for value in values {
        (sum, n) = (sum + value, n + 1);
    }
    (n > 0).then(|| sum / n as f64)
}
