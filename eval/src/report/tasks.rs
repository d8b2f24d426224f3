use super::runs::RunResults;
use super::score;
use super::summary::others as other_tasks;
use super::table::{Row, RowKind, Table};
use crate::Aggregate;
use crate::results::TaskResult;
use crate::task::tasks;

/// DataComp's tasks that some run has, with each other run's difference from the one chosen.
pub(super) fn listed(runs: &[RunResults], against: Option<usize>) -> Option<Table> {
    let results: Vec<&TaskResult> = tasks()
        .iter()
        .filter_map(|task| runs.iter().find_map(|run| run.result(&task.key)))
        .filter(|result| result.metric.is_some())
        .collect();
    let rows: Vec<Row> = results.iter().map(|result| row(result, runs, against)).collect();
    table("Tasks", rows, runs, against)
}

/// Tasks that are not of the list, where the summary has DataComp's or a run was chosen to compare with.
pub(super) fn others(runs: &[RunResults], against: Option<usize>) -> Option<Table> {
    if against.is_none() && !runs.iter().any(RunResults::has_listed) {
        return None;
    }
    let rows: Vec<Row> = other_tasks(runs).into_iter().map(|result| row(result, runs, against)).collect();
    table("Other tasks", rows, runs, against)
}

fn table(title: &str, rows: Vec<Row>, runs: &[RunResults], against: Option<usize>) -> Option<Table> {
    let fixed = ["task", "metric", "chance"].map(str::to_string);
    let names = runs.iter().enumerate().flat_map(|(i, run)| {
        let difference = against.filter(|against| *against != i).map(|against| format!("− {}", runs[against].name));
        [Some(run.name.clone()), difference].into_iter().flatten()
    });
    let header = fixed.into_iter().chain(names).collect();
    (!rows.is_empty()).then(|| Table { title: title.into(), header, rows, scores_from: 2 })
}

fn row(result: &TaskResult, runs: &[RunResults], against: Option<usize>) -> Row {
    let base = against.and_then(|against| runs[against].score(&result.key));
    let cells = runs.iter().enumerate().flat_map(|(i, run)| {
        let value = run.score(&result.key);
        let difference = value.zip(base).map_or("-".to_string(), |(value, base)| format!("{:+.3}", value - base));
        [Some(score(value)), against.filter(|against| *against != i).map(|_| difference)].into_iter().flatten()
    });
    let fixed = [result.dataset.clone(), result.metric.clone().unwrap_or_default(), score(result.random)];
    let cells: Vec<String> = fixed.into_iter().chain(cells).collect();
    Row { cells, kind: RowKind::Own, best: Vec::new() }
}

/// A line a run: all of its facts and scores, unrounded.
pub(super) fn wide(runs: &[RunResults]) -> Table {
    let fixed = ["run", "folder", "filter", "scale", "on_recipe", "seed", "subset_size", "samples_seen", "loss"];
    let aggregates = ["imagenet", "imagenet_dist_shifts", "vtab", "retrieval", "average_38"];
    let of_list = tasks().iter().map(|task| task.key.as_str()).filter(|key| runs.iter().any(|run| run.score(key).is_some()));
    let keys: Vec<&str> = of_list.chain(other_tasks(runs).into_iter().map(|result| result.key.as_str())).collect();
    let header = fixed.iter().chain(&aggregates).chain(&keys).map(|name| name.to_string()).collect();
    let number = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
    let rows = runs.iter().map(|run| {
        let of = run.run.as_ref();
        let text = |value: &dyn Fn(&train::Run) -> String| of.map_or(String::new(), value);
        let about = [
            run.name.clone(),
            run.folder.display().to_string(),
            text(&|of| of.receipt.filter.clone()),
            text(&|of| of.scale.clone()),
            text(&|of| of.on_recipe.to_string()),
            text(&|of| of.seed.to_string()),
            text(&|of| of.receipt.subset_size.to_string()),
            text(&|of| of.samples_seen.to_string()),
            text(&|of| of.loss.to_string()),
        ];
        let of_aggregates = Aggregate::ALL.map(|aggregate| number(aggregate.of(|task| run.score(&task.key))));
        let scores = keys.iter().map(|key| number(run.score(key)));
        Row { cells: about.into_iter().chain(of_aggregates).chain(scores).collect(), kind: RowKind::Own, best: Vec::new() }
    });
    Table { title: "Runs".into(), rows: rows.collect(), header, scores_from: fixed.len() }
}
