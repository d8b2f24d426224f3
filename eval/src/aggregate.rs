//! DataComp's aggregates of the 38 tasks. Source: its `aggregate_scores.py`.

use crate::metric::mean;
use crate::task::{Task, scored};

/// The columns of DataComp's tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Aggregate {
    ImageNet,
    Shifts,
    Vtab,
    Retrieval,
    Average,
}

impl Aggregate {
    pub const ALL: [Aggregate; 5] = [Aggregate::ImageNet, Aggregate::Shifts, Aggregate::Vtab, Aggregate::Retrieval, Aggregate::Average];

    pub fn name(self) -> &'static str {
        match self {
            Aggregate::ImageNet => "ImageNet",
            Aggregate::Shifts => "ImageNet dist. shifts",
            Aggregate::Vtab => "VTAB",
            Aggregate::Retrieval => "Retrieval",
            Aggregate::Average => "Average over 38",
        }
    }

    fn holds(self, task: &Task) -> bool {
        const SHIFTS: [&str; 6] = ["imagenet_sketch", "imagenetv2", "imagenet-a", "imagenet-o", "imagenet-r", "objectnet"];
        match self {
            Aggregate::ImageNet => task.key == "imagenet1k",
            Aggregate::Shifts => SHIFTS.contains(&task.key.as_str()),
            Aggregate::Vtab => task.tags.iter().any(|tag| tag.starts_with("vtab")),
            Aggregate::Retrieval => task.tags.iter().any(|tag| tag == "retrieval"),
            Aggregate::Average => true,
        }
    }

    /// The tasks that it is the plain mean of: 1, 6, 13, 3 and 38.
    pub fn tasks(self) -> impl Iterator<Item = &'static Task> {
        scored().filter(move |task| self.holds(task))
    }

    /// The mean, none where a task of it has no score.
    pub fn of(self, score: impl Fn(&Task) -> Option<f64>) -> Option<f64> {
        let scores: Option<Vec<f64>> = self.tasks().map(score).collect();
        mean(scores?)
    }

    /// That of chance.
    pub fn chance(self) -> Option<f64> {
        self.of(|task| task.random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_groups_have_datacomps_sizes() {
        assert_eq!(Aggregate::ALL.map(|aggregate| aggregate.tasks().count()), [1, 6, 13, 3, 38]);
        assert_eq!(Aggregate::Shifts.of(|task| (task.key != "objectnet").then_some(1.0)), None);
        assert_eq!(Aggregate::Shifts.of(|_| Some(0.25)), Some(0.25));
    }
}
