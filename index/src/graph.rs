//! A navigable graph (HNSW, Malkov and Yashunin 2016) over a vector set, for single queries of large sets.

use std::hash::Hasher;
use std::path::{Path, PathBuf};

use futures::FutureExt;
use futures::future::BoxFuture;
use hnsw_rs::api::AnnT;
use hnsw_rs::hnsw::Hnsw;
use hnsw_rs::hnswio::HnswIo;
use storage::Pool;
use twox_hash::XxHash64;

use crate::indexes::joined;
use crate::kernel::{dot, products};
use crate::{Error, Result, VectorSet};

/// 1 - x·y of vectors of length 1, never below 0.
#[derive(Debug, Clone, Copy, Default)]
struct UnitDot;

impl hnsw_rs::anndists::dist::Distance<f32> for UnitDot {
    fn eval(&self, x: &[f32], y: &[f32]) -> f32 {
        (1.0 - dot(x, y)).max(0.0)
    }
}

/// A graph over the vectors of a set by their cosine. Takes the vectors' memory once more, and some 300 bytes each.
pub struct Graph {
    hnsw: Hnsw<'static, f32, UnitDot>,
}

/// How a graph is built: neighbours of a vector (at most 256), and candidates looked at for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GraphOptions {
    pub neighbours: usize,
    pub candidates: usize,
}

impl Default for GraphOptions {
    fn default() -> GraphOptions {
        GraphOptions { neighbours: 24, candidates: 200 }
    }
}

const NAME: &str = "graph";
const LAYERS: usize = 16;

impl Graph {
    /// Builds it, on all cores; which of two near equal neighbours a vector has depends on their order.
    pub fn build(set: &VectorSet, options: GraphOptions) -> Graph {
        let neighbours = options.neighbours.clamp(2, 256);
        let hnsw = Hnsw::<f32, UnitDot>::new(neighbours, set.len(), LAYERS, options.candidates.max(neighbours), UnitDot);
        let unit = |id: usize| {
            let vector = set.vector(id);
            let length = products(vector, vector).xx.sqrt();
            vector.iter().map(|x| if length > 0.0 { x / length } else { 0.0 }).collect::<Vec<f32>>()
        };
        let vectors: Vec<Vec<f32>> = (0..set.len()).map(unit).collect();
        let with_ids: Vec<(&Vec<f32>, usize)> = vectors.iter().zip(0..).collect();
        hnsw.parallel_insert(&with_ids);
        Graph { hnsw }
    }

    /// The ids of the `k` nearest found to a query, nearest first; `effort` candidates are held, at least k.
    pub fn search(&self, query: &[f32], k: usize, effort: usize) -> Vec<usize> {
        let length = products(query, query).xx.sqrt();
        let unit: Vec<f32> = query.iter().map(|x| x / length).collect();
        self.hnsw.search(&unit, k, effort.max(k)).into_iter().map(|neighbour| neighbour.d_id).collect()
    }

    /// Writes it to a folder.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let failed = |reason: String| Error::Graph { path: folder.display().to_string(), reason };
        std::fs::create_dir_all(folder).map_err(|e| failed(e.to_string()))?;
        self.hnsw.file_dump(folder, NAME).map_err(|e| failed(e.to_string()))?;
        Ok(())
    }

    /// Reads one that was saved.
    pub fn load(folder: &Path) -> Result<Graph> {
        let failed = |reason: String| Error::Graph { path: folder.display().to_string(), reason };
        // The graph borrows its reader, which is small and is kept for good.
        let reader: &'static mut HnswIo = Box::leak(Box::new(HnswIo::new(folder, NAME)));
        let hnsw = reader.load_hnsw::<f32, UnitDot>().map_err(|e| failed(e.to_string()))?;
        Ok(Graph { hnsw })
    }
}

/// What a graph is of, and the sizes of its files: what does not match is not loaded, for hnsw_rs does not check.
fn manifest(set: &VectorSet, folder: &Path) -> Option<String> {
    let mut hasher = XxHash64::with_seed(0);
    set.values().iter().for_each(|x| hasher.write(&x.to_le_bytes()));
    let mut text = format!("{} {} {:016x}", set.len(), set.dim(), hasher.finish());
    for end in ["hnsw.graph", "hnsw.data"] {
        let mut hasher = XxHash64::with_seed(0);
        hasher.write(&std::fs::read(folder.join(format!("{NAME}.{end}"))).ok()?);
        text += &format!(" {:016x}", hasher.finish());
    }
    Some(text)
}

fn folder_of(pool: &Pool, name: &str) -> Option<PathBuf> {
    Some(pool.sets_folder()?.join(format!("{name}.graph")))
}

/// Builds the graph of a named set and keeps it in the pool's folder `sets`.
pub fn build_graph<'a>(pool: &'a Pool, name: &'a str, options: GraphOptions) -> BoxFuture<'a, Result<()>> {
    async move {
        let (dim, values) = pool.read_vectors(name).await?;
        let set = VectorSet::new(dim, values)?;
        let Some(folder) = folder_of(pool, name) else {
            return Err(Error::Graph { path: pool.root().into(), reason: "graphs are kept on local disks only".into() });
        };
        pool.write(|_| async move {
            let work = tokio::task::spawn_blocking(move || {
                let failed = |e: std::io::Error| Error::Graph { path: folder.display().to_string(), reason: e.to_string() };
                let part = folder.with_extension("graph.part");
                for old in [&part, &folder] {
                    if old.exists() {
                        std::fs::remove_dir_all(old).map_err(failed)?;
                    }
                }
                Graph::build(&set, options).save(&part)?;
                let text = manifest(&set, &part).ok_or_else(|| failed(std::io::ErrorKind::NotFound.into()))?;
                std::fs::write(part.join("of"), text).map_err(failed)?;
                storage::put_in_place(&part, &folder).map_err(failed)
            });
            work.await.map_err(joined)?
        })
        .await
    }
    .boxed()
}

/// The graph that is kept of a set; `None` where there is none, it is of other vectors, or its files are not whole.
pub fn graph_of(pool: &Pool, name: &str, set: &VectorSet) -> Option<Graph> {
    let folder = folder_of(pool, name)?;
    let text = std::fs::read_to_string(folder.join("of")).ok()?;
    if manifest(set, &folder)? != text {
        return None;
    }
    Graph::load(&folder).ok()
}

impl std::fmt::Debug for Graph {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Graph of {}", self.hnsw.get_nb_point())
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn finds_what_exact_search_finds_also_when_read_again() {
        let (n, dim) = (2000, 24);
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        let set = VectorSet::new(dim, (0..n * dim).map(|_| rng.random_range(-1.0..1.0)).collect()).expect("whole rows");
        let graph = Graph::build(&set, GraphOptions::default());
        let folder = tempfile::tempdir().expect("a folder");
        graph.save(&folder.path().join("g")).expect("saved");
        let again = Graph::load(&folder.path().join("g")).expect("loaded");
        let mut right = 0;
        for query in 0..50 {
            let query: Vec<f32> = set.vector(query * 7).iter().map(|x| x + rng.random_range(-0.1..0.1)).collect();
            let cosine = |id: usize| products(set.vector(id), &query).xy / products(set.vector(id), set.vector(id)).xx.sqrt();
            let best = (0..n).max_by(|&a, &b| cosine(a).total_cmp(&cosine(b))).expect("not empty");
            let found = graph.search(&query, 10, 64);
            assert_eq!(found, again.search(&query, 10, 64));
            right += usize::from(found[0] == best);
        }
        assert!(right >= 49, "{right} of 50");
        assert!(Graph::load(&folder.path().join("none")).is_err());
    }
}
