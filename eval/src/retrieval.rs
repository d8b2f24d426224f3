//! Image-text retrieval: recalls as clip_benchmark counts them.

use train::Encoder;

use crate::metric::{Metrics, first_hits, mean};
use crate::set::EvalSet;
use crate::source::{self, Sample};
use crate::stream::{Context, encode_images};
use crate::{Evaluated, Result};

const K: [usize; 3] = [1, 5, 10];

/// The names of all metrics.
pub(crate) fn metrics() -> Vec<String> {
    let of = |k: usize| ["image", "text"].map(|what| format!("{what}_retrieval_recall@{k}"));
    K.into_iter().flat_map(of).chain(["mean_recall@1".to_string()]).collect()
}

/// Every image with all its captions; one without finds none. Holds 4 bytes a dimension of each image and caption.
pub(crate) fn evaluate(encoder: &mut Encoder, set: &EvalSet, context: &Context) -> Result<Evaluated> {
    let dim = encoder.config().embed_dim;
    let (mut images, mut captions, mut image_of): (Vec<f32>, Vec<f32>, Vec<usize>) = Default::default();
    let produce = |emit: &mut dyn FnMut(Sample, u64) -> bool| source::samples(set, emit);
    let (_, unreadable) = encode_images(encoder, set, context, produce, |encoder, samples, features| {
        let first = images.len() / dim;
        images.extend_from_slice(features);
        let mut texts = Vec::new();
        for (i, sample) in samples.into_iter().enumerate() {
            image_of.extend(std::iter::repeat_n(first + i, sample.captions.len()));
            texts.extend(sample.captions);
        }
        let mut features = encoder.encode_texts(&texts)?;
        train::normalize_rows(&mut features, dim);
        captions.extend(features);
        Ok(())
    })?;
    let to_images = first_hits(&captions, &images, dim, |caption, image| image_of[caption] == image);
    let to_texts = first_hits(&images, &captions, dim, |image, caption| image_of[caption] == image);
    Ok(Evaluated { metrics: recalls(&to_images, &to_texts), samples: to_texts.len() as u64, unreadable })
}

/// From the places of the first hits: `image_retrieval_recall@k` of captions that look for their image,
/// `text_retrieval_recall@k` of images that look for one of their captions, and the mean of both at 1.
pub fn recalls(to_images: &[usize], to_texts: &[usize]) -> Metrics {
    let recall = |hits: &[usize], k: usize| mean(hits.iter().map(|hit| f64::from(*hit < k)));
    let mut metrics = Metrics::new();
    for k in K {
        metrics.insert(format!("image_retrieval_recall@{k}"), recall(to_images, k));
        metrics.insert(format!("text_retrieval_recall@{k}"), recall(to_texts, k));
    }
    let both = recall(to_images, 1).zip(recall(to_texts, 1));
    metrics.insert("mean_recall@1".into(), both.map(|(image, text)| 0.5 * (image + text)));
    metrics
}
