//! k-means over a column of the pool, into a named vector set. What is not done waits in a file of the pool's folder
//! `sets`, so that a stopped run goes on with the iteration that it was at.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use storage::{OnProgress, Pool, Progress, Table, VectorColumn};

use crate::indexes::joined;
use crate::kmeans::kmeans;
use crate::{Clusters, Error, KMeans, Result, Stop};

/// Finds centroids of a column and stores them as the set `name`; goes on where a run of the same column, options and
/// version of the pool was stopped.
pub fn find_centroids<'a>(
    pool: &'a Pool,
    name: &'a str,
    column: &'a str,
    options: KMeans,
    on_progress: OnProgress<'a>,
) -> BoxFuture<'a, Result<Clusters>> {
    async move {
        if pool.list_vectors().await?.iter().any(|set| set.name == name) {
            return Err(storage::Error::VectorsExist { name: name.to_string() }.into());
        }
        storage::vectors::check_name(name)?;
        let dataset = pool.require(Table::Pool).await?;
        let of = format!("{column} {} {options:?}", dataset.version().version);
        let column = Arc::new(VectorColumn::open(dataset, column).await?);
        let dim = column.dim();
        let file = pool.sets_folder().map(|folder| folder.join(format!("{name}.kmeans")));
        let from = file.as_deref().and_then(|file| load(file, &of));
        let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
        let stop = Stop::default();
        let stopped = stop.clone();
        let save_to = file.clone();
        let work = tokio::task::spawn_blocking(move || {
            let mut each = |clusters: &Clusters| {
                let _ = told.send(clusters.iteration);
                match &save_to {
                    Some(file) => save(file, &of, clusters),
                    None => Ok(()),
                }
            };
            kmeans(&column, column.live(), options, from, &mut each, &stopped)
        });
        let report = |done: usize| {
            let what = format!("k-means {name}");
            on_progress(Progress { what, done: done as u64, total: options.iterations as u64, unit: "iterations" });
        };
        report(0);
        while let Some(done) = hears.recv().await {
            report(done);
        }
        let clusters = work.await.map_err(joined)??;
        pool.add_vectors(name, dim, clusters.centroids.clone()).await?;
        if let Some(file) = file {
            let _ = std::fs::remove_file(file); // of no use any more, and in nobody's way
        }
        Ok(clusters)
    }
    .boxed()
}

const MAGIC: &[u8; 8] = b"tarn-km1";

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_path_buf();
    move |source| storage::Error::Io { path, source }.into()
}

fn save(file: &Path, of: &str, clusters: &Clusters) -> Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).map_err(io(folder))?;
    }
    let head = serde_json::json!({
        "of": of,
        "iteration": clusters.iteration,
        "counts": clusters.counts,
        "objective": clusters.objective,
    });
    let head = head.to_string();
    let part: PathBuf = file.with_extension("kmeans.part");
    let mut out = std::io::BufWriter::new(std::fs::File::create(&part).map_err(io(&part))?);
    let mut write = || -> std::io::Result<()> {
        out.write_all(MAGIC)?;
        out.write_all(&(head.len() as u64).to_le_bytes())?;
        out.write_all(head.as_bytes())?;
        clusters.centroids.iter().try_for_each(|x| out.write_all(&x.to_le_bytes()))?;
        out.flush()
    };
    write().map_err(io(&part))?;
    storage::put_in_place(&part, file).map_err(io(file))
}

/// What was saved of the same work; nothing where the file is of another, or broken.
fn load(file: &Path, of: &str) -> Option<Clusters> {
    let mut bytes = Vec::new();
    std::fs::File::open(file).ok()?.read_to_end(&mut bytes).ok()?;
    let rest = bytes.strip_prefix(MAGIC)?;
    let (length, rest) = rest.split_first_chunk::<8>()?;
    let (head, values) = rest.split_at_checked(usize::try_from(u64::from_le_bytes(*length)).ok()?)?;
    let head: serde_json::Value = serde_json::from_slice(head).ok()?;
    if head["of"] != of || !values.len().is_multiple_of(4) {
        return None;
    }
    Some(Clusters {
        iteration: head["iteration"].as_u64()? as usize,
        centroids: values.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect(),
        counts: head["counts"].as_array()?.iter().map(|n| n.as_u64()).collect::<Option<_>>()?,
        objective: head["objective"].as_array()?.iter().map(|x| x.as_f64()).collect::<Option<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_work_is_read_again_and_broken_work_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("sets").join("a.kmeans");
        let clusters = Clusters { iteration: 3, centroids: vec![1.0, 2.5], counts: vec![7], objective: vec![0.5, 0.25, 0.125] };
        save(&file, "this", &clusters).expect("saved");
        assert_eq!(load(&file, "this"), Some(clusters));
        assert_eq!(load(&file, "that"), None);
        let whole = std::fs::read(&file).expect("there");
        for cut in [0, 4, 12, 20, whole.len() - 2] {
            std::fs::write(&file, &whole[..cut]).expect("written");
            assert_eq!(load(&file, "this"), None, "cut at {cut}");
        }
    }
}
