//! The k nearest of what passes by.

use std::collections::BinaryHeap;

/// A row and how far it is, in the order of rank: by distance (NaN last), then by address.
#[derive(Debug, Clone, Copy)]
pub struct Neighbour {
    pub distance: f32,
    /// The row's address: its fragment in the upper half, its place there in the lower.
    pub row: u64,
}

impl Ord for Neighbour {
    fn cmp(&self, other: &Neighbour) -> std::cmp::Ordering {
        // A NaN of either sign is no distance.
        let key = |d: f32| if d.is_nan() { f32::NAN.abs() } else { d + 0.0 };
        key(self.distance).total_cmp(&key(other.distance)).then(self.row.cmp(&other.row))
    }
}

impl PartialOrd for Neighbour {
    fn partial_cmp(&self, other: &Neighbour) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Neighbour {
    fn eq(&self, other: &Neighbour) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Neighbour {}

/// A bounded heap: the worst of the kept is on top.
#[derive(Debug, Clone)]
pub(crate) struct Top {
    k: usize,
    kept: BinaryHeap<Neighbour>,
}

impl Top {
    pub fn new(k: usize) -> Top {
        Top { k, kept: BinaryHeap::new() }
    }

    /// What a distance must not exceed to be kept.
    pub fn bound(&self) -> f32 {
        match self.kept.peek() {
            Some(worst) if self.kept.len() >= self.k && !worst.distance.is_nan() => worst.distance,
            _ if self.k == 0 => f32::NEG_INFINITY,
            _ => f32::INFINITY,
        }
    }

    pub fn push(&mut self, neighbour: Neighbour) {
        if self.kept.len() < self.k {
            self.kept.push(neighbour);
        } else if let Some(mut worst) = self.kept.peek_mut()
            && neighbour < *worst
        {
            *worst = neighbour;
        }
    }

    pub fn capacity(&self) -> usize {
        self.k
    }

    pub fn len(&self) -> usize {
        self.kept.len()
    }

    pub fn into_sorted(self) -> Vec<Neighbour> {
        self.kept.into_sorted_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_nearest_in_order_whatever_the_order_they_come_in() {
        let distances = [3.0, 1.0, f32::NAN, 2.0, 1.0, 5.0, -f32::NAN];
        for rotation in 0..distances.len() {
            let mut top = Top::new(4);
            for i in 0..distances.len() {
                let row = (i + rotation) % distances.len();
                top.push(Neighbour { distance: distances[row], row: row as u64 });
            }
            assert_eq!(top.bound(), 3.0);
            let rows: Vec<u64> = top.into_sorted().iter().map(|n| n.row).collect();
            assert_eq!(rows, [1, 4, 3, 0], "rotation {rotation}");
        }
        let mut none = Top::new(0);
        none.push(Neighbour { distance: 0.0, row: 0 });
        assert_eq!(none.into_sorted(), []);
    }
}
