//! Compiled kernels in the user's cache.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::{CACHE_VARIABLE, Error, Result};

/// Of this user alone: libraries in it are loaded.
fn folder() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = variable(CACHE_VARIABLE)
        .or_else(|| variable("XDG_CACHE_HOME").map(|cache| cache.join("tarn")))
        .or_else(|| variable("HOME").map(|home| home.join(".cache/tarn")));
    let nowhere = || Error::File { path: "~/.cache/tarn".into(), reason: "HOME is not set".into() };
    Ok(cache.ok_or_else(nowhere)?.join("kernels"))
}

/// The file that `make` writes, made once for each `key`. Two processes may make it at once: each writes its own and gives
/// it the name.
pub fn file(key: &[&str], extension: &str, make: impl FnOnce(&std::path::Path) -> Result<()>) -> Result<PathBuf> {
    let mut digest = Sha256::new();
    for part in key {
        digest.update((part.len() as u64).to_le_bytes());
        digest.update(part);
    }
    let name: String = digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let folder = folder()?;
    std::fs::create_dir_all(&folder).map_err(|e| Error::File { path: folder.clone(), reason: e.to_string() })?;
    let path = folder.join(format!("{name}.{extension}"));
    if !path.exists() {
        let part = folder.join(format!(".{name}.{}.{extension}", std::process::id()));
        let made = make(&part);
        if let Err(e) = made {
            let _ = std::fs::remove_file(&part);
            return Err(e);
        }
        std::fs::rename(&part, &path).map_err(|e| Error::File { path: path.clone(), reason: e.to_string() })?;
    }
    Ok(path)
}
