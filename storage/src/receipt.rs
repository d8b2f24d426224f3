use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::{Error, Pool, Result, Written, put_in_place};

/// Where a subset came from: enough to make it again, and to get from any result back to the query.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// A saved filter's name, a file's, or `sql`.
    pub filter: String,
    pub sql: String,
    pub parameters: BTreeMap<String, serde_json::Value>,
    pub pool: String,
    /// The Lance version of `pool.lance` that was read.
    pub pool_version: u64,
    /// The version of every table, by name: `--at RECEIPT` reads them again.
    #[serde(default)]
    pub versions: BTreeMap<String, u64>,
    /// Rows of the pool at that version, and uids selected.
    pub pool_rows: u64,
    pub subset_size: u64,
    /// SHA-256 over the sorted uids' bytes.
    pub subset_sha256: String,
    /// Digests of the optional files that the query used, by name.
    pub resources: BTreeMap<String, String>,
    pub tarn_version: String,
    pub wall_seconds: f64,
}

impl Receipt {
    /// What can be told of a subset without the query that made it.
    pub fn of<'a>(filter: &'a str, pool: &'a Pool, subset: Written) -> BoxFuture<'a, Result<Receipt>> {
        async move {
            let (pool_version, pool_rows) = pool.version().await?;
            let versions = pool.table_versions().await?.into_iter().map(|(table, version)| (table.name().to_string(), version));
            Ok(Receipt {
                filter: filter.to_string(),
                sql: String::new(),
                parameters: BTreeMap::new(),
                pool: pool.root().to_string(),
                pool_version,
                versions: versions.collect(),
                pool_rows,
                subset_size: subset.len,
                subset_sha256: subset.sha256,
                resources: BTreeMap::new(),
                tarn_version: env!("CARGO_PKG_VERSION").to_string(),
                wall_seconds: 0.0,
            })
        }
        .boxed()
    }

    /// `NAME.receipt.json` beside `NAME.npy`.
    pub fn path_beside(subset: &Path) -> PathBuf {
        subset.with_extension("receipt.json")
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let mut text = serde_json::to_string_pretty(self).expect("a receipt is plain data");
        text.push('\n');
        let part = path.with_extension("json.part");
        std::fs::write(&part, text).and_then(|()| put_in_place(&part, path)).map_err(Error::io(path))
    }

    pub fn read(path: &Path) -> Result<Receipt> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        serde_json::from_str(&text).map_err(|source| Error::Json { path: path.to_path_buf(), source })
    }
}
