//! Times nearest neighbours through SQL in one process, for tests/peers/vectors.py:
//!
//!     search POOL COLUMN SET WHAT K NPROBES REFINE ROUNDS
//!
//! WHAT is `single` (the queries of the vector set SET one after the other), `batch` (all in one statement), either with
//! `exact-` before it, or `centroid` (nearest_centroid of the column's first 20,000 rows). Prints the seconds of each round,
//! and with a last line the uids found. Or it is `graph`: the set's graph, against exact search, for the first 500 of the set
//! `peer_many`.

#![allow(clippy::print_stdout)]

use std::io::Write;
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
    if what == "graph" {
        return graph(&storage::Pool::open(pool).await?, set, k.parse()?).await;
    }
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
    let mut out = std::io::stdout();
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
        writeln!(out, "{}", start.elapsed().as_secs_f64())?;
    }
    let mut line = Vec::new();
    for batch in &uids {
        for i in 0..batch.num_rows() {
            line.push(array_value_to_string(&batch["uid"], i)?);
        }
    }
    writeln!(out, "{}", line.join(" "))?;
    Ok(())
}

async fn graph(pool: &storage::Pool, name: &str, k: usize) -> Result<(), Box<dyn std::error::Error>> {
    let (dim, values) = pool.read_vectors(name).await?;
    let (_, queries) = pool.read_vectors("peer_many").await?;
    let queries = &queries[..500 * dim];
    let item = std::sync::Arc::new(arrow::datatypes::Field::new("item", arrow::datatypes::DataType::Float32, true));
    let array = std::sync::Arc::new(arrow::array::Float32Array::from(values.clone()));
    let list = arrow::array::FixedSizeListArray::try_new(item, dim as i32, array, None)?;
    let column = storage::VectorColumn::of_array(name, list)?;
    let set = index::VectorSet::new(dim, values)?;
    let (live, stop) = (storage::Rows::all(), std::sync::atomic::AtomicBool::new(false));
    let start = Instant::now();
    let mut truth = Vec::new();
    for query in queries.chunks_exact(dim) {
        let wanted = index::Wanted { queries: query, distance: index::Distance::Cosine, k, within: f32::INFINITY };
        truth.extend(index::exact(&column, wanted, &live, &stop)?);
    }
    let exactly = start.elapsed().as_secs_f64() / 500.0;
    let start = Instant::now();
    let graph = index::Graph::build(&set, index::GraphOptions::default());
    let built = start.elapsed().as_secs_f64();
    for effort in [32, 128] {
        let start = Instant::now();
        let found: Vec<Vec<usize>> = queries.chunks_exact(dim).map(|query| graph.search(query, k, effort)).collect();
        let seconds = start.elapsed().as_secs_f64() / 500.0;
        let right = found
            .iter()
            .zip(&truth)
            .map(|(found, truth)| truth.iter().filter(|n| found.contains(&(n.row as usize))).count())
            .sum::<usize>();
        let recall = right as f64 / (500 * k) as f64;
        println!(
            "graph over {}, ef {effort}: tarn {:.3} ms a query, recall {recall:.4}, built in {built:.1} s; exact on all cores {:.3} ms",
            set.len(),
            seconds * 1e3,
            exactly * 1e3
        );
    }
    Ok(())
}
