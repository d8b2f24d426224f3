//! Near duplicates of images: those whose perceptual hashes differ in few bits.

use std::collections::HashMap;

use futures::FutureExt;
use futures::future::BoxFuture;
use storage::{Pool, Uid, hashes};

use crate::{Error, Result};

/// An image that is dropped, the one that is kept for it, and the bits in which their hashes differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NearDuplicate {
    pub uid: Uid,
    pub like: Uid,
    pub distance: u32,
}

/// The images whose hash differs in at most `threshold` bits from that of one that is kept, in the order of their uids. Of
/// those that are alike the one with the highest value of the column `keep` is kept, without one, or of equals, that with
/// the least uid. Memory: 60 bytes an image.
pub fn near_duplicates<'a>(pool: &'a Pool, threshold: u32, keep: Option<&'a str>) -> BoxFuture<'a, Result<Vec<NearDuplicate>>> {
    async move {
        let missing = hashes::missing(pool).await?;
        if missing > 0 {
            return Err(Error::HashesMissing { images: missing });
        }
        let images = hashes::read_hashes(pool).await?;
        let mut order: Vec<u32> = (0..images.len() as u32).collect();
        if let Some(column) = keep {
            let uids: Vec<Uid> = images.iter().map(|(uid, _)| *uid).collect();
            let scores = hashes::scores_by_uid(pool, column, &uids).await?;
            let rank = |i: u32| if scores[i as usize].is_nan() { f32::NEG_INFINITY } else { scores[i as usize] };
            order.sort_by(|&a, &b| rank(b).total_cmp(&rank(a)).then(a.cmp(&b)));
        }
        tokio::task::spawn_blocking(move || among(&images, &order, threshold)).await.map_err(crate::indexes::joined)
    }
    .boxed()
}

/// Images `(uid, hash)` in the order of their uids, looked at in the order given.
fn among(images: &[(Uid, u64)], order: &[u32], threshold: u32) -> Vec<NearDuplicate> {
    let mut kept = Parts::new(threshold);
    let mut found = Vec::new();
    for &i in order {
        let (uid, hash) = images[i as usize];
        match kept.nearest(hash, |k| images[k as usize].1) {
            Some((distance, k)) => found.push(NearDuplicate { uid, like: images[k as usize].0, distance }),
            None => kept.add(hash, i),
        }
    }
    found.sort_unstable_by_key(|duplicate| duplicate.uid);
    found
}

/// An image of the pool that looks like one of an evaluation set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NearEvalImage {
    pub uid: Uid,
    pub task: String,
    pub sample: String,
    pub distance: u32,
}

/// The images whose hash differs in at most `threshold` bits from that of an evaluation image, each with the nearest, of
/// equals the first; in the order of their uids. Memory: 24 bytes an image and some 100 an evaluation image.
pub fn near_eval_images(pool: &Pool, threshold: u32) -> BoxFuture<'_, Result<Vec<NearEvalImage>>> {
    async move {
        let missing = hashes::missing(pool).await?;
        if missing > 0 {
            return Err(Error::HashesMissing { images: missing });
        }
        let known = pool.read_eval_hashes().await?;
        let images = hashes::read_hashes(pool).await?;
        let search = move || {
            let mut parts = Parts::new(threshold);
            known.iter().enumerate().for_each(|(i, image)| parts.add(image.hash, i as u32));
            let near = |(uid, hash): (Uid, u64)| {
                let (distance, at) = parts.nearest(hash, |i| known[i as usize].hash)?;
                let image = &known[at as usize];
                Some(NearEvalImage { uid, task: image.task.clone(), sample: image.sample.clone(), distance })
            };
            images.into_iter().filter_map(near).collect()
        };
        tokio::task::spawn_blocking(search).await.map_err(crate::indexes::joined)
    }
    .boxed()
}

/// Hashes by their parts: of two that differ in at most t bits one of t + 1 parts is the same.
struct Parts {
    threshold: u32,
    by_part: Vec<HashMap<u64, Vec<u32>>>,
}

impl Parts {
    fn new(threshold: u32) -> Parts {
        Parts { threshold, by_part: vec![HashMap::new(); threshold.min(63) as usize + 1] }
    }

    fn part(&self, hash: u64, i: usize) -> u64 {
        let (parts, i) = (self.by_part.len() as u32, i as u32);
        let (from, to) = (64 * i / parts, 64 * (i + 1) / parts);
        (hash >> from) & (u64::MAX >> (64 - (to - from)))
    }

    fn add(&mut self, hash: u64, id: u32) {
        for i in 0..self.by_part.len() {
            let part = self.part(hash, i);
            self.by_part[i].entry(part).or_default().push(id);
        }
    }

    /// The distance and id of the nearest, of equals the least.
    fn nearest(&self, hash: u64, hash_of: impl Fn(u32) -> u64) -> Option<(u32, u32)> {
        let near = self.by_part.iter().enumerate().filter_map(|(i, by_part)| by_part.get(&self.part(hash, i))).flatten();
        near.map(|&id| ((hash_of(id) ^ hash).count_ones(), id)).filter(|(distance, _)| *distance <= self.threshold).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_comparing_all_finds() {
        let uid = |i: u32| Uid((u128::from(i)).to_be_bytes());
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            state ^ (state >> 29)
        };
        let seeds: Vec<u64> = (0..60).map(|_| next()).collect();
        let images: Vec<(Uid, u64)> =
            (0..600u32).map(|i| (uid(i), seeds[i as usize % 60] ^ (1 << (next() % 64)) ^ (1 << (next() % 64)))).collect();
        let order: Vec<u32> = (0..600).rev().collect();
        for threshold in [0, 1, 3, 4, 8] {
            let mut kept: Vec<u32> = Vec::new();
            let mut dropped = Vec::new();
            for &i in &order {
                match kept.iter().any(|&k| (images[k as usize].1 ^ images[i as usize].1).count_ones() <= threshold) {
                    true => dropped.push(images[i as usize].0),
                    false => kept.push(i),
                }
            }
            dropped.sort_unstable();
            let found = among(&images, &order, threshold);
            assert_eq!(found.iter().map(|d| d.uid).collect::<Vec<_>>(), dropped, "threshold {threshold}");
            assert!(found.iter().all(|d| d.distance <= threshold));
        }
    }
}
