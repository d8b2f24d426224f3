//! From a subset to batches, straight from the pool: drawn, read, decoded and cropped ahead of the step that needs them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use storage::{Sample, Samples, Uid};

use crate::config::ModelConfig;
use crate::text::Tokenizer;
use crate::{Error, Result, image};

/// Samples read at a time.
const CHUNK: usize = 256;
/// Draws in a row without a readable image after which a run gives up.
const GIVE_UP: usize = 4096;
/// Bytes of pixels that may wait for the trainer.
const AHEAD: usize = 512 << 20;

/// One step's samples.
pub struct Batch {
    /// Positions in the `Samples` that were drawn from.
    pub which: Vec<u32>,
    /// Token ids with start and end, of different lengths.
    pub captions: Vec<Vec<u32>>,
    /// `[n, size, size, 3]`.
    pub pixels: Vec<u8>,
    /// How many draws were replaced by the next ones, and the samples whose image could not be read, with the reason.
    pub draws_replaced: u64,
    pub unreadable: Vec<(Uid, String)>,
}

/// How samples are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shuffle {
    /// Each draw on its own, from all samples.
    Full,
    /// So many samples that lie side by side, then others: for disks and object stores that are slow at reading here
    /// and there. A batch begins with a new block.
    Blocks(usize),
}

/// What decides the order and the augmentation of samples.
#[derive(Debug, Clone)]
pub struct Order {
    pub seed: u64,
    pub batch_size: usize,
    pub shuffle: Shuffle,
    /// Steps counted from 0.
    pub steps: Range<u64>,
    /// Of so many equal parts of each batch this one, counted from 0.
    pub part: usize,
    pub parts: usize,
}

/// Starts reading on threads of its own; batches arrive in order and are a function of (samples, seed, shuffle, step)
/// only. The parts make the batch of one process, but for draws that replace unreadable images: each part has its own.
/// Must be called inside a tokio runtime. Dropping the receiver stops it.
pub fn start(samples: Samples, model: &ModelConfig, tokenizer: Arc<Tokenizer>, order: Order) -> Receiver<Result<Batch>> {
    // Batches that wait for the step: none where one batch is large, it is made while the last is trained on.
    let bytes = order.batch_size / order.parts * 3 * model.vision_cfg.image_size.pow(2);
    let (sender, receiver) = sync_channel((AHEAD / bytes.max(1)).min(4));
    let draw = Draw::new(&samples, &order);
    let prepare = Prepare::new(model, tokenizer);
    let runtime = tokio::runtime::Handle::current();
    std::thread::spawn(move || {
        for step in order.steps.clone() {
            let batch = make(&samples, &draw, &prepare, &runtime, step);
            let failed = batch.is_err();
            if sender.send(batch).is_err() || failed {
                return;
            }
        }
    });
    receiver
}

/// The batch of a step. Chunks are read while those before them are decoded.
fn make(samples: &Samples, draw: &Draw, prepare: &Prepare, runtime: &tokio::runtime::Handle, step: u64) -> Result<Batch> {
    let n = draw.batch_size / draw.parts;
    let mut draws = draw.part_of_step(step);
    let mut batch = Batch { which: Vec::new(), captions: Vec::new(), pixels: Vec::new(), draws_replaced: 0, unreadable: Vec::new() };
    batch.pixels.reserve_exact(n * prepare.size.pow(2) * 3);
    let mut since_readable = 0;
    while batch.captions.len() < n {
        // All that is missing is drawn at once; what turns out to be unreadable is drawn for in the next round.
        let drawn: Vec<Drawn> = (0..n - batch.captions.len()).map(|_| draws()).collect();
        let (sender, receiver) = sync_channel(1);
        let reading = runtime.spawn(read(samples.clone(), drawn.clone(), sender));
        for chunk in drawn.chunks(CHUNK) {
            let samples = receiver.recv().map_err(|_| Error::WorkerPanicked)??;
            let prepared: Vec<Result<(Vec<u32>, Vec<u8>)>> =
                samples.par_iter().zip(chunk).map(|(sample, drawn)| prepare.sample(sample, drawn.crop_seed)).collect();
            for ((sample, drawn), prepared) in samples.iter().zip(chunk).zip(prepared) {
                match prepared {
                    Ok((caption, pixels)) => {
                        batch.which.push(drawn.which as u32);
                        batch.captions.push(caption);
                        batch.pixels.extend_from_slice(&pixels);
                        since_readable = 0;
                    }
                    Err(e) => {
                        batch.draws_replaced += 1;
                        if !batch.unreadable.iter().any(|(uid, _)| *uid == sample.uid) {
                            batch.unreadable.push((sample.uid, e.to_string()));
                        }
                        since_readable += 1;
                        if since_readable == GIVE_UP {
                            return Err(Error::NoReadableImage { tried: since_readable });
                        }
                    }
                }
            }
        }
        runtime.block_on(reading).map_err(|_| Error::WorkerPanicked)?;
    }
    Ok(batch)
}

/// Sends the samples of each chunk of draws, until one cannot be read or nobody listens.
async fn read(samples: Samples, drawn: Vec<Drawn>, sender: SyncSender<Result<Vec<Sample>>>) {
    for chunk in drawn.chunks(CHUNK) {
        let which: Vec<usize> = chunk.iter().map(|drawn| drawn.which).collect();
        let read = samples.read(&which).await;
        let failed = read.is_err();
        // Waiting for the decoder must not hold up others of the runtime.
        let sent = tokio::task::block_in_place(|| sender.send(read.map_err(Error::from)).is_ok());
        if failed || !sent {
            return;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Drawn {
    which: usize,
    crop_seed: u64,
}

/// Draws with replacement, in proportion to the weights.
pub(crate) struct Draw {
    seed: u64,
    batch_size: usize,
    part: usize,
    parts: usize,
    count: usize,
    /// Running sum of the weights of samples, where they differ, in the order that is drawn from.
    cumulative: Option<Vec<f64>>,
    blocks: Option<Blocks>,
}

struct Blocks {
    /// Samples in the order in which they lie.
    order: Vec<u32>,
    size: usize,
}

impl Draw {
    pub fn new(samples: &Samples, order: &Order) -> Draw {
        let blocks = match order.shuffle {
            Shuffle::Full => None,
            Shuffle::Blocks(size) => Some(Blocks { order: samples.by_place(), size: size.clamp(1, samples.len()) }),
        };
        let at = |i: usize| blocks.as_ref().map_or(i, |blocks| blocks.order[i] as usize);
        let weighted = (0..samples.len()).any(|i| samples.weight(i) != samples.weight(0));
        let mut sum = 0.0;
        let cumulative = weighted.then(|| {
            let running = (0..samples.len()).map(|i| {
                sum += f64::from(samples.weight(at(i)));
                sum
            });
            running.collect()
        });
        let Order { seed, batch_size, part, parts, .. } = *order;
        Draw { seed, batch_size, part, parts, count: samples.len(), cumulative, blocks }
    }

    /// The positions that a step draws first.
    pub fn positions(&self, step: u64) -> Vec<usize> {
        let mut draws = self.step(step);
        (0..self.batch_size).map(|_| draws.next().which).collect()
    }

    /// The draws of a step, without end: more than the batch where images cannot be read.
    fn step(&self, step: u64) -> Draws<'_> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(step);
        Draws { draw: self, rng, block: 0..0, left: 0, next: 0 }
    }

    /// The draws of this part: its stretch of the batch, then every so many-th of those behind it.
    fn part_of_step(&self, step: u64) -> impl FnMut() -> Drawn {
        let mut draws = self.step(step);
        let n = self.batch_size / self.parts;
        let mut first: Vec<Drawn> = (0..self.batch_size).map(|_| draws.next()).collect();
        let mut first = first.drain(self.part * n..(self.part + 1) * n).collect::<Vec<_>>().into_iter();
        move || {
            first.next().unwrap_or_else(|| {
                let round: Vec<Drawn> = (0..self.parts).map(|_| draws.next()).collect();
                round[self.part]
            })
        }
    }

    /// A position among `range`, in proportion to the weights.
    fn within(&self, range: Range<usize>, rng: &mut ChaCha8Rng) -> usize {
        let Some(cumulative) = &self.cumulative else { return rng.random_range(range) };
        let before = if range.start == 0 { 0.0 } else { cumulative[range.start - 1] };
        let point = before + rng.random::<f64>() * (cumulative[range.end - 1] - before);
        cumulative[range.clone()].partition_point(|&sum| sum <= point) + range.start
    }
}

struct Draws<'a> {
    draw: &'a Draw,
    rng: ChaCha8Rng,
    /// The block that is being drawn from, how many draws of it are left, and the place in it of the next one.
    block: Range<usize>,
    left: usize,
    next: usize,
}

impl Draws<'_> {
    fn next(&mut self) -> Drawn {
        let Draw { count, blocks, .. } = self.draw;
        let which = match blocks {
            None => self.draw.within(0..*count, &mut self.rng).min(count - 1),
            Some(blocks) => blocks.order[self.next_in_block(blocks.size)] as usize,
        };
        Drawn { which, crop_seed: self.rng.random() }
    }

    /// A block is as likely as its samples together. Without weights they come one after another, from a random one on
    /// (a batch may end within a block; a last block that is smaller comes round again); with weights each is drawn
    /// anew within the block. Either way a sample's chance is that of the full shuffle.
    fn next_in_block(&mut self, size: usize) -> usize {
        let count = self.draw.count;
        let weighted = self.draw.cumulative.is_some();
        if self.left == 0 {
            let block = self.draw.within(0..count, &mut self.rng).min(count - 1) / size;
            self.block = block * size..((block + 1) * size).min(count);
            self.next = self.rng.random_range(self.block.clone());
            self.left = size;
        }
        self.left -= 1;
        if weighted {
            return self.draw.within(self.block.clone(), &mut self.rng).min(self.block.end - 1);
        }
        let at = self.next;
        self.next = if at + 1 == self.block.end { self.block.start } else { at + 1 };
        at
    }
}

/// What becomes of a sample on its way into a batch.
pub(crate) struct Prepare {
    tokenizer: Arc<Tokenizer>,
    size: usize,
    context_length: usize,
}

impl Prepare {
    pub fn new(model: &ModelConfig, tokenizer: Arc<Tokenizer>) -> Prepare {
        Prepare { tokenizer, size: model.vision_cfg.image_size, context_length: model.text_cfg.context_length }
    }

    pub fn sample(&self, sample: &Sample, crop_seed: u64) -> Result<(Vec<u32>, Vec<u8>)> {
        let Some(bytes) = &sample.image else { return Err(Error::Image { reason: "it is gone from the pool".into() }) };
        let mut decoded = image::decode(bytes)?;
        if !sample.faces.is_empty() {
            let (width, height) = (decoded.width() as usize, decoded.height() as usize);
            storage::images::blur_boxes(&mut decoded, width, height, &sample.faces);
        }
        let pixels = image::random_resized_crop(&decoded, self.size, &mut ChaCha8Rng::seed_from_u64(crop_seed));
        Ok((self.tokenizer.encode(sample.text.as_deref().unwrap_or(""), self.context_length), pixels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(count: usize, weights: Option<&[f64]>, block: Option<usize>) -> Draw {
        let mut sum = 0.0;
        let cumulative = weights.map(|weights| {
            let running = weights.iter().map(|weight| {
                sum += weight;
                sum
            });
            running.collect()
        });
        let blocks = block.map(|size| Blocks { order: (0..count as u32).rev().collect(), size });
        Draw { seed: 5, batch_size: 8, part: 0, parts: 1, count, cumulative, blocks }
    }

    fn counts(draw: &Draw, draws: usize) -> Vec<usize> {
        let mut counts = vec![0; draw.count];
        let mut step = draw.step(3);
        (0..draws).for_each(|_| counts[step.next().which] += 1);
        counts
    }

    #[test]
    fn draws_follow_the_weights() {
        let weights = [1.0, 0.0, 3.0, 4.0, 0.0, 2.0, 2.0];
        for (block, order) in [(None, [0, 1, 2, 3, 4, 5, 6]), (Some(3), [6, 5, 4, 3, 2, 1, 0])] {
            let counts = counts(&draw(7, Some(&weights), block), 60_000);
            for (place, weight) in weights.iter().enumerate() {
                let (got, expected) = (counts[order[place]] as f64, weight * 5_000.0);
                assert!((got - expected).abs() <= 0.08 * expected, "{block:?}: {got} draws of weight {weight}, expected {expected}");
            }
        }
    }

    #[test]
    fn parts_make_the_batch() {
        let drawn = |draw: &Draw, n: usize| {
            let mut draws = draw.part_of_step(7);
            (0..n).map(|_| draws()).collect::<Vec<Drawn>>()
        };
        let whole = drawn(&draw(100, None, None), 12);
        let of = |part: usize| drawn(&Draw { part, parts: 4, ..draw(100, None, None) }, 3);
        assert_eq!((0..4).flat_map(|part| of(part)[..2].to_vec()).collect::<Vec<_>>(), whole[..8]);
        // One that is replaced takes the next of its own.
        assert_eq!((0..4).map(|part| of(part)[2]).collect::<Vec<_>>(), whole[8..]);
    }

    #[test]
    fn blocks_are_whole_and_side_by_side() {
        let uniform = draw(10, None, Some(4));
        let mut step = uniform.step(0);
        for _ in 0..50 {
            let mut drawn: Vec<usize> = (0..4).map(|_| step.next().which).collect();
            drawn.sort();
            assert!([[6, 7, 8, 9], [2, 3, 4, 5], [0, 0, 1, 1]].iter().any(|block| block == &drawn[..]), "{drawn:?}");
        }
        // Also where a batch ends within a block.
        let mut counts = [0; 10];
        for number in 0..20_000 {
            let mut step = uniform.step(number);
            (0..3).for_each(|_| counts[step.next().which] += 1);
        }
        assert!(counts.iter().all(|count| (5_700..6_300).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_step_is_a_function_of_the_seed_and_its_number() {
        let draw = draw(1000, None, None);
        let of = |step: u64| {
            let mut draws = draw.step(step);
            (0..20).map(|_| draws.next()).collect::<Vec<_>>()
        };
        assert_eq!(of(7), of(7));
        assert_ne!(of(7), of(8));
    }
}
