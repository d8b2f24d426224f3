use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, AsArray, LargeBinaryArray};
use arrow::datatypes::{DataType, Field};
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use lance::Dataset;
use lance::dataset::ProjectionRequest;
use rayon::prelude::*;

use crate::image_columns::{OfImages, without};
use crate::{Error, OnProgress, Pool, Result, Subset, Table, Uid, images};

/// Samples of a pool by position: where each one's caption and image lie, resolved once.
/// Reads go straight to Lance, so that no shard is ever rewritten for a subset.
#[derive(Clone)]
pub struct Samples {
    pool: Arc<Dataset>,
    images: Option<Arc<Dataset>>,
    rows: Arc<Vec<Row>>,
    /// The column of `images` to take images from, where it has them.
    shrunk: Option<String>,
}

#[derive(Clone, Copy)]
struct Row {
    uid: Uid,
    weight: f32,
    pool_row: u64,
    image_row: u64,
}

const NONE: u64 = u64::MAX;

/// Entries of a subset that cannot be drawn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Missing {
    pub not_in_pool: u64,
    pub no_image: u64,
}

/// One sample's bytes and caption, as stored.
#[derive(Debug, Clone)]
pub struct Sample {
    pub uid: Uid,
    pub image: Option<Bytes>,
    pub text: Option<String>,
    /// Boxes to blur (see `images::blur_boxes`): none where the source has done it.
    pub faces: Vec<[f32; 4]>,
}

impl Samples {
    /// The entries of a subset that the pool has with an image, duplicates kept, and the count of the others.
    /// An error if none is left. Memory: 48 bytes an entry.
    pub fn of_subset<'a>(pool: &'a Pool, subset: &'a Subset) -> BoxFuture<'a, Result<(Samples, Missing)>> {
        async move {
            if subset.is_empty() {
                return Err(Error::SubsetEmpty);
            }
            let pool_table = pool.require(Table::Pool).await?;
            let images = pool.require(Table::Images).await?;
            let mut unique = subset.uids().to_vec();
            unique.dedup();
            let pool_rows = locate(pool, &pool_table, &unique).await?;
            let image_rows = locate(pool, &images, &unique).await?;
            let mut missing = Missing::default();
            let mut rows = Vec::with_capacity(subset.len());
            let mut at = 0;
            for (i, &uid) in subset.uids().iter().enumerate() {
                while unique[at] != uid {
                    at += 1;
                }
                let weight = subset.weights().map_or(1.0, |weights| weights[i]);
                match (pool_rows[at], image_rows[at]) {
                    (NONE, _) => missing.not_in_pool += 1,
                    (_, NONE) => missing.no_image += 1,
                    (pool_row, image_row) => rows.push(Row { uid, weight, pool_row, image_row }),
                }
            }
            if rows.is_empty() {
                let Missing { not_in_pool, no_image } = missing;
                return Err(Error::NothingToDraw { size: subset.len() as u64, not_in_pool, no_image });
            }
            if rows.iter().all(|row| row.weight == 0.0) {
                return Err(Error::NoWeight);
            }
            Ok((Samples { pool: pool_table, images: Some(images), rows: Arc::new(rows), shrunk: None }, missing))
        }
        .boxed()
    }

    /// Every row of the pool in its order, with or without an image.
    pub fn of_pool<'a>(pool: &'a Pool) -> BoxFuture<'a, Result<Samples>> {
        async move {
            let pool_table = pool.require(Table::Pool).await?;
            let images = pool.dataset(Table::Images).await?;
            let mut image_rows = HashMap::new();
            if let Some(images) = &images {
                pool.for_each_uid(images, |row, uid| {
                    image_rows.entry(uid).or_insert(row);
                })
                .await?;
            }
            let mut rows = Vec::new();
            pool.for_each_uid(&pool_table, |pool_row, uid| {
                rows.push(Row { uid, weight: 1.0, pool_row, image_row: image_rows.get(&uid).copied().unwrap_or(NONE) });
            })
            .await?;
            Ok(Samples { pool: pool_table, images, rows: Arc::new(rows), shrunk: None })
        }
        .boxed()
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// All positions in the order in which their images lie on the disk.
    pub fn by_place(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.rows.len() as u32).collect();
        order.sort_by_key(|&i| self.rows[i as usize].image_row);
        order
    }

    pub fn uid(&self, i: usize) -> Uid {
        self.rows[i].uid
    }

    /// How often to draw sample `i` relative to the others.
    pub fn weight(&self, i: usize) -> f32 {
        self.rows[i].weight
    }

    /// Takes images from the column that `shrink_images` has made for this side, and says whether it has any: all others are
    /// no larger, and come as they are.
    pub fn use_shrunk(&mut self, side: usize) -> BoxFuture<'_, Result<bool>> {
        async move {
            let column = shrunk_column(side);
            let Some(images) = self.images.as_ref().filter(|images| images.schema().field(&column).is_some()) else {
                return Err(Error::NotShrunk { side, images: None });
            };
            let left: u64 = without(images, &column).iter().map(|fragment| fragment.1).sum();
            if left > 0 {
                return Err(Error::NotShrunk { side, images: Some(left) });
            }
            let wrap = |e| Error::lance(images.uri())(e);
            let any = images.count_rows(Some(format!("{column} IS NOT NULL"))).await.map_err(wrap)? > 0;
            self.shrunk = Some(column);
            Ok(any)
        }
        .boxed()
    }

    pub fn has_image(&self, i: usize) -> bool {
        self.rows[i].image_row != NONE
    }

    /// Reads the samples at positions `which`, repeats allowed, in one coalesced request each for images and captions.
    pub fn read<'a>(&'a self, which: &'a [usize]) -> BoxFuture<'a, Result<Vec<Sample>>> {
        async move {
            let (metadata, images) = futures::try_join!(self.metadata(which), self.images(which))?;
            let sample = |&i: &usize| {
                let row = self.rows[i];
                let (text, faces) = metadata[&row.pool_row].clone();
                Sample { uid: row.uid, image: images.get(&row.image_row).cloned(), text, faces }
            };
            let mut samples: Vec<Sample> = which.iter().map(sample).collect();
            if samples.iter().any(|sample| !sample.faces.is_empty()) {
                let blurred = self.blurred(which).await?;
                for (sample, &i) in samples.iter_mut().zip(which).filter(|(_, i)| blurred.contains(&self.rows[**i].image_row)) {
                    debug_assert_eq!(sample.uid, self.uid(i));
                    sample.faces.clear();
                }
            }
            Ok(samples)
        }
        .boxed()
    }

    /// Caption and face boxes by row of the pool.
    async fn metadata(&self, which: &[usize]) -> Result<HashMap<u64, (Option<String>, Vec<[f32; 4]>)>> {
        let rows = sorted(which.iter().map(|&i| self.rows[i].pool_row));
        let columns = ["text", "face_bboxes"].into_iter().filter(|name| self.pool.schema().field(name).is_some());
        let columns: Vec<&str> = columns.collect();
        if columns.is_empty() {
            return Ok(rows.into_iter().map(|row| (row, Default::default())).collect());
        }
        let projection = ProjectionRequest::from_columns(columns, self.pool.schema());
        let batch = self.pool.take(&rows, projection).await.map_err(Error::lance(self.pool.uri()))?;
        let texts = batch.column_by_name("text").map(|column| column.as_string::<i32>());
        let of = |i: usize| {
            let text = texts.filter(|texts| texts.is_valid(i)).map(|texts| texts.value(i).to_string());
            (text, images::face_boxes(&batch, i).unwrap_or_default())
        };
        Ok(rows.into_iter().enumerate().map(|(i, row)| (row, of(i))).collect())
    }

    /// Rows of images whose faces their source has blurred.
    async fn blurred(&self, which: &[usize]) -> Result<HashSet<u64>> {
        let rows = sorted(which.iter().map(|&i| self.rows[i].image_row).filter(|&row| row != NONE));
        let Some(images) = self.images.as_ref().filter(|_| !rows.is_empty()) else {
            return Ok(HashSet::new());
        };
        let projection = ProjectionRequest::from_columns(["status"], images.schema());
        let batch = images.take(&rows, projection).await.map_err(Error::lance(images.uri()))?;
        let statuses = batch.column(0).as_string::<i32>().iter();
        Ok(rows.into_iter().zip(statuses).filter(|(_, status)| *status == Some(images::BLURRED)).map(|(row, _)| row).collect())
    }

    async fn images(&self, which: &[usize]) -> Result<HashMap<u64, Bytes>> {
        let rows = sorted(which.iter().map(|&i| self.rows[i].image_row).filter(|&row| row != NONE));
        let Some(images) = self.images.as_ref().filter(|_| !rows.is_empty()) else {
            return Ok(HashMap::new());
        };
        let wrap = |e| Error::lance(images.uri())(e);
        let mut found = HashMap::new();
        if let Some(column) = &self.shrunk {
            let batch = images.take(&rows, ProjectionRequest::from_columns([column], images.schema())).await.map_err(wrap)?;
            let shrunk = batch.column(0).as_binary::<i64>();
            let there = rows.iter().zip(shrunk).filter_map(|(row, image)| Some((*row, Bytes::copy_from_slice(image?))));
            found.extend(there);
        }
        let others: Vec<u64> = rows.into_iter().filter(|row| !found.contains_key(row)).collect();
        if !others.is_empty() {
            let read = images.read_blobs("image").map_err(wrap)?.with_row_indices(others.clone()).preserve_order(true);
            let blobs = read.execute().await.map_err(wrap)?;
            found.extend(others.into_iter().zip(blobs).filter_map(|(row, blob)| Some((row, blob.data?))));
        }
        Ok(found)
    }
}

/// The column of `images` that holds those whose shorter side was larger than `side`, shrunk to it.
fn shrunk_column(side: usize) -> String {
    format!("shrunk_{side}")
}

impl Pool {
    /// Fills that column with what `shrink` makes of images, none where one is to be taken as it is. Gives the number of images
    /// that were looked at.
    pub fn shrink_images<'a>(
        &'a self,
        side: usize,
        shrink: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + Sync + 'static,
        on_progress: OnProgress<'a>,
    ) -> BoxFuture<'a, Result<u64>> {
        let compute: OfImages = Arc::new(move |images| {
            let shrunk: Vec<Option<Vec<u8>>> = images.into_par_iter().map(|image| shrink(image?)).collect();
            Arc::new(LargeBinaryArray::from_iter(shrunk))
        });
        let field = Field::new(shrunk_column(side), DataType::LargeBinary, true);
        self.fill_image_column(field, "shrunk images", compute, on_progress)
    }
}

/// For each of the sorted `uids` its row in the table, or `NONE`.
async fn locate(pool: &Pool, table: &Dataset, uids: &[Uid]) -> Result<Vec<u64>> {
    let mut rows = vec![NONE; uids.len()];
    pool.for_each_uid(table, |row, uid| {
        if let Ok(at) = uids.binary_search(&uid) {
            rows[at] = rows[at].min(row);
        }
    })
    .await?;
    Ok(rows)
}

fn sorted(rows: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut rows: Vec<u64> = rows.collect();
    rows.sort_unstable();
    rows.dedup();
    rows
}
