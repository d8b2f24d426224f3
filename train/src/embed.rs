//! The embeddings and scores of a pool's samples under a checkpoint, as new columns.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow::array::{Array, ArrayRef, BooleanArray, FixedSizeListArray, Float16Array, Float32Array, RecordBatch, RecordBatchIterator};
use arrow::buffer::NullBuffer;
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use half::f16;
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use storage::{OnProgress, Pool, Progress, Samples, schema};

use crate::encoder::{Encoder, normalize_rows};
use crate::parts::{Parts, hex};
use crate::{Error, Result};

/// Rows read and encoded at a time, and those that are kept together until all are done.
const CHUNK: usize = 256;
const PART: usize = 4 * CHUNK;

/// What `embed` wrote. Images that are missing or unreadable have null embeddings and scores.
#[derive(Debug, Clone, Copy, Default)]
pub struct Embedded {
    pub rows: u64,
    pub no_image: u64,
    pub unreadable: u64,
}

/// Adds `NAME_img`, `NAME_txt` (float16, normalised) and `NAME_score` (their inner product, computed from the
/// float16 values as DataComp's scores are) to `pool`, in order and in bounded memory. Call it inside a tokio runtime; it
/// blocks. Stopped, it goes on where it was when it is called again for the same samples and model: pieces are kept in
/// the folder `kept` until the columns are there.
pub fn embed(
    pool: &Pool,
    encoder: Encoder,
    name: &str,
    replace: bool,
    kept: &Path,
    stop: &'static AtomicBool,
    on_progress: OnProgress<'_>,
) -> Result<Embedded> {
    let runtime = tokio::runtime::Handle::current();
    let samples = runtime.block_on(Samples::of_pool(pool))?;
    let dim = encoder.config().embed_dim as i32;
    let schema: SchemaRef = Arc::new(Schema::new(vec![
        Field::new(format!("{name}_img"), schema::embedding_type(dim), true),
        Field::new(format!("{name}_txt"), schema::embedding_type(dim), true),
        Field::new(format!("{name}_score"), DataType::Float32, true),
    ]));
    // Known before the work, not after it.
    runtime.block_on(pool.check_new_columns(&schema, replace))?;
    let (sender, receiver) = std::sync::mpsc::sync_channel(2);
    let total = samples.len();
    let parts = Parts::open(kept, &digest(&samples, &encoder)?)?;
    let mut work = Work { samples, encoder, schema: schema.clone(), done: Embedded::default() };
    let done = std::thread::scope(|scope| {
        let handle = runtime.clone();
        let parts = &parts;
        let worker = scope.spawn(move || {
            for (number, from) in (0..total).step_by(PART).enumerate() {
                let rows = from..(from + PART).min(total);
                let on_chunk = |done: usize| {
                    on_progress(Progress { what: String::new(), done: done as u64, total: total as u64, unit: "samples" });
                };
                let batch = work.part(parts, number, rows, stop, &handle, &on_chunk);
                let failed = batch.as_ref().err().map(ToString::to_string);
                let sent = sender.send(batch.map_err(|e| ArrowError::ExternalError(Box::new(e))));
                if sent.is_err() || failed.is_some() {
                    break;
                }
            }
            work.done
        });
        let batches = RecordBatchIterator::new(receiver, schema);
        let added = runtime.block_on(pool.add_columns(Box::new(batches), replace));
        let done = worker.join();
        if added.is_err() && stop.load(Ordering::Relaxed) {
            return Err(Error::Stopped { done: done.map_or(0, |done| done.rows), total: total as u64 });
        }
        added?;
        let done = done.map_err(|_| Error::WorkerPanicked)?;
        on_progress(Progress { what: String::new(), done: total as u64, total: total as u64, unit: "samples" });
        Ok(done)
    });
    if done.is_ok() {
        parts.remove()?;
    }
    done
}

/// Of the model, and of all samples with whether they have an image.
fn digest(samples: &Samples, encoder: &Encoder) -> Result<String> {
    let mut digest = Sha256::new();
    digest.update(encoder.digest()?);
    for i in 0..samples.len() {
        digest.update(samples.uid(i).0);
        digest.update([u8::from(samples.has_image(i))]);
    }
    Ok(hex(&digest.finalize()))
}

struct Work {
    samples: Samples,
    encoder: Encoder,
    schema: SchemaRef,
    done: Embedded,
}

impl Work {
    /// The rows of a part, kept ones or new ones.
    fn part(
        &mut self,
        parts: &Parts,
        number: usize,
        range: Range<usize>,
        stop: &AtomicBool,
        runtime: &tokio::runtime::Handle,
        on_chunk: &dyn Fn(usize),
    ) -> Result<RecordBatch> {
        let kept = parts.read(number);
        let batch = match kept.filter(|batch| batch.num_rows() == range.len() && batch.schema() == self.schema) {
            Some(batch) => batch,
            None => {
                let mut chunks = Vec::new();
                for from in range.clone().step_by(CHUNK) {
                    on_chunk(from);
                    if stop.load(Ordering::Relaxed) {
                        return Err(Error::Stopped { done: from as u64, total: self.samples.len() as u64 });
                    }
                    chunks.push(self.rows(from..(from + CHUNK).min(range.end), runtime)?);
                }
                let batch = concat_batches(&self.schema, &chunks).map_err(storage::Error::from)?;
                parts.write(number, &batch)?;
                batch
            }
        };
        let missing = range.clone().filter(|&i| !self.samples.has_image(i)).count();
        self.done.rows += range.len() as u64;
        self.done.no_image += missing as u64;
        self.done.unreadable += (batch.column(0).null_count() - missing) as u64;
        Ok(batch)
    }

    fn rows(&mut self, range: Range<usize>, runtime: &tokio::runtime::Handle) -> Result<RecordBatch> {
        let which: Vec<usize> = range.collect();
        let samples = runtime.block_on(self.samples.read(&which))?;
        let preprocess = self.encoder.preprocessor();
        let pixels: Vec<Option<Vec<u8>>> = samples.par_iter().map(|s| s.image.as_ref().and_then(|bytes| preprocess(bytes).ok())).collect();
        let has_image: Vec<bool> = pixels.iter().map(Option::is_some).collect();
        let has_text: Vec<bool> = samples.iter().map(|s| s.text.is_some()).collect();
        let images = self.encoder.encode_images(&pixels.into_iter().flatten().collect::<Vec<_>>())?;
        let texts = self.encoder.encode_texts(&samples.iter().filter_map(|s| s.text.as_deref()).collect::<Vec<_>>())?;

        let dim = self.encoder.config().embed_dim;
        let (images, texts) = (halves(images, &has_image, dim), halves(texts, &has_text, dim));
        let scores = images.chunks_exact(dim).zip(texts.chunks_exact(dim));
        let scores = scores.map(|(i, t)| i.iter().zip(t).map(|(a, b)| a.to_f32() * b.to_f32()).sum::<f32>());
        let both: Vec<bool> = has_image.iter().zip(&has_text).map(|(i, t)| *i && *t).collect();
        let scores = Float32Array::new(scores.collect::<Vec<_>>().into(), Some(NullBuffer::from(both)));

        let list = |values: Vec<f16>, valid: Vec<bool>| -> Result<ArrayRef, ArrowError> {
            let item = Arc::new(Field::new("item", DataType::Float16, true));
            let values = Arc::new(Float16Array::from(values));
            let nulls = NullBuffer::from(BooleanArray::from(valid).values().clone());
            Ok(Arc::new(FixedSizeListArray::try_new(item, dim as i32, values, Some(nulls))?))
        };
        let columns = || -> Result<RecordBatch, ArrowError> {
            RecordBatch::try_new(self.schema.clone(), vec![list(images, has_image)?, list(texts, has_text)?, Arc::new(scores)])
        };
        columns().map_err(|e| storage::Error::from(e).into())
    }
}

/// Normalised float16 rows, zeros where a row has no features.
fn halves(mut features: Vec<f32>, has: &[bool], dim: usize) -> Vec<f16> {
    normalize_rows(&mut features, dim);
    let mut rows = features.chunks_exact(dim);
    let mut out = vec![f16::ZERO; has.len() * dim];
    for (out, _) in out.chunks_exact_mut(dim).zip(has).filter(|(_, has)| **has) {
        let row = rows.next().expect("one row of features for each that has them");
        out.iter_mut().zip(row).for_each(|(o, &x)| *o = f16::from_f32(x));
    }
    out
}
