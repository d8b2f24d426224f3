//! Images from disk to features, decoded on all cores while the model runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use rayon::prelude::*;
use storage::{OnProgress, Progress};
use train::Encoder;

use crate::set::EvalSet;
use crate::source::Sample;
use crate::{Error, Result};

/// Batches that wait for the model at most.
const AHEAD: usize = 2;

/// What a task's evaluation needs besides the model and the data.
pub(crate) struct Context<'a> {
    /// Stands before progress, for instance `3 of 38: CIFAR-10`.
    pub what: String,
    pub stop: &'a AtomicBool,
    pub on_progress: OnProgress<'a>,
}

impl Context<'_> {
    pub fn check(&self, set: &EvalSet) -> Result<()> {
        match self.stop.load(Ordering::Relaxed) {
            true => Err(Error::Interrupted { task: set.task.name.clone() }),
            false => Ok(()),
        }
    }

    pub fn progress(&self, doing: &str, done: u64, total: u64, unit: &'static str) {
        (self.on_progress)(Progress { what: format!("{}{doing}", self.what), done, total, unit });
    }
}

/// Images whose bytes are no picture, and why the first is none.
#[derive(Debug, Default)]
pub struct Unreadable {
    pub count: u64,
    pub first: Option<String>,
}

struct Decoded {
    samples: Vec<Sample>,
    pixels: Vec<Vec<u8>>,
    unreadable: Vec<String>,
    bytes: u64,
}

/// Takes a sample, and the bytes of the set that have been read.
pub(crate) type Emit<'a> = &'a mut dyn FnMut(Sample, u64) -> bool;

/// Gives `each` the samples that `produce` emits, in their order and without those whose image cannot be read, and their
/// normalised features `[n, embed_dim]`. Memory: some batches, whatever the size of the set.
pub(crate) fn encode_images<T: Send>(
    encoder: &mut Encoder,
    set: &EvalSet,
    context: &Context,
    produce: impl FnOnce(Emit) -> Result<T> + Send,
    mut each: impl FnMut(&mut Encoder, Vec<Sample>, &[f32]) -> Result<()>,
) -> Result<(T, Unreadable)> {
    let dim = encoder.config().embed_dim;
    let (preprocess, batch) = (encoder.preprocessor(), encoder.batch());
    let (sender, receiver) = sync_channel(AHEAD);
    std::thread::scope(|scope| {
        let producer = scope.spawn(move || {
            let mut waiting = Vec::with_capacity(batch);
            let mut read = 0;
            let produced = produce(&mut |sample, bytes| {
                waiting.push(sample);
                read = bytes;
                waiting.len() < batch || send(&sender, std::mem::take(&mut waiting), bytes, &preprocess)
            })?;
            send(&sender, waiting, read, &preprocess);
            Ok(produced)
        });
        let mut unreadable = Unreadable::default();
        let mut images = 0;
        while let Some(batch) = next(&receiver, set, context)? {
            unreadable.count += batch.unreadable.len() as u64;
            unreadable.first = unreadable.first.or(batch.unreadable.into_iter().next());
            images += batch.samples.len();
            let mut features = encoder.encode_images(&batch.pixels)?;
            train::normalize_rows(&mut features, dim);
            each(encoder, batch.samples, &features)?;
            context.progress(&format!(", {images} images"), batch.bytes.min(set.bytes), set.bytes, "bytes");
        }
        // The receiver's end ends the producer, should it still be at work.
        drop(receiver);
        let produced: Result<T> = producer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok((produced?, unreadable))
    })
}

/// The next batch, none at the end.
fn next(receiver: &Receiver<Decoded>, set: &EvalSet, context: &Context) -> Result<Option<Decoded>> {
    use std::sync::mpsc::RecvTimeoutError::{Disconnected, Timeout};
    loop {
        context.check(set)?;
        match receiver.recv_timeout(Duration::from_millis(50)) {
            Ok(batch) => return Ok(Some(batch)),
            Err(Timeout) => {}
            Err(Disconnected) => return Ok(None),
        }
    }
}

/// False where nobody listens any more.
fn send(
    sender: &SyncSender<Decoded>,
    samples: Vec<Sample>,
    bytes: u64,
    preprocess: &(impl Fn(&[u8]) -> train::Result<Vec<u8>> + Sync),
) -> bool {
    let pixels = samples.into_par_iter().map(|mut sample| {
        let pixels = match sample.image.take() {
            Some(image) => preprocess(&image).map_err(|e| format!("{}: {e}", sample.key)),
            None => Err(format!("{}: it has no image (webp, png, jpg or jpeg)", sample.key)),
        };
        (sample, pixels)
    });
    let mut decoded = Decoded { samples: Vec::new(), pixels: Vec::new(), unreadable: Vec::new(), bytes };
    for (sample, pixels) in pixels.collect::<Vec<_>>() {
        match pixels {
            Ok(pixels) => {
                decoded.samples.push(sample);
                decoded.pixels.push(pixels);
            }
            Err(reason) => decoded.unreadable.push(reason),
        }
    }
    sender.send(decoded).is_ok()
}
