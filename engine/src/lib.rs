//! SQL over a pool: the session, its catalog and functions, saved filters and their receipts.
//!
//! ```
//! # use tarn_engine as engine;
//! use futures::TryStreamExt;
//!
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let root = folder.path().join("pool").display().to_string();
//! # let csv = folder.path().join("samples.csv");
//! # std::fs::write(&csv, "url,text\nhttp://a,a black cat\nhttp://b,dog\n")?;
//! # storage::ingest::ingest(&storage::Pool::at(&root), &[csv.display().to_string()], &Default::default(), &|_| {}).await?;
//! # let root = root.as_str();
//! let session = engine::Session::open(root).await?;
//! let rows = session.sql("SELECT uid, text FROM pool WHERE word_count(text) >= $n", &[("n".into(), 2i64.into())]).await?;
//! let batches: Vec<arrow::record_batch::RecordBatch> = rows.try_collect().await?;
//! assert_eq!(batches.iter().map(|batch| batch.num_rows()).sum::<usize>(), 1);
//!
//! let filter = engine::Filter::named("random_subset")?.bind(&[("fraction".into(), "1.0".into())])?;
//! let (subset, receipt) = session.subset(&filter).await?;
//! assert_eq!((subset.len(), receipt.pool_rows), (2, 2));
//! # Ok(()) }
//! ```
//! Writes no samples, and knows no model beyond the trait `Embed`.

mod catalog;
mod computed;
mod diff;
mod drops;
mod error;
mod expand;
mod filter;
mod functions;
mod in_lists;
mod nearest;
mod negative_zero;
mod own_buffers;
#[cfg(test)]
mod properties;
mod resources;
mod rows;
mod scan;
mod session;
mod snapshot;
mod statements;
mod tables;
mod uid_text;
mod uses;

pub use diff::Diff;
pub use drops::{Condition, Drops};
pub use error::{Error, Result};
pub use filter::{Bound, Filter, Parameter, ParameterType, guess};
pub use functions::{Embed, FunctionInfo, function_list, reference};
pub use resources::{Resource, Resources, digest};
pub use rows::{Rows, Scans};
pub use session::{Extended, Options, Params, Session};
