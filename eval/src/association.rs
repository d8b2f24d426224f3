//! Associations of a cue with images, as WinoGAViL asks for them (Bitton et al. 2022, arXiv 2207.12576).

use std::collections::HashMap;

use sha2::{Digest, Sha256};
use train::Encoder;

use crate::metric::{Metrics, chosen, jaccard, mean};
use crate::set::EvalSet;
use crate::source::{self, Sample};
use crate::stream::{Context, Emit, encode_images};
use crate::{Evaluated, Result};

pub(crate) const METRICS: [&str; 7] = [
    "avg_jaccard_score",
    "jaccard_score_5",
    "jaccard_score_6",
    "jaccard_score_10",
    "jaccard_score_12",
    "jaccard_score_5-6",
    "jaccard_score_10-12",
];

/// A cue, and which of the images are its candidates.
struct Question {
    cue: String,
    images: Vec<usize>,
    associated: Vec<bool>,
}

/// Images are asked about again and again: each is encoded once. Holds 4 bytes a dimension of each.
pub(crate) fn evaluate(encoder: &mut Encoder, set: &EvalSet, context: &Context) -> Result<Evaluated> {
    let dim = encoder.config().embed_dim;
    let (mut features, mut place): (Vec<f32>, HashMap<usize, usize>) = Default::default();
    let (questions, mut unreadable) = encode_images(
        encoder,
        set,
        context,
        |emit| questions(set, emit),
        |_, samples, rows| {
            for sample in samples {
                // The producer gave each image a number for its label.
                place.insert(sample.label.unwrap_or_default() as usize, place.len());
            }
            features.extend_from_slice(rows);
            Ok(())
        },
    )?;
    let prompts: Vec<String> = questions.iter().map(|question| prompt(&question.cue)).collect();
    let mut cues = encoder.encode_texts(&prompts)?;
    train::normalize_rows(&mut cues, dim);
    let mut scores = Vec::new();
    unreadable.count = 0;
    for (question, cue) in questions.iter().zip(cues.chunks_exact(dim)) {
        let images: Option<Vec<usize>> = question.images.iter().map(|image| place.get(image).copied()).collect();
        let Some(images) = images else {
            unreadable.count += 1; // one of its images cannot be read
            continue;
        };
        let dot = |image: usize| cue.iter().zip(&features[image * dim..]).map(|(a, b)| a * b).sum();
        let similar: Vec<f32> = images.into_iter().map(dot).collect();
        let n = question.associated.iter().filter(|associated| **associated).count();
        scores.push((question.images.len(), jaccard(&question.associated, &chosen(&similar, n))));
    }
    Ok(Evaluated { metrics: metrics(&scores), samples: scores.len() as u64, unreadable })
}

/// Emits each different image once.
fn questions(set: &EvalSet, emit: Emit) -> Result<Vec<Question>> {
    let mut seen: HashMap<[u8; 32], usize> = HashMap::new();
    let mut questions = Vec::new();
    source::instances(set, &mut |instance, bytes| {
        let mut images = Vec::new();
        for image in instance.candidates {
            let next = seen.len();
            let number = *seen.entry(Sha256::digest(image.as_deref().unwrap_or_default()).into()).or_insert(next);
            images.push(number);
            let sample = || Sample { key: instance.key.clone(), image, label: Some(number as i64), ..Sample::default() };
            if number == next && !emit(sample(), bytes) {
                return false;
            }
        }
        questions.push(Question { cue: instance.cue, images, associated: instance.associated });
        true
    })?;
    Ok(questions)
}

/// `A cue`, `An apple`.
fn prompt(cue: &str) -> String {
    let cue = cue.to_lowercase();
    match cue.starts_with(['a', 'e', 'i', 'o', 'u']) {
        true => format!("An {cue}"),
        false => format!("A {cue}"),
    }
}

/// Means of Jaccard indexes, of all questions and by the number of their candidates. `scores[n]`: candidates and index.
pub fn metrics(scores: &[(usize, f64)]) -> Metrics {
    let of = |wanted: &dyn Fn(usize) -> bool| mean(scores.iter().filter(|(n, _)| wanted(*n)).map(|(_, score)| *score));
    METRICS
        .into_iter()
        .map(|name| {
            let value = match name.trim_start_matches("jaccard_score_") {
                "5-6" => of(&|n| n <= 6),
                "10-12" => of(&|n| n >= 10),
                n => n.parse().map_or_else(|_| of(&|_| true), |n: usize| of(&|candidates| candidates == n)),
            };
            (name.to_string(), value)
        })
        .collect()
}
