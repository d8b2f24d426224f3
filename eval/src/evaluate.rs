use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use storage::OnProgress;
use train::{Encoder, hex};

use crate::classifier::Cache;
use crate::metric::Metrics;
use crate::results::{Journal, TaskResult, predictions};
use crate::set::EvalSet;
use crate::stream::{Context, Unreadable};
use crate::task::Kind;
use crate::{Error, Result, association, classification, faces, retrieval};

/// How an evaluation goes about its results.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Evaluate again what the folder has results of, and forget those of other weights.
    pub overwrite: bool,
    /// Write `OUT/predictions/KEY.csv` for classifications: label, best classes and logits of each sample.
    pub predictions: bool,
}

/// What an evaluation says of itself while it runs.
pub enum Event<'a> {
    /// The task was evaluated before.
    Known(&'a TaskResult),
    Done(&'a TaskResult, &'a Unreadable),
    /// The others go on.
    Failed(&'a EvalSet, &'a Error),
}

/// A task's metrics before they have a place in a file.
pub(crate) struct Evaluated {
    pub metrics: Metrics,
    pub samples: u64,
    pub unreadable: Unreadable,
}

/// Evaluates a checkpoint on each set and adds a line to the results in `out` as each is done: `eval_results.jsonl`, and
/// `eval_results_other.jsonl` for what is not of DataComp's list. Tasks that `out` has from the same weights and data are
/// not evaluated again, so that a second call goes on where the first was stopped. A set that cannot be evaluated is
/// reported, and costs nothing but itself. Gives the results of all sets that have one.
pub fn evaluate(
    encoder: &mut Encoder,
    sets: &[EvalSet],
    out: &Path,
    options: Options,
    stop: &AtomicBool,
    on_progress: OnProgress<'_>,
    on_event: &dyn Fn(Event),
) -> Result<Vec<TaskResult>> {
    let checkpoint = hex(&encoder.digest()?);
    let mut journal = Journal::open(out, &checkpoint, options.overwrite)?;
    let cache = Cache::new(out, &checkpoint);
    let mut results = Vec::new();
    for (i, set) in sets.iter().enumerate() {
        let data = set.digest();
        let file = predictions(out, &set.task.key);
        let predictions = (options.predictions && set.task.kind == Kind::Classification).then(|| file.clone());
        let known = journal.results.iter().find(|result| result.key == set.task.key && result.data == data);
        let asked = options.overwrite || predictions.as_ref().is_some_and(|path| !path.exists());
        if let Some(known) = known.filter(|_| !asked) {
            on_event(Event::Known(known));
            results.push(known.clone());
            continue;
        }
        let context = Context { what: format!("{} of {}: {}", i + 1, sets.len(), set.task.name), stop, on_progress };
        let start = Instant::now();
        // Those there may be are of other data.
        let _ = std::fs::remove_file(&file);
        let evaluated = match set.task.kind {
            Kind::Classification => classification::evaluate(encoder, set, &cache, &context, predictions.as_deref()),
            Kind::Faces => faces::evaluate(encoder, set, &cache, &context),
            Kind::Retrieval => retrieval::evaluate(encoder, set, &context),
            Kind::Association => association::evaluate(encoder, set, &context),
        };
        match evaluated.and_then(|evaluated| some(evaluated, set)) {
            Ok(evaluated) => {
                let result = result(set, &evaluated, &checkpoint, data, start.elapsed().as_secs_f64());
                journal.add(result.clone())?;
                on_event(Event::Done(&result, &evaluated.unreadable));
                results.push(result);
            }
            Err(stopped @ Error::Interrupted { .. }) => return Err(stopped),
            Err(e) => on_event(Event::Failed(set, &e)),
        }
    }
    Ok(results)
}

fn some(evaluated: Evaluated, set: &EvalSet) -> Result<Evaluated> {
    match evaluated.samples {
        0 => {
            let Unreadable { count, first } = evaluated.unreadable;
            Err(Error::NoSamples { path: set.folder.clone(), unreadable: count, first })
        }
        _ => Ok(evaluated),
    }
}

fn result(set: &EvalSet, evaluated: &Evaluated, checkpoint: &str, data: String, seconds: f64) -> TaskResult {
    let mut metrics = evaluated.metrics.clone();
    let main = set.task.metric.as_ref().and_then(|metric| metrics.get(metric).copied().flatten());
    metrics.insert("main_metric".to_string(), main);
    let by_class = matches!(set.task.metric.as_deref(), Some("acc1" | "mean_per_class_recall" | "acc_avg"));
    TaskResult {
        key: set.task.key.clone(),
        dataset: set.task.name.clone(),
        metrics,
        metric: set.task.metric.clone(),
        random: set.task.random.or(by_class.then(|| 1.0 / set.classnames.len() as f64)),
        samples: evaluated.samples,
        unreadable: evaluated.unreadable.count,
        checkpoint: checkpoint.to_string(),
        data,
        seconds,
    }
}
