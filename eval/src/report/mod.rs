//! Runs side by side: tables for the terminal and for papers, a page with plots, and a submission.

mod baselines;
mod html;
mod plot;
mod runs;
mod submission;
mod summary;
mod table;
mod tasks;

use std::path::PathBuf;

pub use html::html;
pub use runs::RunResults;
pub use submission::{Submission, submit};
pub use table::{Row, RowKind, Table};

use crate::{Error, Result};

/// The tables of some runs.
#[derive(Debug)]
pub struct Report {
    pub runs: Vec<RunResults>,
    /// A line a run, then repeated runs' means, published baselines of the same scale, and chance.
    pub summary: Table,
    /// A line a task of DataComp's list, a column a run.
    pub tasks: Option<Table>,
    /// The same for tasks that are not of the list, where the summary does not hold them.
    pub others: Option<Table>,
    /// What the reader must know: runs that are off their recipe, tasks that some runs lack.
    pub notes: Vec<String>,
    /// The run that others are compared with, by its place in `runs`, where one was chosen.
    pub against: Option<usize>,
}

/// Reads runs' folders, and those in the folders given, and lays them side by side in that order. `against` names the run
/// that differences are taken from.
pub fn report(folders: &[PathBuf], against: Option<&str>) -> Result<Report> {
    let (runs, mut notes) = runs::read(folders)?;
    let named = |name: &str| {
        let at = runs.iter().position(|run| run.name == name || run.folder.as_os_str() == name.trim_end_matches('/'));
        at.ok_or_else(|| Error::NoRun { name: name.to_string(), known: runs.iter().map(|run| run.name.clone()).collect() })
    };
    let against = against.map(named).transpose()?;
    notes.extend(summary::all_notes(&runs));
    Ok(Report {
        summary: summary::summary(&runs),
        tasks: tasks::listed(&runs, against),
        others: tasks::others(&runs, against),
        notes,
        against,
        runs,
    })
}

impl Report {
    /// All tables, in their order.
    pub fn tables(&self) -> Vec<Table> {
        let tables = [Some(self.summary.clone()), self.subsets(), self.tasks.clone(), self.others.clone()];
        tables.into_iter().flatten().collect()
    }

    /// What the subsets are like, where `facts` were given to runs.
    pub fn subsets(&self) -> Option<Table> {
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in self.runs.iter().flat_map(|run| &run.facts) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        let row = |run: &RunResults| {
            let fact = |name: &&str| run.facts.iter().find(|(of, _)| of == name).map_or("-".to_string(), |(_, value)| value.clone());
            let cells = std::iter::once(run.name.clone()).chain(names.iter().map(fact)).collect();
            Row { cells, kind: RowKind::Own, best: Vec::new() }
        };
        let header = std::iter::once("run").chain(names.iter().copied()).map(str::to_string).collect();
        let rows = self.runs.iter().map(row).collect();
        (!names.is_empty()).then(|| Table { title: "Subsets".into(), header, rows, scores_from: 1 })
    }

    /// A line a run with all that is known of it, unrounded.
    pub fn csv(&self) -> String {
        tasks::wide(&self.runs).csv()
    }
}

/// Three decimals, as DataComp's tables have them.
fn score(value: Option<f64>) -> String {
    value.map_or("-".to_string(), |value| format!("{value:.3}"))
}
