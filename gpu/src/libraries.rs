//! Where NVIDIA's libraries are, besides the folders of the system's loader.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;

/// Opens what is found of them, once: with their versions, as `libnvrtc.so.13`, they are found by name afterwards, by cudarc
/// too.
pub fn open() {
    static OPEN: OnceLock<Vec<Library>> = OnceLock::new();
    OPEN.get_or_init(|| {
        let mut open = Vec::new();
        for name in ["libnvrtc.so", "libcublasLt.so"] {
            find(name, &mut open);
        }
        open
    });
}

/// NCCL, if it is here.
pub fn nccl() -> Option<&'static Library> {
    static NCCL: OnceLock<Vec<Library>> = OnceLock::new();
    let found = NCCL.get_or_init(|| {
        let mut open = Vec::new();
        find("libnccl.so", &mut open);
        open
    });
    found.last()
}

/// Opens a library, after what it needs of its own folder.
fn find(name: &str, open: &mut Vec<Library>) {
    let candidates = ["", ".13", ".12", ".2"].map(|version| format!("{name}{version}"));
    if let Some(library) = candidates.iter().find_map(|name| load(Path::new(name))) {
        open.push(library);
        return;
    }
    let Some(path) = folders().iter().find_map(|folder| newest(folder, name)) else { return };
    // NVRTC opens its builtins by name, from its own folder.
    if name == "libnvrtc.so" {
        let folder = path.parent().unwrap_or(Path::new("."));
        open.extend(newest(folder, "libnvrtc-builtins.so").and_then(|path| load(&path)));
    }
    open.extend(load(&path));
}

fn load(path: &Path) -> Option<Library> {
    // SAFETY: NVIDIA's libraries; what they do when they are opened is harmless.
    unsafe { Library::new(path) }.ok()
}

/// The toolkit's, and those of Python packages in the environment that is active.
fn folders() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut folders: Vec<PathBuf> = variable("TARN_CUDA_LIBRARIES").into_iter().collect();
    for toolkit in [variable("CUDA_HOME"), variable("CUDA_PATH"), Some("/usr/local/cuda".into())].into_iter().flatten() {
        folders.extend([toolkit.join("lib64"), toolkit.join("lib")]);
    }
    for python in [variable("VIRTUAL_ENV"), variable("CONDA_PREFIX"), Some("/usr/local".into()), Some("/usr".into())].into_iter().flatten()
    {
        for version in entries(&python.join("lib")).into_iter().filter(|path| file_name(path).starts_with("python3")) {
            for packages in ["site-packages", "dist-packages"] {
                for package in entries(&version.join(packages).join("nvidia")) {
                    folders.push(package.join("lib"));
                }
            }
        }
    }
    folders
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut entries: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    entries
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// The last by name of `name`, `name.12`, `name.13`, ...
fn newest(folder: &Path, name: &str) -> Option<PathBuf> {
    let is = |path: &PathBuf| {
        let file = file_name(path);
        file == name || file.strip_prefix(name).is_some_and(|version| version.starts_with('.'))
    };
    entries(folder).into_iter().rfind(is)
}
