use std::fs::{File, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use std::time::Duration;

use crate::{Error, Pool, Result};

/// Excludes other writers from a pool in a local folder; given back when dropped, and by the system when the process dies.
/// Pools in object stores have none: there each commit checks that nobody else has written.
pub(crate) struct Lock {
    file: Option<File>,
    /// Whether the process that held it last came to no good end: what it wrote and did not commit is still there.
    pub unclean: bool,
}

/// How often, and how long apart, a lock without a name on it is looked at again.
const TRIES: usize = 200;
const PAUSE: Duration = Duration::from_millis(5);

impl Lock {
    /// Error `Held` if another process writes to the pool.
    pub fn take(pool: &Pool) -> Result<Lock> {
        if pool.is_remote() {
            return Ok(Lock { file: None, unclean: false });
        }
        pool.make_folder()?;
        let path = Path::new(pool.root()).join(".lock");
        let mut file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(Error::io(&path))?;
        for _ in 0..TRIES {
            match file.try_lock() {
                Ok(()) => {
                    let unclean = file.metadata().is_ok_and(|meta| meta.len() > 0);
                    let holder = format!("process {}", std::process::id());
                    // Never empty in between: a kill there would hide that the one before came to no good end.
                    file.write_all(holder.as_bytes()).and_then(|()| file.set_len(holder.len() as u64)).map_err(Error::io(&path))?;
                    return Ok(Lock { file: Some(file), unclean });
                }
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    let _ = file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_string(&mut holder));
                    if !holder.is_empty() {
                        return Err(Error::Held { path: pool.root().to_string(), holder });
                    }
                    // It has the lock and has not written its name yet, or is just giving it back.
                    std::thread::sleep(PAUSE);
                }
                // A file system without locks: commits check for themselves.
                Err(TryLockError::Error(_)) => return Ok(Lock { file: None, unclean: false }),
            }
        }
        Err(Error::Held { path: pool.root().to_string(), holder: "another process".into() })
    }

    /// Returns true if nobody else can write; always false in an object store, or where the file system has no locks.
    pub fn is_held(&self) -> bool {
        self.file.is_some()
    }

    /// Gives it back after a good end.
    pub fn done(&self) {
        if let Some(file) = &self.file {
            // If this fails, the next holder sweeps for nothing.
            let _ = file.set_len(0);
        }
    }
}
