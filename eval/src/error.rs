use std::path::PathBuf;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in an evaluation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("no evaluation sets in {}: found no folder named wds_*_test", path.display())]
    NoSets { path: PathBuf },
    #[error("{}: label {got} of sample '{key}' is outside the {classes} classes", path.display())]
    Label { path: PathBuf, key: String, got: String, classes: usize },
    #[error("{}: no sample could be read, {unreadable} images were unreadable", path.display())]
    NoSamples { path: PathBuf, unreadable: u64 },
    #[error("{}: expected {expected}, got {got}", path.display())]
    Layout { path: PathBuf, expected: &'static str, got: String },
    #[error("{} holds no results", path.display())]
    NoResults { path: PathBuf },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("stopped in task '{task}'")]
    Interrupted { task: String },
    #[error(transparent)]
    Train(#[from] train::Error),
}

impl Error {
    /// The next thing to do about it, where there is one.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::NoSets { .. } => "a set is a folder wds_KEY_test with classnames.txt, zeroshot_classification_templates.txt and test/N.tar, as DataComp's download_evalsets.py leaves it".into(),
            Error::NoResults { path } => format!("evaluate it first: tarn eval {} --data DIR", path.display()),
            Error::Train(e) => return e.hint(),
            _ => return None,
        })
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }
}
