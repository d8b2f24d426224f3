//! A folder of runs as tables `runs` and `evals`, for queries over experiments of several pools.

use std::path::{Path, PathBuf};

use ::eval::{OTHERS_FILE, RESULTS_FILE};
use storage::Pool;
use storage::records;
use train::{RUN_FILE, Run};

use super::{eval, train as training};
use crate::{Error, Result};

/// What marks a folder with something to tell.
const FILES: [&str; 3] = [RUN_FILE, RESULTS_FILE, OTHERS_FILE];

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

/// A folder that was not there before.
fn new_folder() -> Result<PathBuf> {
    let name = |i: u32| std::env::temp_dir().join(format!("tarn-runs-{}-{i}", std::process::id()));
    for i in 0.. {
        match std::fs::create_dir(name(i)) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| name(i)).map_err(Error::io(name(i))),
        }
    }
    unreachable!("some number is free")
}

/// The runs and other results in `folder`, none where it holds none or is a pool.
pub(crate) async fn tables(folder: &Path) -> Result<Option<Tables>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(None) };
    let mut runs: Vec<PathBuf> =
        entries.flatten().map(|entry| entry.path()).filter(|path| FILES.iter().any(|file| path.join(file).exists())).collect();
    runs.sort();
    if runs.is_empty() || folder.join("pool.lance").exists() {
        return Ok(None);
    }
    let tables = Tables(new_folder()?);
    let pool = tables.pool();
    for path in runs {
        let run = match path.join(RUN_FILE).exists().then(|| Run::read(&path)).transpose() {
            Ok(run) => run,
            Err(e) => {
                crate::note!("{} is left out: {e}", path.display());
                continue;
            }
        };
        if let Some(run) = &run {
            records::write_run(&pool, &training::record(&path, run)).await?;
        }
        match ::eval::read_results(&path) {
            Ok(results) => records::write_evals(&pool, &eval::rows(&path, run.as_ref(), &results)).await?,
            Err(::eval::Error::NoResults { .. }) => {}
            Err(e) => crate::note!("{} is left out: {e}", path.display()),
        }
    }
    Ok(Some(tables))
}
