//! Everything about vectors: metrics and sets of vectors here; indexes and k-means build on them.
//! Parses no SQL.

mod error;
mod kernel;
mod metric;
mod set;

pub use error::{Error, Result};
pub use metric::{Metric, measure};
pub use set::VectorSet;
