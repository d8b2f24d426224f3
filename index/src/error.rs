pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with vectors.
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
}

impl Error {
    /// The next thing to do about it, where there is one.
    pub fn hint(&self) -> Option<String> {
        match self {
            Error::Dimensions { .. } => Some("b32 columns have 512 values, l14 columns 768".into()),
            _ => None,
        }
    }
}
