/// Which candidates are chosen: the `n` with the highest scores, of equal scores the later.
pub fn chosen(scores: &[f32], n: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(b.cmp(a)));
    let mut chosen = vec![false; scores.len()];
    order.iter().take(n).for_each(|i| chosen[*i] = true);
    chosen
}

/// The size of the intersection over that of the union, 0 of nothing: scikit-learn's `jaccard_score`.
pub fn jaccard(a: &[bool], b: &[bool]) -> f64 {
    let both = a.iter().zip(b).filter(|(a, b)| **a && **b).count();
    let any = a.iter().zip(b).filter(|(a, b)| **a || **b).count();
    if any == 0 { 0.0 } else { both as f64 / any as f64 }
}
