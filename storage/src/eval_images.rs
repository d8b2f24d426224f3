//! The table `eval_images`: what identifies the images of evaluation sets, to find them again in the pool.

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatchReader};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};

use crate::hashes::HASH;
use crate::{Error, Pool, Result, Table, schema};

/// `task` and `sample` name an image, `phash` is its perceptual hash, null where it cannot be decoded; and the embedding of
/// a model, if there is one, under the name of the pool's column of the same.
pub fn eval_images_schema(embedding: Option<(&str, usize)>) -> SchemaRef {
    let mut fields = vec![
        Field::new("task", DataType::Utf8, false),
        Field::new("sample", DataType::Utf8, false),
        Field::new(HASH, DataType::Int64, true),
    ];
    fields.extend(embedding.map(|(name, dim)| Field::new(name, schema::embedding_type(dim as i32), true)));
    Arc::new(Schema::new(fields))
}

/// The hash of an evaluation image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvalHash {
    pub task: String,
    pub sample: String,
    pub hash: u64,
}

impl Pool {
    /// Replaces the table by what `batches` yields, as one version: all of it or none.
    pub fn write_eval_images<'a>(&'a self, batches: Box<dyn RecordBatchReader + Send>) -> BoxFuture<'a, Result<()>> {
        async move {
            self.require(Table::Pool).await?;
            self.replace(Table::EvalImages, batches).await
        }
        .boxed()
    }

    /// That `column` holds the pool's embeddings of this dimension.
    pub fn check_embedding<'a>(&'a self, column: &'a str, dim: usize) -> BoxFuture<'a, Result<()>> {
        async move {
            let dataset = self.require(Table::Pool).await?;
            let field = dataset.schema().field(column).ok_or_else(|| Error::no_column(&dataset, column))?;
            match field.data_type() {
                DataType::FixedSizeList(_, there) if there as usize == dim => Ok(()),
                other => {
                    let (expected, got) = (format!("embeddings of {dim} dimensions, as the model's"), other.to_string());
                    Err(Error::ColumnType { path: self.uri(Table::Pool).into(), column: column.to_string(), expected, got })
                }
            }
        }
        .boxed()
    }

    /// The columns of the table, none where there is no such table.
    pub fn eval_images_columns(&self) -> BoxFuture<'_, Result<Vec<String>>> {
        async move {
            let dataset = self.dataset(Table::EvalImages).await?;
            Ok(dataset.map(|dataset| dataset.schema().fields.iter().map(|field| field.name.clone()).collect()).unwrap_or_default())
        }
        .boxed()
    }

    /// The evaluation images that have a hash, in the table's order; an error where the pool has no such table.
    pub fn read_eval_hashes(&self) -> BoxFuture<'_, Result<Vec<EvalHash>>> {
        async move {
            let Some(dataset) = self.dataset(Table::EvalImages).await? else {
                return Err(Error::NoEvalImages { pool: self.root().to_string() });
            };
            let wrap = || Error::lance(dataset.uri());
            let mut scanner = dataset.scan();
            scanner.project(&["task", "sample", HASH]).map_err(wrap())?.scan_in_order(true);
            let mut batches = scanner.try_into_stream().await.map_err(wrap())?;
            let mut all = Vec::new();
            while let Some(batch) = batches.try_next().await.map_err(wrap())? {
                let text = |name: &str, i: usize| batch[name].as_string::<i32>().value(i).to_string();
                let hashes = batch[HASH].as_primitive::<Int64Type>();
                let known = (0..batch.num_rows()).filter(|i| hashes.is_valid(*i));
                all.extend(known.map(|i| EvalHash { task: text("task", i), sample: text("sample", i), hash: hashes.value(i) as u64 }));
            }
            Ok(all)
        }
        .boxed()
    }
}
