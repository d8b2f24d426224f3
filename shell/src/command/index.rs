use std::collections::BTreeMap;

use index::{Check, Effort, KINDS, Kind, NewIndex};
use storage::{Pool, Table};
use tokio::runtime::Runtime;

use super::block_on;
use crate::cli::{self, IndexCommand};
use crate::format::{pipe_table, print};
use crate::progress::Meter;
use crate::{Error, Result};

pub(crate) fn run(args: cli::Index, runtime: &Runtime) -> Result<()> {
    let pool = block_on(runtime, Pool::open(&args.pool))?;
    let meter = Meter::new("index");
    let told = |progress| meter.show(progress);
    match args.command {
        IndexCommand::Create { column, using, name, with, replace } => {
            let options: BTreeMap<String, String> = with.into_iter().collect();
            let new = NewIndex { name, column, kind: Kind::parse(&using)?, options, replace };
            let made = block_on(runtime, index::create_index(&pool, &new, &told));
            meter.finish();
            crate::note!("made {}", made?);
        }
        IndexCommand::List => {
            let indexes = block_on(runtime, index::list_indexes(&pool))?;
            let header = ["name", "column", "kind", "metric", "rows", "lagging", "MB", "nprobes", "refine"].map(str::to_string);
            let row = |index: &index::IndexInfo| {
                let searched = |n: usize| index.distance.map_or_else(String::new, |_| n.to_string());
                vec![
                    index.name.clone(),
                    index.column.clone(),
                    index.kind.map_or(index.lance_kind.clone(), |kind| kind.name().to_string()),
                    index.distance.map_or("", |distance| distance.name()).to_string(),
                    index.rows.to_string(),
                    index.lagging.to_string(),
                    format!("{:.1}", index.bytes as f64 / 1e6),
                    searched(index.defaults.nprobes),
                    searched(index.defaults.refine),
                ]
            };
            let rows: Vec<Vec<String>> = indexes.iter().map(row).collect();
            if let Some(lagging) = indexes.iter().find(|index| index.lagging > 0) {
                let name = &lagging.name;
                crate::note!(
                    "{name} lacks {} rows, which searches look at one by one: tarn index {} update {name}",
                    lagging.lagging,
                    args.pool
                );
            }
            if !rows.is_empty() {
                return print(&pipe_table(&header, &rows));
            }
        }
        IndexCommand::Kinds => {
            let lines = KINDS.map(|(_, name, _, what)| format!("{name:<14} {what}\n"));
            return print(&lines.concat());
        }
        IndexCommand::Drop { name } => {
            block_on(runtime, index::drop_index(&pool, &name))?;
            crate::note!("dropped {name}");
        }
        IndexCommand::Update { name } => {
            let names = match name {
                Some(name) => vec![name],
                None => block_on(runtime, index::list_indexes(&pool))?.into_iter().map(|index| index.name).collect(),
            };
            for name in names {
                let rows = block_on(runtime, index::update_index(&pool, &name, &told));
                meter.finish();
                crate::note!("{name}: {} rows more", rows?);
            }
        }
        IndexCommand::Check { name, k, queries, from, nprobes, refine, recall, seed, set } => {
            let from = match from {
                Some(from) => Some(from),
                None => block_on(runtime, other_side(&pool, &name))?,
            };
            let efforts = nprobes.iter().flat_map(|&nprobes| refine.iter().map(move |&refine| Effort { nprobes, refine }));
            let check = Check { k, queries, seed, from, efforts: efforts.collect() };
            let measured = block_on(runtime, index::check_index(&pool, &name, &check, &told));
            meter.finish();
            let measured = measured?;
            let header = ["queries from", "nprobes", "refine", "index_recall", "p50 ms", "p95 ms", "p99 ms"].map(str::to_string);
            let row = |m: &index::Measured| {
                let ms = [m.p50, m.p95, m.p99].map(|ms| format!("{ms:.2}"));
                let first = [m.from.clone(), m.effort.nprobes.to_string(), m.effort.refine.to_string(), format!("{:.4}", m.recall)];
                first.into_iter().chain(ms).collect::<Vec<String>>()
            };
            print(&pipe_table(&header, &measured.iter().map(row).collect::<Vec<_>>()))?;
            match index::recommend(&measured, recall) {
                Some(effort) => {
                    let Effort { nprobes, refine } = effort;
                    crate::note!("for an index_recall of {recall} at {k}: nprobes={nprobes}, refine={refine}");
                    if set {
                        block_on(runtime, index::set_defaults(&pool, &name, effort))?;
                        crate::note!("stored as the default of {name}");
                    } else {
                        crate::note!("store it as the index's default with --set");
                    }
                }
                None => {
                    let message = format!("no setting reaches an index_recall of {recall} at {k}");
                    return Err(Error::Usage {
                        message,
                        hint: "raise --nprobes and --refine, make the index with more partitions or bits, or ask for less",
                    });
                }
            }
        }
    }
    Ok(())
}

/// The column of texts beside one of images, and the other way round.
async fn other_side(pool: &Pool, name: &str) -> index::Result<Option<String>> {
    let Some(index) = index::list_indexes(pool).await?.into_iter().find(|index| index.name == name) else { return Ok(None) };
    let other = match (index.column.strip_suffix("_img"), index.column.strip_suffix("_txt")) {
        (Some(stem), _) => format!("{stem}_txt"),
        (_, Some(stem)) => format!("{stem}_img"),
        _ => return Ok(None),
    };
    let dataset = pool.require(Table::Pool).await?;
    Ok(dataset.schema().field(&other).map(|_| other))
}
