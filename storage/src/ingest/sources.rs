use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Metadata,
    Shard,
}

/// A file to ingest; ordered metadata before shards, then by path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Source {
    pub kind: Kind,
    pub path: PathBuf,
    /// The `.npz` beside a metadata file.
    pub embeddings: Option<PathBuf>,
    pub bytes: u64,
}

/// All files behind `sources`, each once. Folders are searched in depth; what is not of DataComp's layout there is
/// passed over, as are img2dataset's own logs (a parquet beside a shard of the same stem).
pub(super) fn find(sources: &[String]) -> Result<Vec<Source>> {
    let mut found = BTreeSet::new();
    for source in sources {
        let before = found.len();
        let path = Path::new(source);
        if path.is_dir() {
            walk(path, &mut found)?;
        } else if path.is_file() {
            found.insert(classify(path)?.ok_or_else(|| Error::SourceKind { path: path.to_path_buf() })?);
        } else {
            let matches = glob::glob(source).map(|paths| paths.flatten().collect::<Vec<_>>()).unwrap_or_default();
            if matches.is_empty() {
                return Err(Error::SourceMissing { path: path.to_path_buf() });
            }
            for path in matches {
                if path.is_dir() {
                    walk(&path, &mut found)?;
                } else {
                    found.extend(classify(&path)?);
                }
            }
        }
        if found.len() == before && before == 0 {
            return Err(Error::SourceEmpty { path: path.to_path_buf() });
        }
    }
    Ok(found.into_iter().collect())
}

fn walk(folder: &Path, found: &mut BTreeSet<Source>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if path.is_dir() {
            walk(&path, found)?;
        } else {
            found.extend(classify(&path)?);
        }
    }
    Ok(())
}

fn classify(path: &Path) -> Result<Option<Source>> {
    let kind = match path.extension().and_then(|e| e.to_str()) {
        Some("parquet") if !path.with_extension("tar").exists() => Kind::Metadata,
        Some("tar") => Kind::Shard,
        _ => return Ok(None),
    };
    let size = |path: &Path| std::fs::metadata(path).map(|m| m.len()).map_err(Error::io(path));
    let npz = path.with_extension("npz");
    let embeddings = (kind == Kind::Metadata && npz.exists()).then_some(npz);
    let mut bytes = size(path)?;
    if let Some(npz) = &embeddings {
        bytes += size(npz)?;
    }
    Ok(Some(Source { kind, path: path.to_path_buf(), embeddings, bytes }))
}
