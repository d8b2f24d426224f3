//! What the subsets of runs are like, asked of their pools.

use std::sync::Arc;

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};
use engine::Session;
use eval::report::RunResults;
use futures::TryStreamExt;
use storage::{Pool, Subset};
use train::SUBSET_FILE;

use super::session::session;
use crate::cli::Queries;
use crate::progress::Meter;
use crate::{Error, Result};

/// Bits in which the hashes of images that look the same may differ.
const BITS: u32 = 4;
/// Neighbours looked at of each evaluation image.
const NEIGHBOURS: usize = 100;

/// Names and values; an error that only says why there are none.
pub(crate) async fn facts(
    run: &RunResults,
    queries: &Queries,
    similarity: Option<f64>,
    meter: Arc<Meter>,
) -> Result<Vec<(String, String)>> {
    let Some(of) = &run.run else { return Ok(Vec::new()) };
    let path = run.run_folder.join(SUBSET_FILE);
    let subset = Subset::read(&path)?;
    let mut different = subset.uids().to_vec();
    different.dedup();
    let n = subset.len() as f64;
    let share = 100.0 * n / of.receipt.pool_rows.max(1) as f64;
    let mut facts = vec![
        ("samples".to_string(), subset.len().to_string()),
        ("different".to_string(), different.len().to_string()),
        ("of the pool".to_string(), format!("{share:.1}%")),
        ("with an image".to_string(), format!("{:.1}%", 100.0 * of.samples as f64 / n.max(1.0))),
        ("seen each".to_string(), format!("{:.2} times", run.samples_seen as f64 / of.samples.max(1) as f64)),
    ];
    let newest = Pool::open(&of.pool).await?;
    // The pool as it was, where that version is still there.
    let receipt = run.run_folder.join("receipt.json").display().to_string();
    let then = newest.clone().at_version(&receipt).await.unwrap_or_else(|_| newest.clone());
    let then = session(then, queries, meter.clone()).await?;
    let file = format!("'{}'", path.display().to_string().replace('\'', "''"));
    for (name, expression, decimals) in [
        ("words a caption", "avg(word_count(text))", 1),
        ("smaller side", "avg(least(original_width, original_height))", 0),
        ("CLIP score L/14", "avg(clip_l14_similarity_score)", 3),
        ("CLIP score B/32", "avg(clip_b32_similarity_score)", 3),
    ] {
        let sql = format!("SELECT {expression} FROM pool JOIN {file} AS s ON pool.uid = s.uid");
        // Pools differ in their columns: what cannot be asked of this one is left out.
        if let Ok(Some(value)) = number(&then, &sql).await {
            facts.push((name.to_string(), format!("{value:.decimals$}")));
        }
    }
    let columns = newest.eval_images_columns().await?;
    if !columns.is_empty() {
        // Evaluation images may have been noted after the training. At a fixed version: a report computes no hashes.
        let now = session(newest.pinned().await?, queries, meter).await?;
        let share = |near: f64| format!("{near:.0} ({:.2}%)", 100.0 * near / different.len().max(1) as f64);
        let sql = format!("SELECT count(*) FROM near_eval_images(threshold => {BITS}) WHERE uid IN (SELECT uid FROM {file})");
        let near = number(&now, &sql).await;
        match near {
            Ok(near) => facts.push((format!("like evaluation images ({BITS} bits)"), share(near.unwrap_or_default()))),
            Err(e) => crate::note!("{}: hashes are not compared: {e}", run.name),
        }
        let embeddings = columns.iter().filter(|name| !["task", "sample", "phash"].contains(&name.as_str()));
        for (column, similarity) in embeddings.zip(similarity) {
            let sql = format!(
                "SELECT count(DISTINCT n.uid) FROM eval_images e, LATERAL nearest(pool, {column}, e.{column}, {NEIGHBOURS}) n \
                 WHERE n._distance <= {} AND n.uid IN (SELECT uid FROM {file})",
                1.0 - similarity
            );
            let near = match number(&now, &sql).await {
                Ok(near) => near.unwrap_or_default(),
                Err(e) => {
                    crate::note!("{}: {column} is not compared: {e}", run.name);
                    continue;
                }
            };
            // Of an evaluation image's neighbours so many are looked at.
            facts.push((format!("like evaluation images ({column}, cosine {similarity})"), format!("at least {}", share(near))));
        }
    }
    Ok(facts)
}

/// The only value of a query, as a number.
async fn number(session: &Session, sql: &str) -> Result<Option<f64>> {
    let batches: Vec<_> = session.sql(sql, &[]).await?.try_collect().await.map_err(|e| session.error(e))?;
    let Some(batch) = batches.iter().find(|batch| batch.num_rows() > 0) else { return Ok(None) };
    let values = cast(batch.column(0), &DataType::Float64)?;
    Ok(values.is_valid(0).then(|| values.as_primitive::<Float64Type>().value(0)))
}

/// The facts of every run that has some; what stands against the others is said.
pub(crate) async fn add(runs: &mut [RunResults], queries: &Queries, similarity: Option<f64>) -> Result<()> {
    let meter = Arc::new(Meter::new("subsets"));
    for run in runs {
        match facts(run, queries, similarity, meter.clone()).await {
            Ok(facts) => run.facts = facts,
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(e) => meter.suspend(|| crate::note!("{}: its subset is not described: {e}", run.name)),
        }
    }
    meter.finish();
    Ok(())
}
