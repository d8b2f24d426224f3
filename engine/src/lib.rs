//! SQL over a pool: the session, its catalog and functions, saved filters and their receipts.
//!
//! ```no_run
//! # use tarn_engine as engine;
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use futures::TryStreamExt;
//!
//! let session = engine::Session::open("POOL").await?;
//! let batches = session.sql("SELECT uid, text FROM pool LIMIT $n", &[("n".into(), 5i64.into())]).await?;
//! let batches: Vec<_> = batches.try_collect().await?;
//!
//! let filter = engine::Filter::named("clip_score")?.bind(&[("fraction".into(), "0.3".into())])?;
//! let (subset, receipt) = session.subset(&filter).await?;
//! # Ok(()) }
//! ```
//! Writes no samples and knows no model.

mod catalog;
mod computed;
mod diff;
mod drops;
mod error;
mod expand;
mod filter;
mod functions;
mod resources;
mod scan;
mod session;

mod statements;
mod uid_text;

pub use diff::Diff;
pub use drops::{Condition, Drops};
pub use error::{Error, Result};
pub use filter::{Bound, Filter, Parameter, ParameterType, guess};
pub use functions::{Embed, FunctionInfo, function_list, reference};
pub use resources::{Resource, Resources, digest};
pub use session::{Options, Params, Rows, Scans, Session};
