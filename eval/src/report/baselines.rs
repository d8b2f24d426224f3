use serde::Deserialize;

use crate::Aggregate;

/// A published row of scores.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Baseline {
    pub scale: String,
    pub filter: String,
    pub dataset_size: String,
    pub samples_seen: String,
    imagenet: f64,
    imagenet_dist_shifts: f64,
    vtab: f64,
    retrieval: f64,
    average_38: f64,
}

impl Baseline {
    pub fn score(&self, aggregate: Aggregate) -> f64 {
        match aggregate {
            Aggregate::ImageNet => self.imagenet,
            Aggregate::Shifts => self.imagenet_dist_shifts,
            Aggregate::Vtab => self.vtab,
            Aggregate::Retrieval => self.retrieval,
            Aggregate::Average => self.average_38,
        }
    }
}

/// DataComp's baselines at a scale, none for scales that it does not have.
pub(crate) fn baselines(scale: &str) -> Vec<Baseline> {
    let mut reader = csv::ReaderBuilder::new().comment(Some(b'#')).from_reader(include_str!("../../baselines.csv").as_bytes());
    let all = reader.deserialize().map(|row| row.expect("the list of baselines is sound"));
    all.filter(|baseline: &Baseline| baseline.scale == scale).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_sound() {
        assert_eq!(["small", "medium", "large", "xlarge", "tiny"].map(|scale| baselines(scale).len()), [7, 7, 7, 4, 0]);
        assert_eq!(baselines("xlarge")[3].score(Aggregate::ImageNet), 0.792);
    }
}
