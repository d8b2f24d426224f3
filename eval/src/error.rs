use std::path::PathBuf;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in an evaluation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("no such folder: {}", path.display())]
    NoFolder { path: PathBuf },
    #[error("no evaluation sets in {}: found no folder named wds_*_test, and none with their files", path.display())]
    NoSets { path: PathBuf },
    #[error("{}: expected {expected}, got {got}", path.display())]
    Layout { path: PathBuf, expected: String, got: String },
    #[error("{}: {reason}", path.display())]
    TaskFile { path: PathBuf, reason: String },
    #[error("{}: the shard cannot be read: {reason}", path.display())]
    Shard { path: PathBuf, reason: String },
    #[error("{}: {reason}", path.display())]
    Table { path: PathBuf, reason: String },
    #[error("{}: sample {key}: {reason}", path.display())]
    Sample { path: PathBuf, key: String, reason: String },
    #[error("{}: no sample could be read{}", path.display(), first.as_ref().map(|first| format!(", {unreadable} were unreadable, the first is {first}")).unwrap_or_default())]
    NoSamples { path: PathBuf, unreadable: u64, first: Option<String> },
    #[error("{} holds no results", path.display())]
    NoResults { path: PathBuf },
    #[error("{} holds {results} results of another checkpoint", path.display())]
    OtherCheckpoint { path: PathBuf, results: usize },
    #[error("another process is writing to {}", path.display())]
    Busy { path: PathBuf },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("line {line} of {} is no result: {source}", path.display())]
    Json { path: PathBuf, line: usize, source: serde_json::Error },
    #[error("no run is named '{name}', there are {}", known.join(", "))]
    NoRun { name: String, known: Vec<String> },
    #[error("{run} cannot be submitted:\n  {}", reasons.join("\n  "))]
    NotSubmittable { run: String, reasons: Vec<String> },
    #[error("{} is not empty", path.display())]
    NotEmpty { path: PathBuf },
    #[error("stopped in task '{task}'")]
    Interrupted { task: String },
    #[error(transparent)]
    Train(#[from] train::Error),
}

impl Error {
    /// The next thing to do about it, where there is one.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::NoSets { .. } => "a set is a folder wds_KEY_test with classnames.txt, zeroshot_classification_templates.txt and test/N.tar, as DataComp's download_evalsets.py leaves it, or one with a task.toml".into(),
            Error::Shard { .. } => "fetch the shard again".into(),
            Error::NoResults { path } => format!("evaluate it first: tarn eval {} --data DIR", path.display()),
            Error::OtherCheckpoint { .. } => "give another folder with -o, or --overwrite to replace them".into(),
            Error::Interrupted { .. } => "the same command goes on with this task; with --overwrite it begins anew".into(),
            Error::Train(e) => return e.hint(),
            _ => return None,
        })
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }
}
