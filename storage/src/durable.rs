//! Files and folders that replace others: whole on the disk before they get their name.

use std::fs::File;
use std::io;
use std::path::Path;

/// Gives what lies at `part`, a file or a folder of files, the name `path`, when it is on the disk; a file of that name is
/// replaced, a folder of that name must be gone. A kill or a loss of power leaves the one or the other whole.
///
/// # Errors
/// Those of the file system; `part` stays then.
pub fn put_in_place(part: &Path, path: &Path) -> io::Result<()> {
    sync(part)?;
    std::fs::rename(part, path)?;
    sync_folder(path.parent().unwrap_or(Path::new("")))
}

fn sync(path: &Path) -> io::Result<()> {
    if !path.is_dir() {
        return File::open(path)?.sync_all();
    }
    for entry in std::fs::read_dir(path)? {
        sync(&entry?.path())?;
    }
    sync_folder(path)
}

/// Makes the names in a folder durable, where the system knows such a thing.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })?.sync_all() } else { Ok(()) }
}
