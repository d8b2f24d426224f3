//! A subset as files for other programs.

mod parquet;
mod webdataset;

use std::path::Path;

use crate::{Error, Result, Subset};

pub use parquet::{DOWNLOADER_COLUMNS, parquet};
pub use webdataset::webdataset;

/// What an export wrote.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    pub samples: u64,
    pub files: u64,
    pub bytes: u64,
    /// Entries of the subset that could not be written.
    pub not_in_pool: u64,
    pub no_image: u64,
    /// Images whose faces were blurred, and those that could not be decoded for it.
    pub blurred: u64,
    pub not_blurred: u64,
}

/// Tells a folder that an export wrote; what it says is whether the export came to its end.
const MARKER: &str = ".tarn-export";

/// The folder, made and empty. What an earlier export wrote to it goes where `overwrite`, or where that export was
/// stopped; anything else is never touched.
fn prepare(folder: &Path, overwrite: bool) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let marker = folder.join(MARKER);
    let names = std::fs::read_dir(folder).map_err(Error::io(folder))?;
    let names = names.collect::<std::io::Result<Vec<_>>>().map_err(Error::io(folder))?;
    if !names.is_empty() {
        let state = std::fs::read_to_string(&marker).map_err(|_| Error::OutputNotEmpty { path: folder.to_path_buf() })?;
        if state == DONE && !overwrite {
            return Err(Error::OutputExists { path: folder.to_path_buf() });
        }
    }
    for path in names.iter().map(std::fs::DirEntry::path) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let ends = [".tar", ".tar.partial", "_stats.json", ".parquet"];
        let numbered =
            ends.iter().any(|end| name.strip_suffix(end).is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit())));
        if numbered || ["meta.json", "sizes.json", "sample_ids.npy"].contains(&name.as_str()) {
            std::fs::remove_file(&path).map_err(Error::io(&path))?;
        }
    }
    std::fs::write(&marker, "under way").map_err(Error::io(&marker))
}

const DONE: &str = "done";

fn finish(folder: &Path) -> Result<()> {
    let marker = folder.join(MARKER);
    std::fs::write(&marker, DONE).map_err(Error::io(&marker))
}

/// The subset's uids, each once, with how often it occurs.
fn counted(subset: &Subset) -> (Vec<crate::Uid>, Vec<u32>) {
    let (mut uids, mut counts) = (Vec::new(), Vec::new());
    for &uid in subset.uids() {
        if uids.last() == Some(&uid) {
            *counts.last_mut().expect("as long as uids") += 1;
        } else {
            uids.push(uid);
            counts.push(1);
        }
    }
    (uids, counts)
}
