//! Work that is kept in pieces until all of it is done, so that a run that was stopped goes on behind them.

use std::fs::File;
use std::path::{Path, PathBuf};

use arrow::array::RecordBatch;
use arrow::ipc::reader::FileReader;
use arrow::ipc::writer::FileWriter;

use crate::checkpoint::write_whole;
use crate::{Error, Result};

/// A digest as text.
pub fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A folder of numbered Arrow files, and a digest of what they were made from.
pub struct Parts {
    folder: PathBuf,
}

const DIGEST_FILE: &str = "of";

impl Parts {
    /// Goes on with what the folder holds if it was made from the same; begins anew otherwise.
    pub fn open(folder: &Path, digest: &str) -> Result<Parts> {
        let path = folder.join(DIGEST_FILE);
        if std::fs::read_to_string(&path).is_ok_and(|of| of == digest) {
            return Ok(Parts { folder: folder.to_path_buf() });
        }
        let _ = std::fs::remove_dir_all(folder);
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        write_whole(&path, |file| std::io::Write::write_all(file, digest.as_bytes()))?;
        Ok(Parts { folder: folder.to_path_buf() })
    }

    /// The piece of this number, if it is there and whole.
    pub fn read(&self, number: usize) -> Option<RecordBatch> {
        let file = File::open(self.path(number)).ok()?;
        FileReader::try_new(file, None).ok()?.next()?.ok()
    }

    pub fn write(&self, number: usize, batch: &RecordBatch) -> Result<()> {
        let wrong = |e: arrow::error::ArrowError| std::io::Error::other(e);
        write_whole(&self.path(number), |file| {
            let mut writer = FileWriter::try_new(file, &batch.schema()).map_err(wrong)?;
            writer.write(batch).and_then(|()| writer.finish()).map_err(wrong)
        })
    }

    /// All is done elsewhere.
    pub fn remove(self) -> Result<()> {
        std::fs::remove_dir_all(&self.folder).map_err(Error::io(&self.folder))
    }

    fn path(&self, number: usize) -> PathBuf {
        self.folder.join(format!("{number:06}.arrow"))
    }
}
