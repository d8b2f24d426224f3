use std::cell::RefCell;
use std::path::{Path, PathBuf};

use eval::{Aggregate, EvalSet, Event, Found, TaskResult, scored};
use storage::Pool;
use storage::records::{self, Eval};
use tokio::runtime::Runtime;
use train::Run;

use super::{absolute, device, open_encoder};
use crate::cli;
use crate::format::{pipe_table, print};
use crate::progress::Meter;
use crate::{Error, Result, STOP};

pub(crate) fn run(args: cli::Eval, runtime: &Runtime) -> Result<()> {
    let mut encoder = match &args.checkpoint {
        Some(checkpoint) if !args.list => Some(open_encoder(checkpoint, device(&args.compute)?)?),
        _ => None,
    };
    let mut found = eval::find(&args.data)?;
    let sets = std::mem::take(&mut found.sets);
    let sets = if args.tasks.is_empty() { sets } else { chosen(sets, &args.tasks, std::mem::take(&mut found.broken))? };
    if args.tasks.is_empty() {
        say_what_is_there(&sets, &found);
    }
    say_what_differs(&sets);
    let (Some(checkpoint), Some(encoder)) = (&args.checkpoint, &mut encoder) else {
        return print(&listing(&sets));
    };
    let beside = if checkpoint.is_dir() { checkpoint } else { checkpoint.parent().unwrap_or(Path::new(".")) };
    let out = args.output.as_deref().unwrap_or(beside);
    let meter = Meter::new("eval");
    // Where tasks are chosen, other sets may be broken.
    let broken = if args.tasks.is_empty() { found.broken.as_slice() } else { &[] };
    let failed: Vec<String> = broken.iter().map(|(path, _)| path.display().to_string()).collect();
    let failed = RefCell::new(failed);
    let on_event = |event: Event| {
        meter.suspend(|| match event {
            Event::Known(result) => crate::note!("{}: {}, as evaluated before", result.dataset, score(result)),
            Event::Done(result, unreadable) => {
                let of = if result.lacking() > 0 { format!(" of {}", result.samples + result.lacking()) } else { String::new() };
                crate::note!("{}: {} ({}{of} samples, {:.1} s)", result.dataset, score(result), result.samples, result.seconds);
                if let Some(first) = unreadable.first.as_ref().filter(|_| result.unreadable > 0) {
                    crate::note!("{}: {} samples are left out, an image cannot be read: {first}", result.dataset, result.unreadable);
                }
            }
            Event::Failed(set, e) => {
                crate::note!("{}: not evaluated: {e}", set.task.name);
                e.hint().iter().for_each(|hint| crate::note!("hint: {hint}"));
                failed.borrow_mut().push(set.task.name.clone());
            }
        });
    };
    let options = eval::Options { overwrite: args.overwrite, predictions: args.predictions };
    let results = eval::evaluate(encoder, &sets, out, options, &STOP, &|progress| meter.show(progress), &on_event);
    meter.finish();
    let results = results?;
    print(&table(&results))?;
    // With those of earlier calls.
    say_aggregates(&eval::read_results(out).unwrap_or_default());
    crate::note!("results are in {}", out.display());
    if args.output.is_none() {
        record(checkpoint, &results, runtime)?;
    }
    let failed = failed.into_inner();
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Error::NotEvaluated { sets: failed }),
    }
}

fn say_what_is_there(sets: &[EvalSet], found: &Found) {
    let names = |of: &dyn Fn(&eval::Task) -> bool| -> Vec<&str> {
        found.missing.iter().filter(|task| of(task)).map(|task| task.name.as_str()).collect()
    };
    let (missing, unscored) = (names(&|task| task.metric.is_some()), names(&|task| task.metric.is_none()));
    let others: Vec<&str> = sets.iter().filter(|set| !set.listed).map(|set| set.task.name.as_str()).collect();
    if missing.len() < 38 {
        crate::note!("{} of DataComp's 38 tasks are there", 38 - missing.len());
        if !missing.is_empty() {
            crate::note!("missing, without which there is no average over 38: {}", missing.join(", "));
        }
        if !unscored.is_empty() {
            crate::note!("missing, and no part of the average: {}", unscored.join(", "));
        }
    }
    if !others.is_empty() {
        crate::note!("not of DataComp's list, reported apart: {}", others.join(", "));
    }
    for (path, other) in &found.doubled {
        crate::note!("{} is passed over: {} holds this task", path.display(), other.display());
    }
    for (path, e) in &found.broken {
        crate::note!("{} cannot be evaluated: {e}", path.display());
    }
}

/// Sets of DataComp's tasks that are not DataComp's.
fn say_what_differs(sets: &[EvalSet]) {
    for set in sets.iter().filter(|set| set.listed) {
        if let Some(classes) = set.task.classes.filter(|classes| *classes != set.classnames.len() as u64) {
            crate::note!("warning: {} has {} classes here, {classes} in DataComp's set", set.task.name, set.classnames.len());
        }
    }
}

/// The sets of these keys or names, in their order.
fn chosen(sets: Vec<EvalSet>, names: &[String], broken: Vec<(PathBuf, eval::Error)>) -> Result<Vec<EvalSet>> {
    let folder = |set: &EvalSet| set.folder.file_name().is_some_and(|folder| names.iter().any(|name| *folder == *name.trim()));
    let is = |set: &EvalSet, name: &str| set.task.key == name || set.task.name.eq_ignore_ascii_case(name) || folder(set);
    let names: Vec<&str> = names.iter().map(|name| name.trim()).filter(|name| !name.is_empty()).collect();
    if let Some((_, e)) = broken.into_iter().find(|(path, _)| names.iter().any(|name| path.ends_with(name))) {
        return Err(e.into());
    }
    if let Some(name) = names.iter().find(|name| !sets.iter().any(|set| is(set, name))) {
        let known = sets.iter().flat_map(|set| [set.task.key.as_str(), set.task.name.as_str()]);
        let near = storage::closest(name, known).map(|near| format!(", did you mean '{near}'?")).unwrap_or_default();
        let message = format!("no task here is named '{name}'{near}");
        return Err(Error::Usage { message, hint: "tarn eval --data DIR --list shows what is there" });
    }
    Ok(sets.into_iter().filter(|set| names.iter().any(|name| is(set, name))).collect())
}

fn listing(sets: &[EvalSet]) -> String {
    let header = ["key", "name", "kind", "main metric", "classes", "folder"].map(str::to_string);
    let rows: Vec<Vec<String>> = sets
        .iter()
        .map(|set| {
            let kind = format!("{:?}", set.task.kind).to_lowercase();
            let classes = if set.classnames.is_empty() { "-".into() } else { set.classnames.len().to_string() };
            let metric = set.task.metric.clone().unwrap_or("-".into());
            vec![set.task.key.clone(), set.task.name.clone(), kind, metric, classes, set.folder.display().to_string()]
        })
        .collect();
    pipe_table(&header, &rows)
}

fn score(result: &TaskResult) -> String {
    match (&result.metric, result.score()) {
        (Some(metric), Some(score)) => format!("{metric} {score:.4}"),
        (Some(metric), None) => format!("{metric} of nothing"),
        (None, _) => "no main metric".to_string(),
    }
}

fn table(results: &[TaskResult]) -> String {
    let header = ["task", "samples", "main metric", "score", "chance"].map(str::to_string);
    let cell = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.4}"));
    let row = |r: &TaskResult| {
        let metric = r.metric.clone().unwrap_or("-".into());
        vec![r.dataset.clone(), r.samples.to_string(), metric, cell(r.score()), cell(r.random)]
    };
    pipe_table(&header, &results.iter().map(row).collect::<Vec<_>>())
}

/// Those of DataComp that can be had, and the mean of what is there under its own name.
fn say_aggregates(results: &[TaskResult]) {
    let score = |key: &str| results.iter().find(|result| result.key == key).and_then(TaskResult::score);
    for aggregate in Aggregate::ALL {
        if let Some(value) = aggregate.of(|task| score(&task.key)) {
            crate::note!("{}: {value:.4} (chance {:.4})", aggregate.name(), aggregate.chance().unwrap_or(f64::NAN));
        }
    }
    let scores: Vec<f64> = scored().filter_map(|task| score(&task.key)).collect();
    if !scores.is_empty() && scores.len() < 38 {
        let mean = scores.iter().sum::<f64>() / scores.len() as f64;
        crate::note!("mean of {} of the 38 tasks: {mean:.4}; there is no average over 38", scores.len());
    }
}

/// A run of a pool that is still there leaves its scores in that pool's table `evals`.
fn record(checkpoint: &Path, results: &[TaskResult], runtime: &Runtime) -> Result<()> {
    if !checkpoint.join(train::RUN_FILE).exists() {
        return Ok(());
    }
    let run = Run::read(checkpoint)?;
    let Ok(pool) = runtime.block_on(Pool::open(&run.pool)) else {
        crate::note!("the pool {} is not there, its table evals gets no rows", run.pool);
        return Ok(());
    };
    Ok(runtime.block_on(records::write_evals(&pool, &rows(checkpoint, Some(&run), results)))?)
}

pub(crate) fn rows(folder: &Path, run: Option<&Run>, results: &[TaskResult]) -> Vec<Eval> {
    let name = absolute(&folder.display().to_string());
    let row = |r: &TaskResult| Eval {
        run: name.clone(),
        filter: run.map(|run| run.receipt.filter.clone()),
        task: r.key.clone(),
        metric: r.metric.clone(),
        value: r.score(),
        samples: r.samples as i64,
        metrics: serde_json::to_string(&r.metrics).expect("metrics are plain data"),
    };
    results.iter().map(row).collect()
}
