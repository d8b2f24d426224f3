use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::rejects::Reject;
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
/// What cannot be looked at there is a reject.
pub(super) fn find(sources: &[String]) -> Result<Found> {
    let mut found = Found::default();
    for source in sources {
        let path = Path::new(source);
        let mut any = false;
        if path.is_dir() {
            // Named again, it has nothing new.
            any |= path.canonicalize().is_ok_and(|real| found.folders.contains(&real)) || found.walk(path);
        } else if path.is_file() {
            found.sources.insert(open(path)?.ok_or_else(|| Error::SourceKind { path: path.to_path_buf() })?);
            any = true;
        } else {
            let matches = glob::glob(source).map(|paths| paths.flatten().collect::<Vec<_>>()).unwrap_or_default();
            if matches.is_empty() {
                return Err(Error::SourceMissing { path: path.to_path_buf() });
            }
            for path in matches {
                any |= if path.is_dir() { found.walk(&path) } else { found.add(&path) };
            }
        }
        if !any {
            return Err(Error::SourceEmpty { path: path.to_path_buf() });
        }
    }
    Ok(found)
}

#[derive(Default)]
pub(super) struct Found {
    pub sources: BTreeSet<Source>,
    pub rejects: Vec<Reject>,
    /// Files that are taken for none, counted by reason, with the first of each.
    pub passed_over: BTreeMap<&'static str, (u64, String)>,
    /// Folders that were searched: links may lead in circles.
    folders: BTreeSet<PathBuf>,
}

impl Found {
    fn walk(&mut self, folder: &Path) -> bool {
        let inside = folder.canonicalize().and_then(|real| match self.folders.insert(real) {
            true => std::fs::read_dir(folder)?.collect::<std::io::Result<Vec<_>>>(),
            false => Ok(vec![]),
        });
        let inside = inside.unwrap_or_else(|e| {
            self.rejects.push(Reject::file(&folder.display().to_string(), "not readable", e));
            vec![]
        });
        let mut any = false;
        for path in inside.iter().map(std::fs::DirEntry::path) {
            any |= if path.is_dir() { self.walk(&path) } else { self.add(&path) };
        }
        any
    }

    fn add(&mut self, path: &Path) -> bool {
        match open(path) {
            Ok(source) => {
                let any = source.is_some();
                if !any {
                    let reason =
                        if is_log(path) { "parquet beside a shard of its name, as img2dataset writes" } else { "of no known kind" };
                    self.passed_over.entry(reason).or_insert_with(|| (0, path.display().to_string())).0 += 1;
                }
                self.sources.extend(source);
                any
            }
            Err(e) => {
                self.rejects.push(Reject::file(&path.display().to_string(), "not readable", e));
                false
            }
        }
    }
}

fn open(path: &Path) -> Result<Option<Source>> {
    let Some(kind) = kind(path) else { return Ok(None) };
    let path = path.canonicalize().map_err(Error::io(path))?;
    let meta = path.metadata().map_err(Error::io(&path))?;
    let modified = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Ok(Some(Source { kind, path, bytes: meta.len(), modified: modified.map_or(0, |d| d.as_micros() as i64) }))
}

fn kind(path: &Path) -> Option<Kind> {
    let name = path.file_name()?.to_string_lossy().to_lowercase();
    let ends = |ends: &[&str]| ends.iter().any(|end| name.ends_with(end));
    if ends(&[".tar", ".tar.gz", ".tgz", ".tar.zst"]) {
        Some(Kind::Shard)
    } else if ends(&[".npz"]) {
        Some(Kind::Embeddings)
    } else if ends(&[".csv", ".parquet"]) && !is_log(path) {
        Some(Kind::Metadata)
    } else {
        None
    }
}

/// Returns true for a parquet beside a shard of the same stem: img2dataset's log of its downloads.
fn is_log(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("parquet")) && path.with_extension("tar").exists()
}
