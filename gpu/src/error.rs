use std::path::PathBuf;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Why no GPU can be used.
    #[error("no GPU: {reason}")]
    None { reason: String },
    #[error("{what} of CUDA failed: {reason}")]
    Cuda { what: &'static str, reason: String },
    #[error("the GPU has no room for {bytes} bytes: {free} of {total} are free")]
    Memory { bytes: usize, free: usize, total: usize },
    #[error("kernels do not compile with {compiler}:\n{log}")]
    Compile { compiler: String, log: String },
    #[error("there is no kernel {name}")]
    Kernel { name: String },
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
}

impl Error {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::None { .. } => Some("give --device cpu, or look at what nvidia-smi says".into()),
            Error::Memory { .. } => Some("give a smaller --micro-batch or --train-memory, or stop what else uses the GPU".into()),
            _ => None,
        }
    }

    pub(crate) fn cuda<E: std::fmt::Debug>(what: &'static str) -> impl FnOnce(E) -> Error {
        move |e| Error::Cuda { what, reason: format!("{e:?}") }
    }
}
