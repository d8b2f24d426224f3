use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Metrics, mean};

/// Accuracies of the samples that have the same values in some fields, and the worst of them.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grouping {
    /// What the metrics' names begin with.
    pub name: String,
    /// A sample is right if its label is among so many best classes.
    #[serde(default = "one")]
    pub top: usize,
    pub by: Vec<String>,
    /// The name of the worst group's accuracy, `NAME_wg` where it is not given.
    worst: Option<String>,
    /// Values of the first field that the worst is not sought among.
    #[serde(default)]
    pub without: Vec<i64>,
}

fn one() -> usize {
    1
}

impl Grouping {
    pub fn new(name: &str, by: &[&str]) -> Grouping {
        Grouping { name: name.into(), top: 1, by: by.iter().map(|by| by.to_string()).collect(), worst: None, without: Vec::new() }
    }

    pub fn worst(&self) -> String {
        self.worst.clone().unwrap_or_else(|| format!("{}_wg", self.name))
    }
}

/// More groups than this are not listed where they are empty.
const LISTED: usize = 4096;

/// WILDS's `standard_group_eval`: `NAME_avg`, and of each group `NAME_FIELD:VALUE` and `count_FIELD:VALUE`, of several
/// fields the last of `fields` first (`NAME_race:1_gender:0`). Groups up to the largest value of each field are listed
/// with a count of 0 where they are empty, and do not count for the worst. `values[n][fields]`.
pub fn group_accuracies(grouping: &Grouping, fields: &[String], values: &[Vec<i64>], right: &[bool]) -> Metrics {
    // In the order of the fields, whatever the order that they are asked for in.
    let by: Vec<usize> = (0..fields.len()).filter(|f| grouping.by.contains(&fields[*f])).collect();
    let mut groups: BTreeMap<Vec<i64>, (u64, u64)> = BTreeMap::new();
    for (values, right) in values.iter().zip(right) {
        let (hits, count) = groups.entry(by.iter().map(|f| values[*f]).collect()).or_default();
        *hits += u64::from(*right);
        *count += 1;
    }
    let largest: Vec<i64> = (0..by.len()).map(|i| groups.keys().map(|group| group[i]).max().unwrap_or(-1)).collect();
    let all = largest.iter().try_fold(1usize, |n, largest| n.checked_mul(usize::try_from(largest + 1).ok()?));
    for at in 0..all.filter(|all| *all <= LISTED).unwrap_or(0) {
        let mut rest = at as i64;
        let group = largest.iter().map(|largest| {
            let value = rest % (largest + 1);
            rest /= largest + 1;
            value
        });
        groups.entry(group.collect()).or_default();
    }
    let mut metrics = Metrics::from([(format!("{}_avg", grouping.name), mean(right.iter().map(|right| f64::from(*right))))]);
    let mut worst: Option<f64> = None;
    let first = by.iter().position(|f| fields[*f] == grouping.by[0]);
    for (group, (hits, count)) in groups {
        let named = by.iter().zip(&group).rev().map(|(f, value)| format!("{}:{value}", fields[*f]));
        let named = named.collect::<Vec<_>>().join("_");
        let accuracy = (count > 0).then(|| hits as f64 / count as f64);
        metrics.insert(format!("{}_{named}", grouping.name), accuracy);
        metrics.insert(format!("count_{named}"), Some(count as f64));
        if first.is_none_or(|first| !grouping.without.contains(&group[first])) {
            worst = worst.into_iter().chain(accuracy).reduce(f64::min);
        }
    }
    metrics.insert(grouping.worst(), worst);
    metrics
}
