//! Metrics as pure functions of predictions and labels.

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
    classes
}

/// The share of samples whose label is among their first `k` classes.
pub fn accuracy_at(k: usize, top: &[Vec<usize>], labels: &[usize]) -> f64 {
    let hits = top.iter().zip(labels).filter(|(top, label)| top.iter().take(k).any(|class| class == *label)).count();
    hits as f64 / labels.len() as f64
}

/// The mean over the classes that occur of the share of their samples whose first class is right: scikit-learn's
/// `balanced_accuracy_score`.
pub fn mean_per_class_recall(top: &[Vec<usize>], labels: &[usize], classes: usize) -> f64 {
    let (mut right, mut all) = (vec![0u64; classes], vec![0u64; classes]);
    for (top, &label) in top.iter().zip(labels) {
        all[label] += 1;
        right[label] += u64::from(top[0] == label);
    }
    let recalls: Vec<f64> = right.iter().zip(&all).filter(|(_, all)| **all > 0).map(|(r, a)| *r as f64 / *a as f64).collect();
    recalls.iter().sum::<f64>() / recalls.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_by_hand() {
        let top = vec![vec![0, 1], vec![1, 0], vec![2, 0], vec![0, 2]];
        let labels = [0, 0, 2, 2];
        assert_eq!(accuracy_at(1, &top, &labels), 0.5);
        assert_eq!(accuracy_at(2, &top, &labels), 1.0);
        // Class 1 does not occur; classes 0 and 2 are right half of the time each.
        assert_eq!(mean_per_class_recall(&top, &labels, 3), 0.5);
        assert_eq!(mean_per_class_recall(&top[..1], &labels[..1], 3), 1.0);
    }

    #[test]
    fn ties_go_to_the_lower_class() {
        assert_eq!(top_k(&[0.5, 0.7, 0.7, 0.1], 3), [1, 2, 0]);
        assert_eq!(top_k(&[0.5], 5), [0]);
    }
}
