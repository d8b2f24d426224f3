use index::{GraphOptions, KMeans, Start};
use storage::{Pool, vectors};
use tokio::runtime::Runtime;

use super::block_on;
use crate::Result;
use crate::cli::{self, VectorsCommand};
use crate::format::print;
use crate::progress::Meter;

pub(crate) fn run(args: cli::Vectors, runtime: &Runtime) -> Result<()> {
    let pool = block_on(runtime, Pool::open(&args.pool))?;
    match &args.command {
        VectorsCommand::Add { name, file, array } => {
            let (dim, values) = vectors::read_array(file, array.as_deref())?;
            let n = values.len() / dim;
            block_on(runtime, pool.add_vectors(name, dim, values))?;
            crate::note!("added {name}: {n} vectors of {dim}");
        }
        VectorsCommand::Kmeans { name, column, k, iterations, samples, batch, start, euclidean, seed } => {
            let name = name.clone().unwrap_or_else(|| format!("{column}_k{k}"));
            let options = KMeans {
                k: *k,
                iterations: *iterations,
                seed: *seed,
                spherical: !euclidean,
                start: if *start == cli::KmeansStart::PlusPlus { Start::PlusPlus } else { Start::Random },
                samples: samples.unwrap_or(k.saturating_mul(256)),
                batch: *batch,
            };
            let meter = Meter::new("vectors");
            let clusters = block_on(runtime, index::find_centroids(&pool, &name, column, options, &|progress| meter.show(progress)));
            meter.finish();
            let clusters = clusters?;
            let what = if *euclidean { "mean squared distance" } else { "mean cosine" };
            let objective = clusters.objective.last().copied().unwrap_or(f64::NAN);
            crate::note!("added {name}: {k} centroids, {what} {objective:.6}, imbalance {:.3}", clusters.imbalance());
        }
        VectorsCommand::Graph { name, neighbours, candidates } => {
            let options = GraphOptions { neighbours: usize::from(*neighbours), candidates: *candidates };
            block_on(runtime, index::build_graph(&pool, name, options))?;
            crate::note!("built the graph of {name}");
        }
        VectorsCommand::List => {
            let lines = block_on(runtime, pool.list_vectors())?;
            let lines = lines.iter().map(|set| format!("{}  {} vectors of {}\n", set.name, set.len, set.dim));
            return print(&lines.collect::<String>());
        }
        VectorsCommand::Drop { name } => {
            block_on(runtime, pool.drop_vectors(name))?;
            crate::note!("dropped {name}");
        }
    }
    Ok(())
}
