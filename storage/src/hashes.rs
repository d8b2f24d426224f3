//! Perceptual hashes of images, computed where they are missing and kept as the column `phash` of `images`.

use std::sync::Arc;

use arrow::array::{AsArray, Int64Array};
use arrow::datatypes::{DataType, Field};
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use image::imageops::{FilterType, resize};
use rayon::prelude::*;

use crate::image_columns::{OfImages, without};
use crate::{Error, OnProgress, Pool, Result, Table};

/// The column of `images` that holds them.
pub const HASH: &str = "phash";
const SIZE: usize = 32;

/// The perceptual hash of an image's bytes, as `imagehash.phash` defines it: grey (ITU-R 601), resized to 32 x 32
/// (Lanczos), its cosine transform (type II), of whose 8 x 8 lowest coefficients each gives a bit, set where it is above
/// their median; row by row, the first bit the highest. `None` where the bytes are no image that can be decoded.
pub fn perceptual_hash(bytes: &[u8]) -> Option<i64> {
    // A decoder may panic at what it does not expect.
    let rgb = std::panic::catch_unwind(|| image::load_from_memory(bytes)).ok()?.ok()?.into_rgb8();
    let grey = image::GrayImage::from_fn(rgb.width(), rgb.height(), |x, y| {
        let [r, g, b] = rgb.get_pixel(x, y).0.map(u32::from);
        image::Luma([((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16) as u8])
    });
    let small = resize(&grey, SIZE as u32, SIZE as u32, FilterType::Lanczos3);
    let pixels: Vec<f64> = small.pixels().map(|pixel| f64::from(pixel.0[0])).collect();
    let cosine = |k: usize, i: usize| (std::f64::consts::PI * k as f64 * (2 * i + 1) as f64 / (2 * SIZE) as f64).cos();
    // Down the columns, then along the rows.
    let down: Vec<f64> = (0..8 * SIZE).map(|at| (0..SIZE).map(|i| pixels[i * SIZE + at % SIZE] * cosine(at / SIZE, i)).sum()).collect();
    let low: Vec<f64> = (0..64).map(|at| (0..SIZE).map(|i| down[at / 8 * SIZE + i] * cosine(at % 8, i)).sum()).collect();
    let mut sorted = low.clone();
    sorted.sort_by(f64::total_cmp);
    let median = (sorted[31] + sorted[32]) / 2.0;
    Some(low.iter().fold(0u64, |bits, x| bits << 1 | u64::from(*x > median)) as i64)
}

impl Pool {
    /// Computes the perceptual hashes that are missing, and gives their number. What is committed stays when it is stopped.
    pub fn fill_hashes<'a>(&'a self, on_progress: OnProgress<'a>) -> BoxFuture<'a, Result<u64>> {
        let hash: OfImages = Arc::new(|images| {
            let hashes: Vec<Option<i64>> = images.into_par_iter().map(|image| perceptual_hash(image?)).collect();
            Arc::new(Int64Array::from(hashes))
        });
        self.fill_image_column(Field::new(HASH, DataType::Int64, true), "perceptual hashes", hash, on_progress)
    }
}

/// Images that have not been looked at, at the version read.
pub fn missing(pool: &Pool) -> BoxFuture<'_, Result<u64>> {
    async move {
        let dataset = pool.dataset(Table::Images).await?;
        Ok(dataset.map_or(0, |dataset| without(&dataset, HASH).iter().map(|fragment| fragment.1).sum()))
    }
    .boxed()
}

/// The uids and hashes of the images that have one, in the order of the uids.
pub fn read_hashes(pool: &Pool) -> BoxFuture<'_, Result<Vec<(crate::Uid, u64)>>> {
    async move {
        let Some(dataset) = pool.dataset(Table::Images).await? else { return Ok(Vec::new()) };
        if dataset.schema().field(HASH).is_none() {
            return Ok(Vec::new());
        }
        let wrap = || Error::lance(dataset.uri());
        let mut scanner = dataset.scan();
        scanner.project(&["uid", HASH]).map_err(wrap())?;
        let mut batches = scanner.try_into_stream().await.map_err(wrap())?;
        let mut all = Vec::new();
        while let Some(batch) = batches.try_next().await.map_err(wrap())? {
            let hashes = batch[HASH].as_primitive::<arrow::datatypes::Int64Type>();
            let uids = crate::pool::uids_of(batch["uid"].as_ref());
            all.extend(uids.zip(hashes).filter_map(|(uid, hash)| Some((uid, hash? as u64))));
        }
        all.sort_unstable();
        Ok(all)
    }
    .boxed()
}

/// Values of a column of numbers of `pool` by uid, for those in `uids`, which are in order; NaN where there is none.
pub fn scores_by_uid<'a>(pool: &'a Pool, column: &'a str, uids: &'a [crate::Uid]) -> BoxFuture<'a, Result<Vec<f32>>> {
    async move {
        let dataset = pool.require(Table::Pool).await?;
        let wrap = || Error::lance(dataset.uri());
        let mut scores = vec![f32::NAN; uids.len()];
        let mut scanner = dataset.scan();
        scanner.project(&["uid", column]).map_err(wrap())?;
        let mut batches = scanner.try_into_stream().await.map_err(wrap())?;
        while let Some(batch) = batches.try_next().await.map_err(wrap())? {
            let values = arrow::compute::cast(&batch[column], &DataType::Float32)?;
            let values = values.as_primitive::<arrow::datatypes::Float32Type>();
            for (uid, value) in crate::pool::uids_of(batch["uid"].as_ref()).zip(values) {
                if let (Ok(i), Some(value)) = (uids.binary_search(&uid), value) {
                    scores[i] = value;
                }
            }
        }
        Ok(scores)
    }
    .boxed()
}
