use std::path::Path;

use eval::TaskResult;
use storage::Pool;
use storage::records::{self, Eval};
use tokio::runtime::Runtime;
use train::Run;

use super::{absolute, open_encoder};
use crate::cli;
use crate::format::{pipe_table, print};
use crate::progress::Meter;
use crate::{Result, STOP};

pub(crate) fn run(args: cli::Eval, runtime: &Runtime) -> Result<()> {
    let mut encoder = open_encoder(&args.checkpoint)?;
    let (sets, others) = eval::find(&args.data)?;
    if !others.is_empty() {
        crate::note!("not evaluated, for want of their metric: {}", others.join(", "));
    }
    if sets.is_empty() {
        return Err(eval::Error::NoSets { path: args.data }.into());
    }
    let out = args.output.as_deref().unwrap_or(&args.checkpoint);
    let meter = Meter::new("eval");
    let results = eval::evaluate(&mut encoder, &sets, out, &STOP, &|progress| meter.show(progress));
    meter.finish();
    let results = results?;
    let cell = |result: &TaskResult, metric: &str| result.metrics.get(metric).map_or("-".to_string(), |value| format!("{value:.4}"));
    let header = ["task", "images", "accuracy", "accuracy at 5", "mean per-class recall"].map(str::to_string);
    let rows: Vec<Vec<String>> = results
        .iter()
        .map(|r| vec![r.dataset.clone(), r.samples.to_string(), cell(r, "acc1"), cell(r, "acc5"), cell(r, "mean_per_class_recall")])
        .collect();
    print(&pipe_table(&header, &rows))?;
    for r in results.iter().filter(|r| r.unreadable > 0) {
        crate::note!("{}: {} images could not be read", r.dataset, r.unreadable);
    }
    record(&args.checkpoint, &results, runtime)
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
    let name = absolute(&checkpoint.display().to_string());
    let rows: Vec<Eval> = results
        .iter()
        .map(|r| Eval {
            run: name.clone(),
            filter: run.receipt.filter.clone(),
            task: r.key.clone(),
            metric: r.main_metric.clone(),
            value: r.score(),
            samples: r.samples as i64,
            metrics: serde_json::to_string(&r.metrics).expect("metrics are plain data"),
        })
        .collect();
    Ok(runtime.block_on(records::write_evals(&pool, &rows))?)
}
