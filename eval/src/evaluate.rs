use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use storage::{OnProgress, Progress};
use train::Encoder;

use crate::classifier::classifier;
use crate::data::{EvalSet, Labelled};
use crate::metric::{accuracy_at, mean_per_class_recall, top_k};
use crate::results::{RESULTS_FILE, TaskResult, read_results};
use crate::{Error, Result};

/// Images decoded and encoded at a time.
const CHUNK: usize = 256;

/// Evaluates a checkpoint on each set and writes `OUT/eval_results.jsonl`, a line as each task is done.
pub fn evaluate(
    encoder: &mut Encoder,
    sets: &[EvalSet],
    out: &Path,
    stop: &AtomicBool,
    on_progress: OnProgress<'_>,
) -> Result<Vec<TaskResult>> {
    std::fs::create_dir_all(out).map_err(Error::io(out))?;
    let path = out.join(RESULTS_FILE);
    let earlier = if path.exists() { read_results(out)? } else { Vec::new() };
    let mut results: Vec<TaskResult> = Vec::new();
    for (i, set) in sets.iter().enumerate() {
        on_progress(Progress { what: set.name.clone(), done: i as u64, total: sets.len() as u64, unit: "tasks" });
        let result = zero_shot(encoder, set, stop)?;
        results.push(result);
        // Other tasks' results stay; the file is replaced whole, so that a stop loses nothing.
        let kept = earlier.iter().filter(|old| results.iter().all(|new| new.key != old.key));
        let text: String = kept.chain(&results).map(TaskResult::line).collect();
        let part = path.with_extension("part");
        std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, &path)).map_err(Error::io(&path))?;
    }
    on_progress(Progress { what: String::new(), done: sets.len() as u64, total: sets.len() as u64, unit: "tasks" });
    Ok(results)
}

fn zero_shot(encoder: &mut Encoder, set: &EvalSet, stop: &AtomicBool) -> Result<TaskResult> {
    let classes = set.classnames.len();
    let weights = classifier(encoder, &set.classnames, &set.templates);
    let mut predictions = Predictions { top: Vec::new(), labels: Vec::new(), unreadable: 0 };
    let mut chunk = Vec::with_capacity(CHUNK);
    set.for_each(|sample| {
        chunk.push(sample);
        if chunk.len() == CHUNK {
            if stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted { task: set.key.clone() });
            }
            predictions.add(encoder, &weights, &std::mem::take(&mut chunk));
        }
        Ok(())
    })?;
    predictions.add(encoder, &weights, &chunk);
    let Predictions { top, labels, unreadable } = predictions;
    if labels.is_empty() {
        return Err(Error::NoSamples { path: set.folder.clone(), unreadable });
    }
    let mut metrics = BTreeMap::from([
        ("acc1".to_string(), accuracy_at(1, &top, &labels)),
        ("mean_per_class_recall".to_string(), mean_per_class_recall(&top, &labels, classes)),
    ]);
    if classes >= 5 {
        metrics.insert("acc5".to_string(), accuracy_at(5, &top, &labels));
    }
    let score = metrics.get(&set.metric).copied().unwrap_or(f64::NAN);
    metrics.insert("main_metric".to_string(), score);
    let samples = labels.len() as u64;
    Ok(TaskResult { key: set.key.clone(), dataset: set.name.clone(), metrics, samples, unreadable, main_metric: set.metric.clone() })
}

struct Predictions {
    /// The five best classes of each sample.
    top: Vec<Vec<usize>>,
    labels: Vec<usize>,
    unreadable: u64,
}

impl Predictions {
    fn add(&mut self, encoder: &mut Encoder, weights: &[f32], samples: &[Labelled]) {
        let dim = encoder.config().embed_dim;
        let read: Vec<Option<Vec<u8>>> = samples.par_iter().map(|sample| encoder.preprocess(&sample.image).ok()).collect();
        let labels = samples.iter().zip(&read).filter(|(_, pixels)| pixels.is_some()).map(|(sample, _)| sample.label);
        self.labels.extend(labels);
        self.unreadable += read.iter().filter(|pixels| pixels.is_none()).count() as u64;
        let mut features = encoder.encode_images(&read.into_iter().flatten().collect::<Vec<_>>());
        train::normalize_rows(&mut features, dim);
        // The factor 100 of the logits changes no order.
        let top = features.par_chunks_exact(dim).map(|feature| {
            let dot = |weight: &[f32]| weight.iter().zip(feature).map(|(w, f)| w * f).sum::<f32>();
            top_k(&weights.chunks_exact(dim).map(dot).collect::<Vec<_>>(), 5)
        });
        self.top.extend(top.collect::<Vec<_>>());
    }
}
