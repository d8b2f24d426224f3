use super::baselines::{Baseline, baselines};
use super::runs::{RunResults, ScoreOf};
use super::score;
use super::table::{Row, RowKind, Table};
use crate::Aggregate;
use crate::metric::mean;
use crate::results::TaskResult;
use crate::task::scored;

/// A column of scores.
struct Column<'a> {
    name: String,
    of: ScoreOf<'a>,
    chance: Option<f64>,
    published: Option<Aggregate>,
}

pub(super) fn summary(runs: &[RunResults]) -> Table {
    let columns = match runs.iter().any(RunResults::has_listed) {
        true => of_datacomp(runs),
        false => of_others(runs),
    };
    let fixed = ["run", "filter", "subset size", "samples seen"].map(str::to_string);
    let mut rows: Vec<Row> = Vec::new();
    let mut add = |kind: RowKind, [name, filter, size, seen]: [String; 4], scores: Vec<String>| {
        let cells = [name, filter, size, seen].into_iter().chain(scores).collect();
        rows.push(Row { cells, kind, best: Vec::new() });
    };
    for run in runs {
        let [filter, size, seen] = match &run.run {
            Some(of) => [of.receipt.filter.clone(), short(of.receipt.subset_size), short(run.samples_seen)],
            None => ["-", "-", "-"].map(str::to_string),
        };
        add(RowKind::Own, [run.name.clone(), filter, size, seen], columns.iter().map(|column| score((column.of)(run))).collect());
    }
    for repeats in repeats(runs) {
        let Some(of) = repeats[0].run.as_ref() else { continue };
        let scores = columns.iter().map(|column| {
            let values: Option<Vec<f64>> = repeats.iter().map(|run| (column.of)(run)).collect();
            values.map_or("-".to_string(), |values| with_error(&values))
        });
        let (name, filter) = (format!("mean of {} seeds", repeats.len()), of.receipt.filter.clone());
        add(RowKind::Repeats, [name, filter, short(of.receipt.subset_size), short(of.samples_seen)], scores.collect());
    }
    if columns.iter().any(|column| column.published.is_some()) {
        for b in published(runs) {
            let scores = columns.iter().map(|column| score(column.published.map(|aggregate| b.score(aggregate)))).collect();
            add(RowKind::Published, [format!("DataComp, {}", b.scale), b.filter, b.dataset_size, b.samples_seen], scores);
        }
    }
    if columns.iter().any(|column| column.chance.is_some()) {
        let scores = columns.iter().map(|column| score(column.chance)).collect();
        add(RowKind::Chance, ["chance", "", "", ""].map(str::to_string), scores);
    }
    let header = fixed.into_iter().chain(columns.into_iter().map(|column| column.name)).collect();
    let mut table = Table { title: "Scores".into(), header, rows, scores_from: 4 };
    table.mark_best();
    table
}

/// From a million on as DataComp's tables have it: `12.8M`.
fn short(n: u64) -> String {
    let (unit, name) = match n {
        1_000_000_000.. => (1e9, "B"),
        1_000_000.. => (1e6, "M"),
        n => return n.to_string(),
    };
    format!("{:.2}", n as f64 / unit).trim_end_matches('0').trim_end_matches('.').to_string() + name
}

/// The five aggregates; and where no run has all 38 tasks the mean of those that all have, under its own name.
fn of_datacomp(runs: &[RunResults]) -> Vec<Column<'_>> {
    let mut columns: Vec<Column> = Vec::new();
    for aggregate in Aggregate::ALL {
        let of = move |run: &RunResults| aggregate.of(|task| run.score(&task.key));
        columns.push(Column { name: aggregate.name().into(), of: Box::new(of), chance: aggregate.chance(), published: Some(aggregate) });
    }
    let whole = |run: &RunResults| Aggregate::Average.of(|task| run.score(&task.key)).is_some();
    let with: Vec<&RunResults> = runs.iter().filter(|run| run.has_listed()).collect();
    if !with.iter().all(|run| whole(run)) {
        let common: Vec<_> = scored().filter(|task| with.iter().all(|run| run.score(&task.key).is_some())).collect();
        if !common.is_empty() {
            let name = format!("mean of {} of 38", common.len());
            let chance = mean(common.iter().filter_map(|task| task.random));
            let of = move |run: &RunResults| {
                let scores: Option<Vec<f64>> = common.iter().map(|task| run.score(&task.key)).collect();
                mean(scores?)
            };
            columns.push(Column { name, of: Box::new(of), chance, published: None });
        }
    }
    // Without a run that has it, a column says nothing but for the baselines.
    let scales = !published(runs).is_empty();
    columns.retain(|column| scales || runs.iter().any(|run| (column.of)(run).is_some()));
    columns
}

/// The tasks themselves, and their mean for runs that have all.
fn of_others(runs: &[RunResults]) -> Vec<Column<'_>> {
    let tasks = others(runs);
    let mut columns: Vec<Column> = Vec::new();
    for task in &tasks {
        let key = task.key.clone();
        let of = move |run: &RunResults| run.score(&key);
        columns.push(Column { name: task.dataset.clone(), of: Box::new(of), chance: task.random, published: None });
    }
    let keys: Vec<String> = tasks.iter().map(|task| task.key.clone()).collect();
    let chance: Option<Vec<f64>> = tasks.iter().map(|task| task.random).collect();
    let name = format!("average of {}", keys.len());
    let of = move |run: &RunResults| {
        let scores: Option<Vec<f64>> = keys.iter().map(|key| run.score(key)).collect();
        mean(scores?)
    };
    columns.push(Column { name, of: Box::new(of), chance: chance.and_then(mean), published: None });
    columns
}

/// A result of each task that is not of DataComp's list, in the order in which runs have them.
pub(super) fn others(runs: &[RunResults]) -> Vec<&TaskResult> {
    let mut tasks: Vec<&TaskResult> = Vec::new();
    for result in runs.iter().flat_map(|run| &run.results).filter(|result| !result.listed()) {
        if tasks.iter().all(|task| task.key != result.key) {
            tasks.push(result);
        }
    }
    tasks
}

/// Runs of the same recipe on the same subset with different seeds, where there are several.
pub(super) fn repeats(runs: &[RunResults]) -> Vec<Vec<&RunResults>> {
    let mut groups: Vec<Vec<&RunResults>> = Vec::new();
    for run in runs {
        // Not its checkpoints on the way.
        let Some(of) = run.run.as_ref().filter(|_| run.step.is_none()) else { continue };
        let alike = |other: &RunResults| {
            let other = other.run.as_ref().is_some_and(|other| {
                other.recipe == of.recipe && other.steps == of.steps && other.receipt.subset_sha256 == of.receipt.subset_sha256
            });
            other && of.receipt.subset_size > 0
        };
        let same_seed = |other: &RunResults| other.run.as_ref().is_some_and(|other| other.seed == of.seed);
        match groups.iter_mut().find(|group| alike(group[0])) {
            Some(group) if group.iter().any(|other| same_seed(other)) => {}
            Some(group) => group.push(run),
            None => groups.push(vec![run]),
        }
    }
    groups.retain(|group| group.len() > 1);
    groups
}

/// `0.123 ± 0.002`: the mean and its standard error, sd / √n with n - 1 in the variance.
fn with_error(values: &[f64]) -> String {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    format!("{mean:.3} ± {:.3}", standard_error(values))
}

pub(super) fn standard_error(values: &[f64]) -> f64 {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    (values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0) / n).sqrt()
}

/// DataComp's baselines of the scales that runs with its tasks have.
pub(super) fn published(runs: &[RunResults]) -> Vec<Baseline> {
    let mut scales: Vec<&str> = Vec::new();
    for run in runs.iter().filter(|run| run.has_listed()) {
        if let Some(of) = run.run.as_ref().filter(|of| !scales.contains(&of.scale.as_str())) {
            scales.push(&of.scale);
        }
    }
    scales.into_iter().flat_map(baselines).collect()
}

/// What runs' scores do not say, said once of all that it holds for.
pub(super) fn all_notes(runs: &[RunResults]) -> Vec<String> {
    let mut notes: Vec<(String, Vec<&str>)> = Vec::new();
    let others = if runs.iter().any(RunResults::has_listed) { Vec::new() } else { others(runs) };
    for run in runs {
        let lacks = others.iter().any(|task| run.score(&task.key).is_none());
        let lacks = lacks.then(|| "tasks that others have are lacking, and with them the average".to_string());
        for note in self::notes(run).into_iter().chain(lacks) {
            match notes.iter_mut().find(|(text, _)| *text == note) {
                Some((_, names)) => names.push(&run.name),
                None => notes.push((note, vec![&run.name])),
            }
        }
    }
    notes.into_iter().map(|(text, names)| format!("{}: {text}", names.join(", "))).collect()
}

fn notes(run: &RunResults) -> Vec<String> {
    let mut notes = Vec::new();
    let lacks: Vec<&str> = scored().filter(|task| run.score(&task.key).is_none()).map(|task| task.name.as_str()).collect();
    if run.has_listed() && !lacks.is_empty() {
        notes.push(format!("{} of the 38 tasks, and no average over 38; lacking {}", 38 - lacks.len(), lacks.join(", ")));
    }
    if let Some(of) = run.run.as_ref().filter(|of| !of.on_recipe) {
        let mut off = of.recipe.off_recipe();
        if of.steps < of.recipe.steps() {
            off.push("steps");
        }
        if off.is_empty() {
            off.push("the model's configuration");
        }
        notes.push(format!("off the recipe of its scale: {}", off.join(", ")));
    }
    let less: Vec<String> = run
        .results
        .iter()
        .filter(|r| r.lacking() > 0)
        .map(|r| format!("{} ({} of {})", r.dataset, r.samples, r.samples + r.lacking()))
        .collect();
    if !less.is_empty() {
        notes.push(format!("evaluated on fewer samples than DataComp's sets have: {}", less.join(", ")));
    }
    let unreadable: Vec<String> =
        run.results.iter().filter(|r| r.unreadable > 0).map(|r| format!("{} ({})", r.dataset, r.unreadable)).collect();
    if !unreadable.is_empty() {
        notes.push(format!("samples left out, their images could not be read: {}", unreadable.join(", ")));
    }
    notes
}

#[cfg(test)]
mod tests {
    #[test]
    fn standard_error_of_three() {
        assert!((super::standard_error(&[0.1, 0.2, 0.3]) - 0.1 / 3f64.sqrt()).abs() < 1e-12);
        assert_eq!(super::with_error(&[0.25, 0.25]), "0.250 ± 0.000");
    }
}
