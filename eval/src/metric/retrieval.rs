use rayon::prelude::*;

/// Rows of scores that are held at a time.
const BLOCK: usize = 256;

/// For each query, how many of the others score higher than the best that belongs to it: 0 where that is the first. Of
/// equal scores the earlier is higher. `queries[n, dim]`, `others[m, dim]`, `belongs(query, other)`; a query that nothing
/// belongs to gets `usize::MAX`.
///
/// The share of queries with less than k is recall at k as clip_benchmark counts it: a hit is one of those that belong
/// among the first k.
pub fn first_hits(queries: &[f32], others: &[f32], dim: usize, belongs: impl Fn(usize, usize) -> bool + Sync) -> Vec<usize> {
    let m = others.len() / dim;
    let mut hits = Vec::with_capacity(queries.len() / dim);
    for (block, queries) in queries.chunks(BLOCK * dim).enumerate() {
        let scores = train::inner_products(queries, others, dim);
        let rank = |(i, scores): (usize, &[f32])| {
            let query = block * BLOCK + i;
            let of_it = (0..m).filter(|other| belongs(query, *other));
            // NaN is below everything.
            let score = |other: usize| if scores[other].is_nan() { f32::NEG_INFINITY } else { scores[other] };
            let best = of_it.reduce(|best, other| if score(other) > score(best) { other } else { best })?;
            let higher = |other: &usize| score(*other) > score(best) || (score(*other) == score(best) && *other < best);
            Some((0..m).filter(higher).count())
        };
        hits.par_extend(scores.par_chunks_exact(m.max(1)).enumerate().map(|at| rank(at).unwrap_or(usize::MAX)));
    }
    hits
}
