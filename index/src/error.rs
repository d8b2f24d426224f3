pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with vectors and indexes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("vectors of different dimensions: {left} and {right}")]
    Dimensions { left: usize, right: usize },
    #[error("not a vector: {got}, expected a list of float16, float32 or float64")]
    NotAVector { got: String },
    #[error("a vector has a NULL inside")]
    NullInVector,
    #[error("{values} values are no vectors of {dim}")]
    SetShape { dim: usize, values: usize },
    #[error("{samples} samples are too few for {k} centroids")]
    FewSamples { k: usize, samples: usize },
    #[error("unknown kind of index '{name}'")]
    UnknownKind { name: String },
    #[error("an index of kind {kind} takes no option '{option}'{}", if known.is_empty() { String::new() } else { format!(", it takes {known}") })]
    UnknownOption { kind: &'static str, option: String, known: String },
    #[error("option '{option}' of an index must be {expected}, got '{got}'")]
    OptionValue { option: String, expected: &'static str, got: String },
    #[error("column '{column}' holds {got}, expected {expected} for an index of kind {kind}")]
    IndexColumn { column: String, got: String, expected: &'static str, kind: &'static str },
    #[error("index '{name}' exists")]
    IndexExists { name: String },
    #[error("the pool has no index '{name}'{}", if known.is_empty() { String::new() } else { format!(", it has {known}") })]
    IndexMissing { name: String, known: String },
    #[error("index '{name}' is of kind {kind}, expected one over vectors")]
    NotAVectorIndex { name: String, kind: &'static str },
    #[error("the vector looked for is all zeros: it has no direction")]
    ZeroQuery,
    #[error("the vector looked for has a number that is not finite")]
    NotFiniteQuery,
    #[error("the graph at {path}: {reason}")]
    Graph { path: String, reason: String },
    #[error("a temporary file: {source}")]
    Spill { source: std::io::Error },
    #[error("{images} images of this version of the pool have no perceptual hashes yet")]
    HashesMissing { images: u64 },
    #[error("the GPU: {reason}")]
    Gpu { reason: String },
    #[error("stopped")]
    Stopped,
    #[error("{source}")]
    Lance { source: Box<lance::Error> },
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

impl Error {
    /// The next thing to do about it, where there is one.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::Dimensions { .. } => "b32 columns have 512 values, l14 columns 768".into(),
            Error::UnknownKind { name } => {
                let known = crate::KINDS.map(|(_, name, ..)| name);
                match storage::closest(name, known) {
                    Some(near) => format!("did you mean '{near}'?"),
                    None => format!("the kinds are: {}", known.join(", ")),
                }
            }
            Error::UnknownOption { option, known, .. } => {
                return storage::closest(option, known.split(", ")).map(|near| format!("did you mean '{near}'?"));
            }
            Error::IndexExists { name } => format!("choose another name, or drop it: DROP INDEX {name}"),
            Error::IndexMissing { name, known } => match storage::closest(name, known.split(", ")) {
                Some(near) => format!("did you mean '{near}'?"),
                None => "make one: CREATE INDEX name ON pool (column) USING ivf_rq".into(),
            },
            Error::HashesMissing { .. } => "open the newest version once: a query of near_duplicates computes them".into(),
            Error::FewSamples { .. } => "ask for fewer, or draw more samples".into(),
            Error::Gpu { .. } => "do without it: TARN_DEVICE=cpu".into(),
            Error::Storage(e) => return e.hint(),
            _ => return None,
        })
    }

    pub(crate) fn lance(source: lance::Error) -> Error {
        Error::Lance { source: Box::new(source) }
    }
}
