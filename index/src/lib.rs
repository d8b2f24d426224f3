//! Everything about vectors: metrics here; indexes, named vector sets and k-means build on them.
//! Parses no SQL.

mod error;
mod metric;

pub use error::{Error, Result};
pub use metric::cosine_similarity;
