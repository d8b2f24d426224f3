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

/// The folder, made and empty; what is in it goes first where `overwrite`.
fn prepare(folder: &Path, overwrite: bool) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        let path = entry.map_err(Error::io(folder))?.path();
        if !overwrite {
            return Err(Error::OutputNotEmpty { path: folder.to_path_buf() });
        }
        let ours = path.file_name().and_then(|n| n.to_str()).is_some_and(|name| {
            name.starts_with(|c: char| c.is_ascii_digit()) || ["meta.json", "sizes.json", "sample_ids.npy"].contains(&name)
        });
        if ours {
            std::fs::remove_file(&path).map_err(Error::io(&path))?;
        }
    }
    Ok(())
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
