use super::mean;

/// The `k` classes with the largest logits, best first; of equal logits the lower class comes first.
pub fn top_k(logits: &[f32], k: usize) -> Vec<usize> {
    let mut classes: Vec<usize> = (0..logits.len()).collect();
    let k = k.min(classes.len());
    let by_logit = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
    if k < classes.len() {
        classes.select_nth_unstable_by(k, by_logit);
    }
    classes.truncate(k);
    classes.sort_by(by_logit);
    classes.shrink_to_fit(); // these are kept, of every sample
    classes
}

/// The share of samples whose label is among their first `k` classes.
pub fn accuracy_at(k: usize, top: &[Vec<usize>], labels: &[usize]) -> Option<f64> {
    mean(top.iter().zip(labels).map(|(top, label)| f64::from(top.iter().take(k).any(|class| class == label))))
}

/// The mean over the classes that occur of the share of their samples whose first class is right: scikit-learn's
/// `balanced_accuracy_score`, and its `recall_score(average="macro")` over those labels.
pub fn mean_per_class_recall(top: &[Vec<usize>], labels: &[usize]) -> Option<f64> {
    mean(counts(top, labels).iter().filter(|c| c.labelled > 0).map(|c| c.right as f64 / c.labelled as f64))
}

/// scikit-learn's `f1_score(average="macro")` over the labels that occur: the mean of 2 · right / (labelled + predicted).
pub fn macro_f1(top: &[Vec<usize>], labels: &[usize]) -> Option<f64> {
    let f1 = |c: &Count| 2.0 * c.right as f64 / (c.labelled + c.predicted) as f64;
    mean(counts(top, labels).iter().filter(|c| c.labelled > 0).map(f1))
}

#[derive(Clone, Copy, Default)]
struct Count {
    right: u64,
    labelled: u64,
    predicted: u64,
}

/// Of each class.
fn counts(top: &[Vec<usize>], labels: &[usize]) -> Vec<Count> {
    let classes = top.iter().map(|top| top[0]).chain(labels.iter().copied()).max().map_or(0, |class| class + 1);
    let mut counts = vec![Count::default(); classes];
    for (top, &label) in top.iter().zip(labels) {
        counts[label].labelled += 1;
        counts[top[0]].predicted += 1;
        counts[label].right += u64::from(top[0] == label);
    }
    counts
}
