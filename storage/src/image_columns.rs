//! Columns of `images` that are computed from the images' bytes, once, and kept.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{Field, Schema};
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use lance::Dataset;
use lance::dataset::transaction::DataReplacementGroup;
use lance::datatypes::BlobHandling;

use crate::writer::{Change, Writer};
use crate::{Error, OnProgress, Pool, Progress, Result, Table};

/// Fragments are committed in groups of about so many images.
const COMMIT_ROWS: u64 = 50_000;

/// A value for each of a batch of images, `None` being one that is not there.
pub type OfImages = Arc<dyn Fn(Vec<Option<&[u8]>>) -> ArrayRef + Send + Sync>;

impl Pool {
    /// Computes a column of `images` for the fragments that lack it, and gives their rows. What is committed stays when it is
    /// stopped. `what` names the values, for progress.
    pub fn fill_image_column<'a>(
        &'a self,
        field: Field,
        what: &'static str,
        compute: OfImages,
        on_progress: OnProgress<'a>,
    ) -> BoxFuture<'a, Result<u64>> {
        async move {
            let column = field.name().clone();
            let Some(dataset) = self.dataset(Table::Images).await? else { return Ok(0) };
            if without(&dataset, &column).is_empty() && dataset.schema().field(&column).is_some() {
                return Ok(0);
            }
            let fill = |writer: Writer| async move {
                let mut dataset = self.require(Table::Images).await?;
                if dataset.schema().field(&column).is_none() {
                    dataset = writer.add_null_columns(&dataset, vec![field]).await?;
                }
                let missing = without(&dataset, &column);
                let total: u64 = missing.iter().map(|fragment| fragment.1).sum();
                let (mut done, mut waiting, mut change) = (0, 0, Change::default());
                let last = missing.len();
                for (i, (id, rows)) in missing.into_iter().enumerate() {
                    on_progress(Progress { what: what.into(), done, total, unit: "images" });
                    change.columns.push(fill(&dataset, id, &column, &compute).await?);
                    done += rows;
                    waiting += rows;
                    if waiting >= COMMIT_ROWS || i + 1 == last {
                        dataset = writer.commit(&dataset, std::mem::take(&mut change), HashMap::new()).await?;
                        waiting = 0;
                    }
                }
                Ok(done)
            };
            self.write(fill).await
        }
        .boxed()
    }
}

/// The fragments without a column, and their rows.
pub(crate) fn without(dataset: &Dataset, column: &str) -> Vec<(u64, u64)> {
    let id = dataset.schema().field(column).map(|field| field.id);
    let lacks = |fragment: &&lance::table::format::Fragment| !fragment.files.iter().any(|file| file.fields.iter().any(|f| Some(*f) == id));
    dataset.fragments().iter().filter(lacks).map(|f| (f.id, f.num_rows().unwrap_or(0) as u64)).collect()
}

async fn fill(dataset: &Arc<Dataset>, id: u64, column: &str, compute: &OfImages) -> Result<DataReplacementGroup> {
    let wrap = || Error::lance(dataset.uri());
    let changed = || Error::Changed { path: dataset.uri().into() };
    let schema = dataset.schema().project(&[column]).map_err(wrap())?;
    let arrow_schema = Arc::new(Schema::from(&schema));
    let fragment = dataset.get_fragment(id as usize).ok_or_else(changed)?;
    let mut scanner = dataset.scan();
    scanner.project(&["image"]).map_err(wrap())?.with_fragments(vec![fragment.metadata().clone()]).scan_in_order(true);
    scanner.include_deleted_rows().with_row_id().blob_handling(BlobHandling::AllBinary).batch_size(256);
    scanner.io_buffer_size(64 << 20).materialization_readahead_bytes(64 << 20).batch_readahead(2);
    let batches = scanner.try_into_stream().await.map_err(wrap())?;
    let columns = batches
        .map(|batch| {
            let (arrow_schema, compute) = (arrow_schema.clone(), compute.clone());
            async move {
                let batch = batch?;
                let values = tokio::task::spawn_blocking(move || {
                    let images = batch["image"].as_binary::<i64>();
                    compute((0..images.len()).map(|i| images.is_valid(i).then(|| images.value(i))).collect())
                });
                let values = values.await.map_err(|e| lance::Error::io(e.to_string()))?;
                Ok::<_, lance::Error>(RecordBatch::try_new(arrow_schema, vec![values])?)
            }
        })
        .buffered(2);
    let written = fragment.write_columns(columns, &schema).await;
    written.map_err(wrap())
}
