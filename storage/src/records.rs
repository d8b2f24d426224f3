//! The tables `runs` and `evals`: what was trained and how it scored, one row each, replaced when made again.

use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchIterator};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::json::ReaderBuilder;
use futures::FutureExt;
use futures::future::BoxFuture;
use lance::dataset::{MergeInsertBuilder, WhenMatched};
use serde::Serialize;

use crate::{Error, Pool, Result, Table};

/// A training run. `run` is the folder's path and names it.
#[derive(Debug, Clone, Serialize)]
pub struct Run {
    pub run: String,
    pub filter: String,
    pub subset_size: i64,
    pub subset_sha256: String,
    pub pool_version: i64,
    pub scale: String,
    /// False where any hyper-parameter of the scale was changed.
    pub on_recipe: bool,
    pub seed: i64,
    pub steps: i64,
    pub batch_size: i64,
    pub samples_seen: i64,
    pub loss: f64,
    pub seconds: f64,
    pub receipt: String,
}

/// The score of a run on a task.
#[derive(Debug, Clone, Serialize)]
pub struct Eval {
    pub run: String,
    /// None for a checkpoint that was not trained here.
    pub filter: Option<String>,
    pub task: String,
    pub metric: Option<String>,
    pub value: Option<f64>,
    pub samples: i64,
    /// All metrics, as JSON.
    pub metrics: String,
}

pub fn write_run<'a>(pool: &'a Pool, run: &'a Run) -> BoxFuture<'a, Result<()>> {
    async move {
        let fields = [
            ("run", DataType::Utf8),
            ("filter", DataType::Utf8),
            ("subset_size", DataType::Int64),
            ("subset_sha256", DataType::Utf8),
            ("pool_version", DataType::Int64),
            ("scale", DataType::Utf8),
            ("on_recipe", DataType::Boolean),
            ("seed", DataType::Int64),
            ("steps", DataType::Int64),
            ("batch_size", DataType::Int64),
            ("samples_seen", DataType::Int64),
            ("loss", DataType::Float64),
            ("seconds", DataType::Float64),
            ("receipt", DataType::Utf8),
        ];
        write(pool, Table::Runs, &fields, &["run"], std::slice::from_ref(run)).await
    }
    .boxed()
}

pub fn write_evals<'a>(pool: &'a Pool, evals: &'a [Eval]) -> BoxFuture<'a, Result<()>> {
    async move {
        let fields = [
            ("run", DataType::Utf8),
            ("filter", DataType::Utf8),
            ("task", DataType::Utf8),
            ("metric", DataType::Utf8),
            ("value", DataType::Float64),
            ("samples", DataType::Int64),
            ("metrics", DataType::Utf8),
        ];
        write(pool, Table::Evals, &fields, &["run", "task"], evals).await
    }
    .boxed()
}

/// Adds the rows, in place of those with the same keys.
async fn write<R: Serialize>(pool: &Pool, table: Table, fields: &[(&str, DataType)], keys: &[&str], rows: &[R]) -> Result<()> {
    let fields: Vec<Field> = fields.iter().map(|(name, t)| Field::new(*name, t.clone(), true)).collect();
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    let mut decoder = ReaderBuilder::new(schema.clone()).build_decoder()?;
    decoder.serialize(rows)?;
    let Some(batch): Option<RecordBatch> = decoder.flush()? else { return Ok(()) };
    let batches = RecordBatchIterator::new([Ok(batch)], schema);
    let Some(dataset) = pool.dataset(table).await? else {
        pool.append(table, Box::new(batches)).await?;
        return Ok(());
    };
    let wrap = |e| Error::lance(pool.uri(table))(e);
    let mut merge = MergeInsertBuilder::try_new(dataset, keys.iter().map(|k| k.to_string()).collect()).map_err(wrap)?;
    let job = merge.when_matched(WhenMatched::UpdateAll).try_build().map_err(wrap)?;
    job.execute_reader(Box::new(batches) as Box<dyn arrow::array::RecordBatchReader + Send>).await.map_err(wrap)?;
    Ok(())
}
