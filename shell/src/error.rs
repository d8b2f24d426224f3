pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{message}")]
    Usage { message: String, hint: &'static str },
    #[error("stopped by Ctrl-C")]
    Interrupted,
    #[error("cannot write the output: {0}")]
    Output(#[source] std::io::Error),
    #[error("{}: {source}", path.display())]
    Io { path: std::path::PathBuf, source: std::io::Error },
    #[error("{} already exists and is not empty", path.display())]
    DemoExists { path: std::path::PathBuf },
    #[error("nothing of these sources went into {pool}")]
    NothingIngested { pool: String },
    #[error("not evaluated: {}", sets.join(", "))]
    NotEvaluated { sets: Vec<String> },
    #[error("{pool} is not sound: {wrong} findings")]
    NotSound { pool: String, wrong: usize },
    #[error("the GPU computes what the CPU does not: {}", wrong.join("; "))]
    SelfTest { wrong: Vec<String> },
    #[error(transparent)]
    Gpu(#[from] gpu::Error),
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error(transparent)]
    Index(#[from] index::Error),
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error(transparent)]
    Train(#[from] train::Error),
    #[error(transparent)]
    Eval(#[from] eval::Error),
    #[error(transparent)]
    Arrow(#[from] arrow::error::ArrowError),
    #[error(transparent)]
    Parquet(#[from] parquet::errors::ParquetError),
}

impl Error {
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Usage { hint, .. } => Some(hint.to_string()),
            Error::DemoExists { path } => Some(format!("remove it, or give another folder: tarn demo {}-2", path.display())),
            Error::NothingIngested { .. } => Some("the lines above say why".to_string()),
            Error::NotEvaluated { .. } => Some("the lines above say why; the same command tries these again".to_string()),
            Error::NotSound { pool, .. } => {
                Some(format!("files that no version needs and indexes that lag are mended by: tarn verify {pool} --repair"))
            }
            Error::Gpu(e) => e.hint(),
            Error::Storage(e) => e.hint(),
            Error::Index(e) => e.hint(),
            Error::Engine(e) => e.hint(),
            Error::Train(e) => e.hint(),
            Error::Eval(e) => e.hint(),
            _ => None,
        }
    }

    pub fn is_interrupt(&self) -> bool {
        use train::Error::{Interrupted, Stopped};
        let of_train = matches!(self, Error::Train(Interrupted { .. } | Stopped { .. }));
        of_train || matches!(self, Error::Interrupted | Error::Eval(eval::Error::Interrupted { .. }))
    }

    pub fn io(path: impl Into<std::path::PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }
}
