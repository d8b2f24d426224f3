//! Times nearest neighbours through SQL in one process, for tests/peers/vectors.py:
//!
//!     search POOL COLUMN SET WHAT K NPROBES REFINE ROUNDS
//!
//! WHAT is `single` (the queries of the vector set SET one after the other), `batch` (all in one statement), either with
//! `exact-` before it, or `centroid` (nearest_centroid of the column's first 20,000 rows). Prints the seconds of each round, and with a last line the uids found.

#![allow(clippy::print_stdout)]

use std::time::Instant;

use arrow::array::{Array, AsArray};
use arrow::datatypes::Float32Type;
use arrow::util::display::array_value_to_string;
use datafusion::scalar::ScalarValue;
use engine::Session;
use futures::TryStreamExt;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [pool, column, set, what, k, nprobes, refine, rounds] = &args[..] else { return Err("see the comment at the top".into()) };
    let session = Session::open(pool).await?;
    let vectors = format!("SELECT id, vector FROM vectors WHERE name = '{set}' ORDER BY id");
    let batches: Vec<_> = session.sql(&vectors, &[]).await?.try_collect().await?;
    let mut queries: Vec<ScalarValue> = Vec::new();
    for batch in &batches {
        let lists = batch["vector"].as_list::<i32>();
        queries.extend((0..lists.len()).map(|i| {
            let values = lists.value(i).as_primitive::<Float32Type>().values().iter().map(|x| ScalarValue::from(*x)).collect::<Vec<_>>();
            ScalarValue::List(ScalarValue::new_list_nullable(&values, &arrow::datatypes::DataType::Float32))
        }));
    }
    let exact = what.starts_with("exact-");
    let options = if exact { "exact => true".to_string() } else { format!("nprobes => {nprobes}, refine => {refine}") };
    let mut uids = Vec::new();
    for _ in 0..rounds.parse::<usize>()? {
        uids.clear();
        let start = Instant::now();
        if what == "centroid" {
            let text = format!("SELECT sum(nearest_centroid({column}, '{set}')) FROM (SELECT {column} FROM pool LIMIT 20000)");
            let _: Vec<_> = session.sql(&text, &[]).await?.try_collect().await?;
        } else if what.ends_with("single") {
            let text = format!("SELECT uid, _distance FROM nearest(pool, {column}, $q, {k}, {options})");
            for query in &queries {
                let batches: Vec<_> = session.sql(&text, &[("q".to_string(), query.clone())]).await?.try_collect().await?;
                uids.extend(batches);
            }
        } else {
            let text = format!(
                "SELECT q.id, n.uid, n._distance FROM (SELECT id, vector FROM vectors WHERE name = '{set}') q, \
                 LATERAL nearest(pool, {column}, q.vector, {k}, {options}) n ORDER BY q.id, n._distance"
            );
            uids = session.sql(&text, &[]).await?.try_collect::<Vec<_>>().await?;
        }
        println!("{}", start.elapsed().as_secs_f64());
    }
    let mut line = Vec::new();
    for batch in &uids {
        for i in 0..batch.num_rows() {
            line.push(array_value_to_string(&batch["uid"], i)?);
        }
    }
    println!("{}", line.join(" "));
    Ok(())
}
