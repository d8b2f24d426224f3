//! A folder of runs as tables `runs` and `evals`, for queries over experiments of several pools.

use std::path::{Path, PathBuf};

use storage::Pool;
use storage::records;
use train::{RUN_FILE, Run};

use super::{eval, train as training};
use crate::{Error, Result};

/// The tables, in a folder that goes when it is dropped.
pub(crate) struct Tables(PathBuf);

impl Tables {
    pub fn pool(&self) -> Pool {
        Pool::at(&self.0.display().to_string())
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The runs in `folder`, none where it holds no run or is a pool.
pub(crate) async fn tables(folder: &Path) -> Result<Option<Tables>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(None) };
    let mut runs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.join(RUN_FILE).exists()).collect();
    runs.sort();
    if runs.is_empty() || folder.join("pool.lance").exists() {
        return Ok(None);
    }
    let tables = Tables(std::env::temp_dir().join(format!("tarn-runs-{}", std::process::id())));
    std::fs::create_dir_all(&tables.0).map_err(Error::io(&tables.0))?;
    let pool = tables.pool();
    for path in runs {
        let run = Run::read(&path)?;
        records::write_run(&pool, &training::record(&path, &run)).await?;
        match ::eval::read_results(&path) {
            Ok(results) => records::write_evals(&pool, &eval::rows(&path, &run, &results)).await?,
            Err(::eval::Error::NoResults { .. }) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(Some(tables))
}
