use std::path::PathBuf;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong with a pool, its sources and its subsets.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("{pool} has no table eval_images")]
    NoEvalImages { pool: String },
    #[error("no pool at {path}")]
    PoolMissing { path: String },
    #[error("{path} is not a pool: it holds no pool.lance")]
    NotAPool { path: String },
    #[error("{path} is a file, expected a folder for the pool")]
    PoolIsFile { path: String },
    #[error("{path} is in a store that keeps no writers apart, expected a refusal of what exists, got {got}")]
    NoExclusion { path: String, got: String },
    #[error("{path} is being written by {holder}")]
    Held { path: String, holder: String },
    #[error("{path} was changed by another writer in the meantime, nothing of this step is recorded")]
    Changed { path: String },
    #[error("{path} has no version or tag '{at}'{}", if known.is_empty() { String::new() } else { format!(", it has {known}") })]
    NoVersion { path: String, at: String, known: String },
    #[error("'{name}' cannot be a tag, expected letters, digits, '.', '-' and '_', no number, and no end in .json")]
    TagName { name: String },
    #[error("tag '{name}' exists")]
    TagExists { name: String },
    #[error("{} holds files that no export wrote", path.display())]
    OutputNotEmpty { path: PathBuf },
    #[error("{} holds an earlier export", path.display())]
    OutputExists { path: PathBuf },
    #[error("{path} has lost its table {table}: the ledger has {files} files that were written to it")]
    TableLost { path: String, table: &'static str, files: usize },
    #[error("{} is a receipt of a pool of {expected} samples at version {version}, {pool} has {got} there", path.display())]
    ReceiptOfAnother { path: PathBuf, pool: String, version: u64, expected: u64, got: u64 },
    #[error("{path} has no column '{column}', it has {known}")]
    NoColumn { path: String, column: String, known: String },
    #[error("stopped at the first reject: {reason}: {place}{}", if detail.is_empty() { String::new() } else { format!(" ({detail})") })]
    Strict { reason: &'static str, place: String, detail: String },
    #[error("no such file or folder: {}", path.display())]
    SourceMissing { path: PathBuf },
    #[error("nothing to ingest in {}: found no .parquet, .csv, .npz or .tar file", path.display())]
    SourceEmpty { path: PathBuf },
    #[error("cannot ingest {}: unknown kind of file", path.display())]
    SourceKind { path: PathBuf },
    #[error("{}: no column '{column}', found {found}", path.display())]
    ColumnMissing { path: PathBuf, column: &'static str, found: String },
    #[error("{}: column '{column}' has type {got}, expected {expected}", path.display())]
    ColumnType { path: PathBuf, column: String, expected: String, got: String },
    #[error("{}: column '{column}' has a name with a dot, or one that Lance keeps for itself", path.display())]
    ColumnName { path: PathBuf, column: String },
    #[error("{}: array '{array}' has {got}, expected {expected}", path.display())]
    Array { path: PathBuf, array: String, expected: String, got: String },
    #[error("column '{column}' holds {got}, expected vectors of float16 or float32, all of the same length")]
    NotVectors { column: String, got: String },
    #[error("{} ends within its data", path.display())]
    Truncated { path: PathBuf },
    #[error("not a uid: '{text}', expected 32 hexadecimal digits")]
    Uid { text: String },
    #[error("{}: not a subset: {got}, expected {expected}", path.display())]
    SubsetFormat { path: PathBuf, expected: &'static str, got: String },
    #[error("none of the subset's {size} uids can be drawn: {not_in_pool} are not in the pool, {no_image} have no image")]
    NothingToDraw { size: u64, not_in_pool: u64, no_image: u64 },
    #[error("{}: reading it failed within the program, nothing is recorded of it", path.display())]
    ReaderPanicked { path: PathBuf },
    #[error("{} was changed while it was read, nothing is recorded of it", path.display())]
    SourceChanged { path: PathBuf },
    #[error("{}: weight {weight} of entry {entry}, expected a finite number of at least 0", path.display())]
    Weight { path: PathBuf, entry: usize, weight: f32 },
    #[error("the weights of all samples that can be drawn are 0")]
    NoWeight,
    #[error("the subset is empty")]
    SubsetEmpty,
    #[error("{} shrunk to {side} yet", images.map_or("the pool has no images".to_string(), |images| format!("{images} images are not")))]
    NotShrunk { side: usize, images: Option<u64> },
    #[error("column '{column}' is already in the pool")]
    ColumnExists { column: String },
    #[error("column '{column}' is not computed, and holds what nothing here could bring back")]
    ColumnIngested { column: String },
    #[error("column '{column}' is read by the computed columns {readers}")]
    ColumnRead { column: String, readers: String },
    #[error("column '{column}' is computed, and takes no index")]
    IndexOfComputed { column: String },
    #[error("column '{column}' was computed with other versions of the optional files that its expression needs")]
    OtherResources { column: String },
    #[error("computed column '{column}' lacks {rows} rows that came after it, or that a stopped computation has not reached")]
    ColumnLags { column: String, expression: String, rows: u64 },
    #[error("'{name}' cannot be a vector set, expected letters, digits, '.', '-' and '_'")]
    VectorsName { name: String },
    #[error("vector set '{name}' exists")]
    VectorsExist { name: String },
    #[error("{pool} has no vector set '{name}'{}", if known.is_empty() { String::new() } else { format!(", it has {known}") })]
    VectorsMissing { name: String, pool: String, known: String },
    #[error("{path} has no table '{table}' yet")]
    TableMissing { path: String, table: &'static str },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{}: {source}", path.display())]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("{}: not a readable parquet file: {source}", path.display())]
    Parquet { path: PathBuf, source: parquet::errors::ParquetError },
    #[error("{}: not a readable npz file: {source}", path.display())]
    Npz { path: PathBuf, source: zip::result::ZipError },
    #[error("{path}: {}", plain(source))]
    Lance { path: String, source: Box<lance::Error> },
    #[error(transparent)]
    Arrow(#[from] arrow::error::ArrowError),
}

impl Error {
    /// The next thing to do about it, where there is one.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::PoolMissing { path } | Error::NotAPool { path } => {
                format!("make one with: tarn ingest {path} SOURCE...")
            }
            Error::NoEvalImages { pool } => format!("make it: tarn eval-images {pool} --data DIR"),
            Error::TagExists { name } => format!("choose another name, or move it: tarn tag POOL {name} --force"),
            Error::OutputNotEmpty { .. } => "choose another folder".into(),
            Error::OutputExists { .. } => "choose another folder, or add --overwrite".into(),
            Error::NoColumn { column, known, .. } => {
                return closest(column, known.split(", ")).map(|near| format!("did you mean '{near}'?"));
            }
            Error::TableLost { .. } => "bring the table's folder back from a copy, or ingest into a new pool".into(),
            Error::NoExclusion { .. } => {
                "use a store with conditional writes (S3, GCS, Azure and MinIO have them), or ingest into a local folder and copy it".into()
            }
            Error::Held { .. } => "wait until it is done, or stop it".into(),
            Error::Changed { .. } => "run the same command again: it goes on from what is committed".into(),
            Error::Strict { .. } => "mend or remove it, or leave out --strict: the rest goes in and rejects are listed".into(),
            Error::SourceEmpty { .. } | Error::SourceKind { .. } => {
                "a source is a folder, file or pattern: *.parquet or *.csv, *.npz of the same stems, *.tar, *.tar.gz or *.tar.zst".into()
            }
            Error::ColumnMissing { .. } => "rename the column, or check that this is a CommonPool metadata file".into(),
            Error::SubsetFormat { .. } => "make one with: tarn filter POOL NAME -o subset.npy".into(),
            Error::NothingToDraw { .. } => "ingest the shards that hold these samples: tarn ingest POOL shards/".into(),
            Error::NotShrunk { side, .. } => format!("make them: tarn shrink POOL --side {side}"),
            Error::SubsetEmpty => "loosen the filter, and look at it first: tarn sql POOL -c \"SELECT count(*) FROM (...)\"".into(),
            Error::ColumnRead { readers, .. } => {
                let first = readers.split(", ").next().unwrap_or(readers);
                format!("drop those first: ALTER TABLE pool DROP COLUMN {first}")
            }
            Error::OtherResources { column } => format!("compute it again: ALTER TABLE pool DROP COLUMN {column}, then add it"),
            Error::ColumnLags { column, expression, .. } => {
                format!("extend it: ALTER TABLE pool ADD COLUMN {column} AS ({expression})")
            }
            Error::VectorsExist { name } => format!("choose another name, or drop it: tarn vectors POOL drop {name}"),
            Error::VectorsMissing { name, known, pool } => match closest(name, known.split(", ")) {
                Some(near) => format!("did you mean '{near}'?"),
                None => format!("add it: tarn vectors {pool} add {name} FILE.npy"),
            },
            Error::ColumnExists { column } => {
                format!("choose another name, add --replace (tarn embed), or drop it: ALTER TABLE pool DROP COLUMN {column}")
            }
            Error::TableMissing { table: "images", .. } => "ingest the shards: tarn ingest POOL shards/".into(),
            _ => return None,
        })
    }

    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }

    pub fn no_column(dataset: &lance::Dataset, column: &str) -> Error {
        let names: Vec<&str> = dataset.schema().fields.iter().map(|field| field.name.as_str()).collect();
        Error::NoColumn { path: dataset.uri().into(), column: column.into(), known: names.join(", ") }
    }

    pub(crate) fn lance(path: impl Into<String>) -> impl FnOnce(lance::Error) -> Error {
        let path = path.into();
        move |source| Error::Lance { path, source: Box::new(source) }
    }
}

/// Returns what an error of Lance says.
pub(crate) fn plain(error: &lance::Error) -> String {
    without_places(&error.to_string())
}

/// Returns the text of an error without the places in the source where it was made, and without what it was wrapped in.
pub fn without_places(text: &str) -> String {
    let is_place = |part: &&str| part.starts_with('/') && part.contains(".rs:");
    let text = text.split(", ").take_while(|part| !is_place(part)).collect::<Vec<_>>().join(", ");
    ["Wrapped error: ", "LanceError(IO): "].iter().fold(text.as_str(), |text, before| text.trim_start_matches(before)).to_string()
}

/// The candidate nearest to `name`, if it is near enough to be a slip: the "did you mean" of every error.
pub fn closest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let name = name.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&name, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().min(name.len()) / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::closest;

    #[test]
    fn closest_finds_slips_and_nothing_far() {
        let names = ["no_filter", "clip_score", "random_subset"];
        assert_eq!(closest("clipscore", names), Some("clip_score"));
        assert_eq!(closest("Clip_Scroe", names), Some("clip_score"));
        assert_eq!(closest("laion", names), None);
    }
}
