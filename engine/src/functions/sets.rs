use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use datafusion::common::{DataFusionError, Result, exec_err};
use index::{Graph, VectorSet};
use storage::Pool;

/// The named vector sets of a pool, each read when a query first names it.
pub(crate) struct Sets {
    pool: Pool,
    loaded: RwLock<HashMap<String, Arc<VectorSet>>>,
    graphs: RwLock<HashMap<String, Arc<Graph>>>,
}

impl Sets {
    pub fn of(pool: Pool) -> Sets {
        Sets { pool, loaded: RwLock::default(), graphs: RwLock::default() }
    }

    /// Reads a set, so that `get` finds it.
    pub async fn load(&self, name: &str) -> crate::Result<Arc<VectorSet>> {
        if let Ok(set) = self.get(name) {
            return Ok(set);
        }
        let (dim, values) = self.pool.read_vectors(name).await?;
        let set = Arc::new(VectorSet::new(dim, values)?);
        self.loaded.write().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(name.to_string(), set.clone());
        Ok(set)
    }

    /// The graph that the pool has of a set, read when a search first asks for it.
    pub async fn graph(&self, name: &str) -> crate::Result<Option<Arc<Graph>>> {
        let set = self.load(name).await?;
        if let Some(graph) = self.graphs.read().unwrap_or_else(|poisoned| poisoned.into_inner()).get(name) {
            return Ok(Some(graph.clone()));
        }
        let (pool, of) = (self.pool.clone(), name.to_string());
        let graph = tokio::task::spawn_blocking(move || index::graph_of(&pool, &of, &set)).await;
        let graph = graph.ok().flatten().map(Arc::new);
        if let Some(graph) = &graph {
            self.graphs.write().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(name.to_string(), graph.clone());
        }
        Ok(graph)
    }

    pub fn get(&self, name: &str) -> Result<Arc<VectorSet>, DataFusionError> {
        let loaded = self.loaded.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        match loaded.get(name) {
            Some(set) => Ok(set.clone()),
            None => exec_err!("the vector set '{name}' must be named by a constant"),
        }
    }
}
