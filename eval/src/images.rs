use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use storage::hashes::perceptual_hash;
use storage::{OnProgress, Progress};
use train::Encoder;

use crate::set::EvalSet;
use crate::source;
use crate::task::Kind;
use crate::{Error, Result};

/// Images read and worked on at a time.
const CHUNK: usize = 256;

/// What identifies an image of an evaluation set.
#[derive(Debug, Clone)]
pub struct EvalImage {
    pub task: String,
    pub sample: String,
    /// As `storage::hashes` defines it; none where it cannot be decoded.
    pub hash: Option<i64>,
    /// Normalised; none without an encoder, and of an image that cannot be decoded.
    pub embedding: Option<Vec<f32>>,
}

/// Gives `each` the images of a set, some at a time, in their order.
pub fn for_each_image(
    mut encoder: Option<&mut Encoder>,
    set: &EvalSet,
    stop: &AtomicBool,
    on_progress: OnProgress<'_>,
    each: &mut dyn FnMut(Vec<EvalImage>) -> bool,
) -> Result<()> {
    let mut chunk: Vec<(String, Vec<u8>)> = Vec::new();
    let mut failed = None;
    let mut work = |chunk: Vec<(String, Vec<u8>)>, done: u64| {
        on_progress(Progress { what: set.task.name.clone(), done, total: set.bytes, unit: "bytes" });
        !stop.load(Ordering::Relaxed)
            && match identify(encoder.as_deref_mut(), &set.task.key, chunk) {
                Ok(images) => each(images),
                Err(e) => {
                    failed = Some(e);
                    false
                }
            }
    };
    let mut add = |key: String, image: Option<Vec<u8>>, done: u64| {
        chunk.extend(image.map(|image| (key, image)));
        chunk.len() < CHUNK || work(std::mem::take(&mut chunk), done)
    };
    match set.task.kind {
        Kind::Association => source::instances(set, &mut |instance, done| {
            let images = instance.candidates.into_iter().enumerate();
            images.into_iter().all(|(i, image)| add(format!("{}, image {i}", instance.key), image, done))
        })?,
        _ => source::samples(set, &mut |sample, done| add(sample.key, sample.image, done))?,
    }
    work(chunk, set.bytes);
    if let Some(e) = failed {
        return Err(e);
    }
    match stop.load(Ordering::Relaxed) {
        true => Err(Error::Interrupted { task: set.task.name.clone() }),
        false => Ok(()),
    }
}

fn identify(encoder: Option<&mut Encoder>, task: &str, images: Vec<(String, Vec<u8>)>) -> Result<Vec<EvalImage>> {
    let hashes: Vec<Option<i64>> = images.par_iter().map(|(_, image)| perceptual_hash(image)).collect();
    let mut embeddings: Vec<Option<Vec<f32>>> = vec![None; images.len()];
    if let Some(encoder) = encoder {
        let dim = encoder.config().embed_dim;
        let preprocess = encoder.preprocessor();
        let pixels: Vec<Option<Vec<u8>>> = images.par_iter().map(|(_, image)| preprocess(image).ok()).collect();
        let readable: Vec<usize> = (0..pixels.len()).filter(|i| pixels[*i].is_some()).collect();
        let mut features = encoder.encode_images(&pixels.into_iter().flatten().collect::<Vec<_>>())?;
        train::normalize_rows(&mut features, dim);
        readable.iter().zip(features.chunks_exact(dim)).for_each(|(i, row)| embeddings[*i] = Some(row.to_vec()));
    }
    let parts = images.into_iter().zip(hashes).zip(embeddings);
    Ok(parts.map(|(((sample, _), hash), embedding)| EvalImage { task: task.to_string(), sample, hash, embedding }).collect())
}
