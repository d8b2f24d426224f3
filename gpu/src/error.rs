use std::path::PathBuf;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// Why no GPU can be used.
    #[error("no GPU: {reason}")]
    None { reason: String },
    #[error("to emulate a GPU a C++ compiler is needed; {compiler}: {reason}")]
    Compiler { compiler: String, reason: String },
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
            Error::None { .. } => Some("nvidia-smi says more, and --device cpu does without".into()),
            Error::Compiler { .. } => Some("install g++ or clang++, or name one in CXX".into()),
            Error::File { .. } => Some("compiled kernels are kept in ~/.cache/tarn: name another folder in TARN_CACHE".into()),
            Error::Memory { .. } => Some("give a smaller --micro-batch or --train-memory, or stop what else uses the GPU".into()),
            _ => None,
        }
    }

    pub(crate) fn cuda<E: std::fmt::Debug>(what: &'static str) -> impl FnOnce(E) -> Error {
        move |e| Error::Cuda { what, reason: format!("{e:?}") }
    }
}
