use storage::{Pool, vectors};
use tokio::runtime::Runtime;

use super::block_on;
use crate::Result;
use crate::cli::{self, VectorsCommand};
use crate::format::print;

pub(crate) fn run(args: cli::Vectors, runtime: &Runtime) -> Result<()> {
    let pool = block_on(runtime, Pool::open(&args.pool))?;
    match &args.command {
        VectorsCommand::Add { name, file } => {
            let (dim, values) = vectors::read_npy(file)?;
            let n = values.len() / dim;
            block_on(runtime, pool.add_vectors(name, dim, values))?;
            crate::note!("added {name}: {n} vectors of {dim}");
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
