use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Rows of samples: parquet or CSV.
    Metadata,
    /// `.npz`: row i belongs to row i of the metadata of the same stem.
    Embeddings,
    /// Webdataset: `.tar`, plain or compressed.
    Shard,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Metadata => "metadata",
            Kind::Embeddings => "embeddings",
            Kind::Shard => "shard",
        }
    }
}

/// A file to ingest; ordered by kind, then by path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Source {
    pub kind: Kind,
    /// From the root of the file system.
    pub path: PathBuf,
    pub bytes: u64,
    /// Microseconds since 1970.
    pub modified: i64,
}

impl Source {
    pub fn name(&self) -> String {
        self.path.display().to_string()
    }
}

/// All files behind `sources`, each once. Folders are searched in depth; what is of no known kind there is passed over,
/// as are img2dataset's own logs (a parquet beside a shard of the same stem).
pub(super) fn find(sources: &[String]) -> Result<Vec<Source>> {
    let mut found = BTreeSet::new();
    for source in sources {
        let path = Path::new(source);
        let mut any = false;
        if path.is_dir() {
            any |= walk(path, &mut found)?;
        } else if path.is_file() {
            found.insert(open(path)?.ok_or_else(|| Error::SourceKind { path: path.to_path_buf() })?);
            any = true;
        } else {
            let matches = glob::glob(source).map(|paths| paths.flatten().collect::<Vec<_>>()).unwrap_or_default();
            if matches.is_empty() {
                return Err(Error::SourceMissing { path: path.to_path_buf() });
            }
            for path in matches {
                any |= if path.is_dir() { walk(&path, &mut found)? } else { add(&path, &mut found)? };
            }
        }
        if !any {
            return Err(Error::SourceEmpty { path: path.to_path_buf() });
        }
    }
    Ok(found.into_iter().collect())
}

fn walk(folder: &Path, found: &mut BTreeSet<Source>) -> Result<bool> {
    let mut any = false;
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        any |= if path.is_dir() { walk(&path, found)? } else { add(&path, found)? };
    }
    Ok(any)
}

fn add(path: &Path, found: &mut BTreeSet<Source>) -> Result<bool> {
    let source = open(path)?;
    let any = source.is_some();
    found.extend(source);
    Ok(any)
}

fn open(path: &Path) -> Result<Option<Source>> {
    let Some(kind) = kind(path) else { return Ok(None) };
    let path = path.canonicalize().map_err(Error::io(path))?;
    let meta = path.metadata().map_err(Error::io(&path))?;
    let modified = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Ok(Some(Source { kind, path, bytes: meta.len(), modified: modified.map_or(0, |d| d.as_micros() as i64) }))
}

fn kind(path: &Path) -> Option<Kind> {
    let name = path.file_name()?.to_str()?.to_lowercase();
    let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
    if ends(&[".tar", ".tar.gz", ".tgz", ".tar.zst"]) {
        Some(Kind::Shard)
    } else if ends(&[".npz"]) {
        Some(Kind::Embeddings)
    } else if ends(&[".csv"]) || ends(&[".parquet"]) && !path.with_extension("tar").exists() {
        Some(Kind::Metadata)
    } else {
        None
    }
}
