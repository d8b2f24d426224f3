use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::SchemaRef;
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use futures::{Stream, StreamExt};
use storage::{OnProgress, Progress};

use crate::Result;

/// A query's rows, batch by batch, and how far its scans have come.
pub struct Rows {
    stream: SendableRecordBatchStream,
    scans: Scans,
}

/// The scans of a running query.
#[derive(Clone, Default)]
pub struct Scans(Vec<Arc<dyn ExecutionPlan>>);

impl Scans {
    /// Rows scanned so far, of those that the scans have.
    pub fn progress(&self) -> Progress {
        let scanned = |scan: &Arc<dyn ExecutionPlan>| scan.metrics()?.sum_by_name("rows_scanned").map(|rows| rows.as_usize() as u64);
        let all = |scan: &Arc<dyn ExecutionPlan>| scan.partition_statistics(None).ok()?.num_rows.get_value().map(|rows| *rows as u64);
        Progress {
            what: "scan".into(),
            done: self.0.iter().filter_map(scanned).sum(),
            total: self.0.iter().filter_map(all).sum(),
            unit: "rows",
        }
    }
}

impl Rows {
    /// Those of a plan that is about to run.
    pub(crate) fn of(plan: &Arc<dyn ExecutionPlan>, stream: SendableRecordBatchStream) -> Rows {
        let mut scans = Scans::default();
        leaves(plan, &mut scans);
        Rows { stream, scans }
    }

    pub fn schema(&self) -> SchemaRef {
        self.stream.schema()
    }

    /// Tells how far the query has come, also while its rows are waited for.
    pub fn scans(&self) -> Scans {
        self.scans.clone()
    }

    /// One row that tells what a statement did.
    pub(crate) fn told(columns: &[(&str, &dyn Told)]) -> Rows {
        let columns = columns.iter().map(|(name, value)| (*name, value.column()));
        let batch = RecordBatch::try_from_iter(columns).expect("columns of one row");
        let schema = batch.schema();
        let stream = futures::stream::iter([Ok(batch)]);
        let stream = RecordBatchStreamAdapter::new(schema, stream);
        Rows { stream: Box::pin(stream), scans: Scans::default() }
    }
}

pub(crate) trait Told {
    fn column(&self) -> ArrayRef;
}

impl Told for u64 {
    fn column(&self) -> ArrayRef {
        Arc::new(Int64Array::from(vec![*self as i64]))
    }
}

impl Told for String {
    fn column(&self) -> ArrayRef {
        Arc::new(StringArray::from(vec![self.as_str()]))
    }
}

impl Stream for Rows {
    type Item = Result<RecordBatch, DataFusionError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.stream.poll_next_unpin(context)
    }
}

/// Runs to the end, and reports how far the scans have come now and then.
pub(crate) async fn watch<T>(scans: Scans, on_progress: OnProgress<'_>, work: impl Future<Output = T>) -> T {
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(200));
    let mut work = std::pin::pin!(work);
    loop {
        tokio::select! {
            result = &mut work => return result,
            _ = tick.tick() => on_progress(scans.progress()),
        }
    }
}

/// The nodes that count what they scan.
fn leaves(plan: &Arc<dyn ExecutionPlan>, found: &mut Scans) {
    if plan.children().is_empty() && plan.name() == "LanceScanExec" {
        found.0.push(plan.clone());
    }
    plan.children().into_iter().for_each(|child| leaves(child, found));
}
