//! Zero-shot classification: the class whose classifier is nearest to the image.

use std::path::Path;

use rayon::prelude::*;
use train::Encoder;

use crate::classifier::Cache;
use crate::metric::{Metrics, accuracy_at, group_accuracies, macro_f1, mean_per_class_recall, top_k};
use crate::set::EvalSet;
use crate::source::{self, Sample};
use crate::stream::{Context, encode_images};
use crate::{Error, Evaluated, Result};

/// Classes kept of each sample.
const TOP: usize = 5;
/// clip_benchmark's factor of the cosines.
const SCALE: f32 = 100.0;

#[derive(Default)]
struct Predictions {
    top: Vec<Vec<usize>>,
    labels: Vec<usize>,
    fields: Vec<Vec<i64>>,
}

pub(crate) fn evaluate(
    encoder: &mut Encoder,
    set: &EvalSet,
    cache: &Cache,
    context: &Context,
    predictions: Option<&Path>,
) -> Result<Evaluated> {
    let weights = cache.classifier(encoder, set, &set.classnames, &set.templates, context)?;
    let (dim, classes) = (encoder.config().embed_dim, set.classnames.len());
    let mut writer = predictions.map(Writer::create).transpose()?;
    let mut p = Predictions::default();
    let produce = |emit: &mut dyn FnMut(Sample, u64) -> bool| source::samples(set, emit);
    let (_, unreadable) = encode_images(encoder, set, context, produce, |_, samples, features| {
        let mut logits = train::inner_products(features, &weights, dim);
        logits.iter_mut().for_each(|logit| *logit *= SCALE);
        let top: Vec<Vec<usize>> = logits.par_chunks_exact(classes).map(|logits| top_k(logits, TOP)).collect();
        for ((sample, top), logits) in samples.into_iter().zip(top).zip(logits.chunks_exact(classes)) {
            let label = label(&sample, set)?;
            if let Some(writer) = &mut writer {
                writer.row(&sample.key, label, &top, logits)?;
            }
            if !set.task.groups.is_empty() {
                check_fields(&sample, set)?;
                p.fields.push(sample.fields);
            }
            p.labels.push(label);
            p.top.push(top);
        }
        Ok(())
    })?;
    if let Some(writer) = writer {
        writer.finish()?;
    }
    Ok(Evaluated { metrics: metrics(set, &p), samples: p.labels.len() as u64, unreadable })
}

fn metrics(set: &EvalSet, p: &Predictions) -> Metrics {
    let (top, labels) = (&p.top, &p.labels);
    let mut metrics = Metrics::from([
        ("acc1".to_string(), accuracy_at(1, top, labels)),
        ("acc5".to_string(), if set.classnames.len() >= TOP { accuracy_at(TOP, top, labels) } else { None }),
        ("mean_per_class_recall".to_string(), mean_per_class_recall(top, labels)),
    ]);
    for score in &set.task.scores {
        let value = match score.as_str() {
            "recall-macro_all" => mean_per_class_recall(top, labels),
            "F1-macro_all" => macro_f1(top, labels),
            _ => accuracy_at(1, top, labels),
        };
        metrics.insert(score.clone(), value);
    }
    for group in &set.task.groups {
        let right: Vec<bool> = top.iter().zip(labels).map(|(top, label)| top.iter().take(group.top).any(|class| class == label)).collect();
        metrics.extend(group_accuracies(group, &set.task.fields, &p.fields, &right));
    }
    metrics
}

fn label(sample: &Sample, set: &EvalSet) -> Result<usize> {
    let wrong = |reason: String| Error::Sample { path: set.folder.clone(), key: sample.key.clone(), reason };
    let label = sample.label.ok_or_else(|| wrong("it has no label (.cls)".into()))?;
    let outside = || wrong(format!("its label {label} is outside the {} classes of classnames.txt", set.classnames.len()));
    usize::try_from(label).ok().filter(|label| *label < set.classnames.len()).ok_or_else(outside)
}

/// That a sample's `.npy` has the task's fields, as numbers that groups can have.
pub(crate) fn check_fields(sample: &Sample, set: &EvalSet) -> Result<()> {
    let (fields, got) = (&set.task.fields, &sample.fields);
    let wrong = |reason: String| Err(Error::Sample { path: set.folder.clone(), key: sample.key.clone(), reason });
    if got.len() != fields.len() {
        return wrong(format!("its .npy has {} numbers, expected {}: {}", got.len(), fields.len(), fields.join(", ")));
    }
    match fields.iter().zip(got).find(|(field, value)| **value < 0 && set.task.groups.iter().any(|group| group.by.contains(field))) {
        Some((field, value)) => wrong(format!("its {field} is {value}, expected 0 or more")),
        None => Ok(()),
    }
}

/// `key,label,top1..top5,logit1..logit5`, a line a sample.
struct Writer {
    csv: csv::Writer<std::fs::File>,
    path: std::path::PathBuf,
}

impl Writer {
    fn create(path: &Path) -> Result<Writer> {
        let folder = path.parent().unwrap_or(path);
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let csv = csv::Writer::from_path(path.with_extension("part")).map_err(|e| Error::io(path)(e.into()))?;
        let mut writer = Writer { csv, path: path.to_path_buf() };
        let numbered = |name: &'static str| (1..=TOP).map(move |i| format!("{name}{i}"));
        writer.write(["key".into(), "label".into()].into_iter().chain(numbered("top")).chain(numbered("logit")))?;
        Ok(writer)
    }

    fn row(&mut self, key: &str, label: usize, top: &[usize], logits: &[f32]) -> Result<()> {
        let of_top =
            |text: &dyn Fn(usize) -> String| (0..TOP).map(|i| top.get(i).map_or(String::new(), |class| text(*class))).collect::<Vec<_>>();
        let (classes, best) = (of_top(&|class| class.to_string()), of_top(&|class| format!("{:.4}", logits[class])));
        self.write([key.to_string(), label.to_string()].into_iter().chain(classes).chain(best))
    }

    fn write(&mut self, row: impl Iterator<Item = String>) -> Result<()> {
        self.csv.write_record(row).map_err(|e| Error::io(&self.path)(e.into()))
    }

    fn finish(mut self) -> Result<()> {
        let done = self.csv.flush().and_then(|()| storage::put_in_place(&self.path.with_extension("part"), &self.path));
        done.map_err(Error::io(&self.path))
    }
}

/// The class with the largest logit, of equal ones the lowest.
pub(crate) fn best(logits: &[f32]) -> usize {
    top_k(logits, 1)[0]
}
