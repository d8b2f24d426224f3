//! From a subset to batches, straight from the pool: drawn, read, decoded and cropped ahead of the step that needs them.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use storage::{Sample, Samples};

use crate::config::ModelConfig;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result, image};

/// Samples read at a time.
const CHUNK: usize = 512;
/// Draws in a row without a readable image after which a run gives up.
const GIVE_UP: usize = 4096;

/// One step's samples.
pub struct Batch {
    /// Token ids with start and end, of different lengths.
    pub captions: Vec<Vec<u32>>,
    /// `[n, size, size, 3]`.
    pub pixels: Vec<u8>,
    /// Draws that were replaced because their image could not be read.
    pub unreadable: usize,
}

/// What decides the order and the augmentation of samples.
#[derive(Debug, Clone)]
pub struct Order {
    pub seed: u64,
    pub batch_size: usize,
    pub steps: std::ops::Range<u64>,
}

/// Starts reading on a thread of its own; batches arrive in order and are a function of (samples, seed, step) only.
/// Must be called inside a tokio runtime. Dropping the receiver stops it.
pub fn start(samples: Samples, model: &ModelConfig, tokenizer: Arc<Tokenizer>, order: Order) -> Receiver<Result<Batch>> {
    // Two batches wait for the step, or none where one batch is large: it is made while the last is trained on.
    let bytes = order.batch_size * 3 * model.vision_cfg.image_size.pow(2);
    let (sender, receiver) = sync_channel(if bytes < 64 << 20 { 2 } else { 0 });
    let loader = Loader::new(samples, model, tokenizer, order.seed, order.batch_size);
    std::thread::spawn(move || {
        for step in order.steps {
            let batch = loader.batch(step);
            let failed = batch.is_err();
            if sender.send(batch).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

struct Loader {
    samples: Samples,
    tokenizer: Arc<Tokenizer>,
    runtime: tokio::runtime::Handle,
    seed: u64,
    batch_size: usize,
    size: usize,
    context_length: usize,
    /// Running sum of the weights, where they differ.
    cumulative: Option<Vec<f64>>,
}

impl Loader {
    fn new(samples: Samples, model: &ModelConfig, tokenizer: Arc<Tokenizer>, seed: u64, batch_size: usize) -> Loader {
        let weighted = (0..samples.len()).any(|i| samples.weight(i) != 1.0);
        let mut sum = 0.0;
        let cumulative = weighted.then(|| {
            (0..samples.len())
                .map(|i| {
                    sum += f64::from(samples.weight(i));
                    sum
                })
                .collect()
        });
        let (size, context_length) = (model.vision_cfg.image_size, model.text_cfg.context_length);
        let runtime = tokio::runtime::Handle::current();
        Loader { samples, tokenizer, runtime, seed, batch_size, size, context_length, cumulative }
    }

    /// The batch of a step: drawn with replacement, in proportion to the weights.
    fn batch(&self, step: u64) -> Result<Batch> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(step);
        let mut batch = Batch { captions: Vec::new(), pixels: Vec::new(), unreadable: 0 };
        let mut since_readable = 0;
        while batch.captions.len() < self.batch_size {
            let n = (self.batch_size - batch.captions.len()).min(CHUNK);
            let drawn: Vec<(usize, u64)> = (0..n).map(|_| (self.draw(&mut rng), rng.random())).collect();
            let which: Vec<usize> = drawn.iter().map(|(i, _)| *i).collect();
            let samples = self.runtime.block_on(self.samples.read(&which))?;
            let prepared: Vec<Option<(Vec<u32>, Vec<u8>)>> =
                samples.par_iter().zip(&drawn).map(|(sample, (_, crop_seed))| self.prepare(sample, *crop_seed)).collect();
            for sample in prepared {
                match sample {
                    Some((caption, pixels)) => {
                        batch.captions.push(caption);
                        batch.pixels.extend_from_slice(&pixels);
                        since_readable = 0;
                    }
                    None => {
                        batch.unreadable += 1;
                        since_readable += 1;
                    }
                }
            }
            if since_readable >= GIVE_UP {
                return Err(Error::NoReadableImage { tried: since_readable });
            }
        }
        Ok(batch)
    }

    fn draw(&self, rng: &mut ChaCha8Rng) -> usize {
        match &self.cumulative {
            None => rng.random_range(0..self.samples.len()),
            Some(cumulative) => {
                let total = cumulative[cumulative.len() - 1];
                let point = rng.random::<f64>() * total;
                cumulative.partition_point(|&sum| sum <= point).min(cumulative.len() - 1)
            }
        }
    }

    fn prepare(&self, sample: &Sample, crop_seed: u64) -> Option<(Vec<u32>, Vec<u8>)> {
        let decoded = image::decode(sample.image.as_ref()?).ok()?;
        let pixels = image::random_resized_crop(&decoded, self.size, &mut ChaCha8Rng::seed_from_u64(crop_seed));
        Some((self.tokenizer.encode(sample.text.as_deref().unwrap_or(""), self.context_length), pixels))
    }
}
