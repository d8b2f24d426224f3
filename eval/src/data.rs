//! Evaluation sets on disk: webdataset folders as DataComp's downloader leaves them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use crate::task::{Task, key_of_folder, of_folder};
use crate::{Error, Result};

/// A classification set: `classnames.txt`, `zeroshot_classification_templates.txt`, `test/nshards.txt`, `test/N.tar`.
#[derive(Debug, Clone)]
pub struct EvalSet {
    pub folder: PathBuf,
    /// The task's key, or what the folder's name says where it is not of the list.
    pub key: String,
    pub name: String,
    /// The main metric.
    pub metric: String,
    pub classnames: Vec<String>,
    /// With `{c}` where the class's name goes.
    pub templates: Vec<String>,
    shards: Vec<PathBuf>,
}

/// One image with its class.
pub(crate) struct Labelled {
    pub label: usize,
    pub image: Vec<u8>,
}

/// Main metrics of the sets that are evaluated; others are named, never scored by another metric.
const CLASSIFICATION_METRICS: [&str; 3] = ["acc1", "acc5", "mean_per_class_recall"];

/// The classification sets inside `folder`, by name, and the names of the sets that are of another kind.
pub fn find(folder: &Path) -> Result<(Vec<EvalSet>, Vec<String>)> {
    let entries = std::fs::read_dir(folder).map_err(Error::io(folder))?;
    let mut folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    folders.sort();
    if name_of(folder).is_some_and(|name| key_of_folder(name).is_some()) {
        folders = vec![folder.to_path_buf()];
    }
    let (mut sets, mut others) = (Vec::new(), Vec::new());
    for path in folders {
        let Some(key) = name_of(&path).and_then(key_of_folder) else { continue };
        let metric = name_of(&path).and_then(of_folder).map_or("acc1", |task| &task.metric);
        if path.join("classnames.txt").exists() && CLASSIFICATION_METRICS.contains(&metric) {
            sets.push(EvalSet::open(&path, key)?);
        } else {
            others.push(key.to_string());
        }
    }
    if sets.is_empty() && others.is_empty() {
        return Err(Error::NoSets { path: folder.to_path_buf() });
    }
    Ok((sets, others))
}

fn name_of(path: &Path) -> Option<&str> {
    path.file_name().and_then(|name| name.to_str())
}

impl EvalSet {
    fn open(folder: &Path, key: &str) -> Result<EvalSet> {
        let lines = |name: &str| -> Result<Vec<String>> {
            let path = folder.join(name);
            let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
            let lines: Vec<String> = text.lines().map(|l| l.trim_end_matches('\r').to_string()).filter(|l| !l.is_empty()).collect();
            if lines.is_empty() {
                return Err(Error::Layout { path, expected: "one entry a line", got: "an empty file".into() });
            }
            Ok(lines)
        };
        let classnames = lines("classnames.txt")?;
        let templates = lines("zeroshot_classification_templates.txt")?;
        let n = &lines("test/nshards.txt")?[0];
        let n: usize = n.trim().parse().map_err(|_| Error::Layout {
            path: folder.join("test/nshards.txt"),
            expected: "a number of shards",
            got: n.clone(),
        })?;
        let task: Option<&Task> = name_of(folder).and_then(of_folder);
        Ok(EvalSet {
            folder: folder.to_path_buf(),
            key: task.map_or(key, |t| &t.key).to_string(),
            name: task.map_or(key, |t| &t.name).to_string(),
            metric: task.map_or("acc1", |t| &t.metric).to_string(),
            classnames,
            templates,
            shards: (0..n).map(|i| folder.join(format!("test/{i}.tar"))).collect(),
        })
    }

    /// Every sample in its order; the archives are read as streams.
    pub(crate) fn for_each(&self, mut each: impl FnMut(Labelled) -> Result<()>) -> Result<()> {
        for path in &self.shards {
            let file = File::open(path).map_err(Error::io(path))?;
            let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 18, file));
            let (mut key, mut parts) = (String::new(), HashMap::<String, Vec<u8>>::new());
            for entry in archive.entries().map_err(Error::io(path))? {
                let mut entry = entry.map_err(Error::io(path))?;
                let name = entry.path().map_err(Error::io(path))?.to_string_lossy().into_owned();
                let Some((stem, extension)) = name.rsplit('/').next().and_then(|file| file.split_once('.')) else { continue };
                if stem != key {
                    self.emit(path, &key, &mut parts, &mut each)?;
                    key = stem.to_string();
                }
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).map_err(Error::io(path))?;
                parts.insert(extension.to_lowercase(), bytes);
            }
            self.emit(path, &key, &mut parts, &mut each)?;
        }
        Ok(())
    }

    fn emit(
        &self,
        path: &Path,
        key: &str,
        parts: &mut HashMap<String, Vec<u8>>,
        each: &mut impl FnMut(Labelled) -> Result<()>,
    ) -> Result<()> {
        let mut parts = std::mem::take(parts);
        let image = ["jpg", "jpeg", "png", "webp"].iter().find_map(|extension| parts.remove(*extension));
        let (Some(image), Some(label)) = (image, parts.remove("cls")) else { return Ok(()) };
        let text = String::from_utf8_lossy(&label).trim().to_string();
        let label = text.parse().ok().filter(|label| *label < self.classnames.len()).ok_or_else(|| Error::Label {
            path: path.to_path_buf(),
            key: key.to_string(),
            got: text.clone(),
            classes: self.classnames.len(),
        })?;
        each(Labelled { label, image })
    }
}
