//! The pool on disk: schemas, uids, ingest, subsets and the bytes of images.
//! Knows nothing of SQL or of models.
//!
//! Public functions return boxed futures: a crate that awaits an `async fn` compiles it, and all of Lance below it,
//! once more.

mod blur;
mod computed;
mod durable;
mod error;
mod eval_images;
mod exclusion;
pub mod export;
pub mod hashes;
mod image_columns;
pub mod images;
pub mod ingest;
mod ledger;
mod lock;
mod pool;
mod receipt;
pub mod records;
mod rejects;
mod rows;
mod samples;
pub mod schema;
mod seen;
mod subset;
mod uid;
mod vector_column;
pub mod vectors;
pub mod verify;
mod versions;
mod writer;

pub use computed::{Compute, Computed, is_computed};
pub use durable::put_in_place;
pub use error::{Error, Result, closest, without_places};
pub use eval_images::{EvalHash, eval_images_schema};
pub use exclusion::check_exclusion;
pub use pool::{Pool, Table};
pub use receipt::Receipt;
pub use rejects::Reject;
pub use rows::{Bits, Rows};
pub use samples::{Missing, Sample, Samples};
pub use seen::write_seen;
pub use subset::{Subset, SubsetWriter, Written};
pub use uid::Uid;
pub use vector_column::{Stretch, VectorColumn};
pub use versions::Versions;
pub use writer::Writer;

/// How far a long operation has come. Reported through a callback; only the shell prints it.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// What is being worked on, for instance a file name.
    pub what: String,
    /// Units done and in all, `unit` says of what.
    pub done: u64,
    pub total: u64,
    pub unit: &'static str,
}

/// Receives progress; called often, must be cheap.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Send + Sync);
