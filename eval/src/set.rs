//! Evaluation sets on disk, in the layouts of DataComp's and clip_benchmark's webdatasets and of Hugging Face's tables.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use train::hex;

use crate::source::{self, split_lines};
use crate::task::{Kind, Task, of_folder, tasks};
use crate::{Error, Result};

/// A folder with a task's data: `classnames.txt`, `zeroshot_classification_templates.txt`, `test/nshards.txt`,
/// `test/N.tar`; with `dataset_type.txt` saying `retrieval`; or with `.parquet` or `.arrow` files.
#[derive(Debug, Clone)]
pub struct EvalSet {
    pub folder: PathBuf,
    pub task: Task,
    /// Whether the task is of DataComp's list.
    pub listed: bool,
    pub classnames: Vec<String>,
    /// With `{c}` where the class's name goes.
    pub templates: Vec<String>,
    /// Shards in their order.
    pub(crate) files: Vec<PathBuf>,
    /// Of all shards.
    pub(crate) bytes: u64,
}

/// What a folder of evaluation sets holds.
#[derive(Debug, Default)]
pub struct Found {
    /// DataComp's tasks in its order, then the others by name.
    pub sets: Vec<EvalSet>,
    /// Folders that are named or laid out as sets and cannot be evaluated.
    pub broken: Vec<(PathBuf, Error)>,
    /// DataComp's tasks that no folder holds.
    pub missing: Vec<&'static Task>,
    /// Folders with the data of a task that another folder, named second, holds already: passed over.
    pub doubled: Vec<(PathBuf, PathBuf)>,
}

/// The evaluation sets in `folder`, those in the caches of Hugging Face's libraries included; or `folder` itself, where it
/// is one.
pub fn find(folder: &Path) -> Result<Found> {
    if !folder.is_dir() {
        return Err(Error::NoFolder { path: folder.to_path_buf() });
    }
    let mut folders = subfolders(folder)?;
    for cache in ["hf_cache", "hub", "hf_cache/hub"].map(|name| folder.join(name)).iter().filter(|cache| cache.is_dir()) {
        folders.extend(subfolders(cache)?);
    }
    // A repository has tables in a folder `data`, which by itself would pass for a set.
    let among = |of: fn(&Path) -> bool| folders.iter().any(|path| of(path));
    if is_marked(folder) || (!among(is_marked) && (in_repository(folder) || !among(looks_like_a_set))) {
        folders = vec![folder.to_path_buf()];
    }
    let mut found = Found::default();
    let mut sets: Vec<EvalSet> = Vec::new();
    for path in folders.into_iter().filter(|path| looks_like_a_set(path)) {
        match EvalSet::open(&path) {
            Ok(set) => match sets.iter().find(|other| other.task.key == set.task.key) {
                Some(other) => found.doubled.push((path, other.folder.clone())),
                None => sets.push(set),
            },
            Err(e) => found.broken.push((path, e)),
        }
    }
    if sets.is_empty() && found.broken.is_empty() {
        return Err(Error::NoSets { path: folder.to_path_buf() });
    }
    let place = |set: &EvalSet| tasks().iter().position(|task| task.key == set.task.key).unwrap_or(usize::MAX);
    sets.sort_by(|a, b| place(a).cmp(&place(b)).then_with(|| a.task.key.cmp(&b.task.key)));
    found.missing = tasks().iter().filter(|task| sets.iter().all(|set| set.task.key != task.key)).collect();
    found.sets = sets;
    Ok(found)
}

/// Folders inside, by name.
fn subfolders(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(Error::io(folder))?;
    let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    Ok(folders)
}

/// By its name or what lies in it; cheap, and not yet that it is sound.
fn looks_like_a_set(folder: &Path) -> bool {
    is_marked(folder) || in_repository(folder) || !tables_in(folder, 1).is_empty()
}

/// The tables of Hugging Face's repositories lie in `data`, or in a folder named as the split.
fn in_repository(folder: &Path) -> bool {
    ["data", "test"].iter().any(|name| !tables_in(&folder.join(name), 1).is_empty())
}

/// The same, but for tables, which may lie in a folder by chance.
fn is_marked(folder: &Path) -> bool {
    const MARKS: [&str; 5] =
        ["classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt", "task.toml", "test/nshards.txt"];
    let known = folder.file_name().and_then(|name| name.to_str()).is_some_and(|name| of_folder(name).is_some());
    known || MARKS.iter().any(|mark| folder.join(mark).exists())
}

impl EvalSet {
    fn open(folder: &Path) -> Result<EvalSet> {
        let files = shards(folder)?;
        let of_list = folder.file_name().and_then(|name| name.to_str()).and_then(of_folder);
        let task = match of_list {
            Some(task) => task.clone(),
            None => Task::own(folder, guess(folder, &files)?)?,
        };
        let (mut classnames, mut templates) = (Vec::new(), Vec::new());
        if matches!(task.kind, Kind::Classification | Kind::Faces) {
            classnames = lines(folder, "classnames.txt")?;
            templates = lines(folder, "zeroshot_classification_templates.txt")?;
            if let Some(template) = templates.iter().find(|template| !template.contains("{c}")) {
                let path = folder.join("zeroshot_classification_templates.txt");
                return Err(Error::Layout {
                    path,
                    expected: "{c} in every line, where the class's name goes".into(),
                    got: format!("'{template}'"),
                });
            }
        }
        let mut bytes = 0;
        for path in &files {
            bytes += path.metadata().map_err(Error::io(path))?.len();
        }
        Ok(EvalSet { folder: folder.to_path_buf(), task, listed: of_list.is_some(), classnames, templates, files, bytes })
    }

    /// Of the task, its texts, and the names, sizes and times of its files: a new download is evaluated again.
    pub fn digest(&self) -> String {
        let mut digest = Sha256::new();
        digest.update(format!("{:?}\0{:?}\0{:?}\0", self.task, self.classnames, self.templates));
        for path in &self.files {
            let name = path.strip_prefix(&self.folder).unwrap_or(path);
            let meta = path.metadata().ok();
            let changed = meta.as_ref().and_then(|meta| meta.modified().ok());
            digest.update(format!("{}\0{:?}\0{changed:?}\0", name.display(), meta.map(|meta| meta.len())));
        }
        hex(&digest.finalize()[..16])
    }
}

/// What the layout asks for.
fn guess(folder: &Path, files: &[PathBuf]) -> Result<Kind> {
    let kind = std::fs::read_to_string(folder.join("dataset_type.txt")).unwrap_or_default();
    match kind.trim().to_lowercase().as_str() {
        "retrieval" => return Ok(Kind::Retrieval),
        "classification" => return Ok(Kind::Classification),
        "" => {}
        other => {
            let expected = "classification or retrieval".into();
            return Err(Error::Layout { path: folder.join("dataset_type.txt"), expected, got: other.to_string() });
        }
    }
    if source::is_table(&files[0]) {
        let columns = source::columns(&files[0])?;
        let has = |names: &[&str]| names.iter().all(|name| columns.iter().any(|column| column == name));
        if has(&source::ASSOCIATION) {
            return Ok(Kind::Association);
        }
        if has(&["image", "caption"]) {
            return Ok(Kind::Retrieval);
        }
        if !has(&["image", "label"]) {
            let expected = format!("columns image and label, image and caption, or {}", source::ASSOCIATION.join(", "));
            return Err(Error::Layout { path: files[0].clone(), expected, got: columns.join(", ") });
        }
    }
    Ok(Kind::Classification)
}

/// A text file's lines; those at the end that are empty do not count.
fn lines(folder: &Path, name: &str) -> Result<Vec<String>> {
    let path = folder.join(name);
    if !path.exists() {
        return Err(Error::Layout { path, expected: "one entry a line".into(), got: "no such file".into() });
    }
    let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
    let text = String::from_utf8(bytes).map_err(|e| {
        let line = e.as_bytes()[..e.utf8_error().valid_up_to()].iter().filter(|byte| **byte == b'\n').count() + 1;
        Error::Layout { path: path.clone(), expected: "UTF-8".into(), got: format!("other bytes in line {line}") }
    })?;
    let mut lines: Vec<String> = split_lines(&text).iter().map(|line| line.trim().to_string()).collect();
    while lines.last().is_some_and(String::is_empty) {
        lines.pop();
    }
    match lines.is_empty() {
        true => Err(Error::Layout { path, expected: "one entry a line".into(), got: "an empty file".into() }),
        false => Ok(lines),
    }
}

/// `test/0.tar`, ...: as many as `test/nshards.txt` says; or the tables of the test split.
fn shards(folder: &Path) -> Result<Vec<PathBuf>> {
    let count = folder.join("test/nshards.txt");
    if count.exists() {
        let text = std::fs::read_to_string(&count).map_err(Error::io(&count))?;
        let n = text.trim().parse::<usize>().ok().filter(|n| *n > 0);
        let wrong = || Error::Layout { path: count.clone(), expected: "a number of shards".into(), got: format!("'{}'", text.trim()) };
        let files: Vec<PathBuf> = (0..n.ok_or_else(wrong)?).map(|i| folder.join(format!("test/{i}.tar"))).collect();
        return match files.iter().find(|file| !file.is_file()) {
            Some(path) => {
                Err(Error::Layout { path: path.clone(), expected: format!("{} shards", files.len()), got: "no such file".into() })
            }
            None => Ok(files),
        };
    }
    let tables = tables_in(folder, 6);
    // Other splits lie beside it; a table that names none is the test split.
    let is_test = |path: &&PathBuf| {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        stem.starts_with("test") || stem.contains("-test")
    };
    let of_test: Vec<PathBuf> = tables.iter().filter(is_test).cloned().collect();
    match (tables.is_empty(), of_test.is_empty()) {
        (true, _) => Err(Error::Layout {
            path: folder.to_path_buf(),
            expected: "test/nshards.txt, or .parquet or .arrow files".into(),
            got: "neither".into(),
        }),
        (_, true) => Ok(tables),
        (_, false) => Ok(of_test),
    }
}

/// Tables in a folder and `depth` levels below it, by path. Links are followed: Hugging Face's caches are made of them.
fn tables_in(folder: &Path, depth: usize) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return found };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() && depth > 1 {
            found.extend(tables_in(&path, depth - 1));
        } else if path.is_file() && source::is_table(&path) {
            found.push(path);
        }
    }
    found
}
