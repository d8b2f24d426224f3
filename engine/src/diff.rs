//! Two subsets side by side.

use std::cmp::Ordering;

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use storage::{Subset, Uid};

use crate::{Result, Session};

/// How two subsets relate. Entries that a subset has twice count once.
#[derive(Debug, Clone, PartialEq)]
pub struct Diff {
    pub left: u64,
    pub right: u64,
    pub both: u64,
    /// Samples of one side alone: uid and caption, a few drawn at random, the same at every run.
    pub only_left: Vec<(Uid, String)>,
    pub only_right: Vec<(Uid, String)>,
}

impl Diff {
    /// The size of the intersection over that of the union; 1 for two empty subsets.
    pub fn jaccard(&self) -> f64 {
        match self.left + self.right - self.both {
            0 => 1.0,
            union => self.both as f64 / union as f64,
        }
    }
}

impl Session {
    /// Compares two subsets, with at most `examples` samples of each side.
    pub fn diff<'a>(&'a self, left: &'a Subset, right: &'a Subset, examples: usize) -> BoxFuture<'a, Result<Diff>> {
        async move {
            let mut diff = Diff { left: 0, right: 0, both: 0, only_left: vec![], only_right: vec![] };
            let (mut of_left, mut of_right) = (Drawn::new(examples), Drawn::new(examples));
            let (mut left, mut right) = (unique(left), unique(right));
            let (mut a, mut b) = (left.next(), right.next());
            loop {
                let order = match (a, b) {
                    (Some(a), Some(b)) => a.cmp(&b),
                    (Some(_), None) => Ordering::Less,
                    (None, Some(_)) => Ordering::Greater,
                    (None, None) => break,
                };
                if order.is_le() {
                    diff.left += 1;
                    of_left.offer(a.filter(|_| order.is_lt()));
                    a = left.next();
                }
                if order.is_ge() {
                    diff.right += 1;
                    of_right.offer(b.filter(|_| order.is_gt()));
                    b = right.next();
                }
                diff.both += u64::from(order.is_eq());
            }
            diff.only_left = self.captions(of_left).await?;
            diff.only_right = self.captions(of_right).await?;
            Ok(diff)
        }
        .boxed()
    }

    async fn captions(&self, drawn: Drawn) -> Result<Vec<(Uid, String)>> {
        if drawn.least.is_empty() {
            return Ok(Vec::new());
        }
        let has_text = self.tables().await.iter().any(|(table, columns)| table == "pool" && columns.iter().any(|(name, _)| name == "text"));
        let uids = drawn.least.iter().map(|(_, uid)| format!("'{uid}'")).collect::<Vec<_>>().join(", ");
        let text = if has_text { "text" } else { "NULL" };
        let rows =
            self.sql(&format!("SELECT uid, CAST({text} AS VARCHAR) AS text FROM pool WHERE uid IN ({uids}) ORDER BY uid"), &[]).await?;
        let batches: Vec<_> = rows.try_collect().await.map_err(|e| self.error(e))?;
        let mut samples = Vec::new();
        for batch in &batches {
            let texts = cast(&batch["text"], &DataType::Utf8).map_err(|e| self.error(e.into()))?;
            let (uids, texts) = (batch["uid"].as_fixed_size_binary(), texts.as_string::<i32>());
            for i in 0..batch.num_rows() {
                let text = if texts.is_valid(i) { texts.value(i).to_string() } else { String::new() };
                samples.push((Uid(uids.value(i).try_into().expect("uids are 16 bytes wide")), text));
            }
        }
        Ok(samples)
    }
}

fn unique(subset: &Subset) -> impl Iterator<Item = Uid> + '_ {
    let uids = subset.uids();
    (0..uids.len()).filter(|i| *i == 0 || uids[i - 1] != uids[*i]).map(|i| uids[i])
}

/// The uids with the least hashes of all offered.
struct Drawn {
    most: usize,
    least: Vec<(u64, Uid)>,
}

impl Drawn {
    fn new(most: usize) -> Drawn {
        Drawn { most, least: Vec::new() }
    }

    fn offer(&mut self, uid: Option<Uid>) {
        let Some(uid) = uid else { return };
        let entry = (twox_hash::XxHash64::oneshot(0, &uid.0), uid);
        if self.least.len() == self.most && self.least.last().is_none_or(|last| entry >= *last) {
            return;
        }
        let at = self.least.partition_point(|other| *other < entry);
        self.least.insert(at, entry);
        self.least.truncate(self.most);
    }
}
