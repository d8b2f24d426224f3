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
mod error;
mod filter;
mod functions;
mod session;
mod uid_text;

pub use error::{Error, Result};
pub use filter::{Bound, Filter, Parameter, ParameterType, guess};
pub use session::{Params, Session};
