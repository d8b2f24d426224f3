use std::path::PathBuf;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong between a subset and a checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    #[error("unknown scale '{name}', known are {}", known.join(", "))]
    UnknownScale { name: String, known: Vec<&'static str> },
    #[error("not a checkpoint: {} holds no open_clip_config.json", path.display())]
    NotACheckpoint { path: PathBuf },
    #[error("{}: {source}", path.display())]
    Config { path: PathBuf, source: serde_json::Error },
    #[error("{}: {what}, got {value} and {of}", path.display())]
    ConfigShape { path: PathBuf, what: &'static str, value: usize, of: usize },
    #[error("{}: {reason}", path.display())]
    Pickle { path: PathBuf, reason: String },
    #[error("{}: {field} = {value} is not supported", path.display())]
    ConfigField { path: PathBuf, field: String, value: String },
    #[error("{}: parameter '{name}' is missing", path.display())]
    ParameterMissing { path: PathBuf, name: String },
    #[error("{}: parameter '{name}' has shape {got:?}, the configuration asks for {expected:?}", path.display())]
    ParameterShape { path: PathBuf, name: String, expected: Vec<usize>, got: Vec<usize> },
    #[error("{}: parameter '{name}' holds {got}, expected finite numbers", path.display())]
    ParameterValue { path: PathBuf, name: String, got: f32 },
    #[error("{}: parameter '{name}'{} is not of the model that the configuration describes", path.display(), if *more > 0 { format!(" and {more} more") } else { String::new() })]
    ParameterUnknown { path: PathBuf, name: String, more: usize },
    #[error("{}: parameter '{name}' is of {got}, expected float32, float16 or bfloat16", path.display())]
    ParameterType { path: PathBuf, name: String, got: String },
    #[error("{}: {source}", path.display())]
    Safetensors { path: PathBuf, source: safetensors::SafeTensorError },
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{} is a pool, expected a folder for the run", path.display())]
    RunInPool { path: PathBuf },
    #[error("{} exists already and holds a run", path.display())]
    RunExists { path: PathBuf },
    #[error("{} holds a run that is not finished", path.display())]
    RunUnfinished { path: PathBuf },
    #[error("{} holds no checkpoint of a run that is not finished", path.display())]
    NothingToResume { path: PathBuf },
    #[error("{}: another training writes to it", path.display())]
    RunBusy { path: PathBuf },
    #[error("{}: the run has done {done} steps, and {steps} are asked for", path.display())]
    NothingLeft { path: PathBuf, done: u64, steps: u64 },
    #[error("the model and its optimizer need {} MB for one sample at a time, got {} MB", least >> 20, got >> 20)]
    Memory { least: usize, got: usize },
    #[error("{}: the run has {what} {saved}, given is {given}", path.display())]
    Resume { path: PathBuf, what: String, saved: String, given: String },
    #[error("unreadable image: {reason}")]
    Image { reason: String },
    #[error("none of the last {tried} samples drawn has a readable image")]
    NoReadableImage { tried: usize },
    #[error("micro-batch {micro_batch} is larger than the batch of {batch_size}")]
    MicroBatch { micro_batch: usize, batch_size: usize },
    #[error("{what} must be at least 1")]
    Zero { what: &'static str },
    #[error("a thread of the program failed, its message is above")]
    WorkerPanicked,
    #[error("the loss is {loss} at step {step}: the training diverged")]
    Diverged { step: u64, loss: f32 },
    #[error("{name} is '{value}', expected {expected}")]
    Environment { name: &'static str, value: String, expected: &'static str },
    #[error("no device '{given}', expected {expected}")]
    Device { given: String, expected: String },
    #[error("{device} cannot compute this model: it has {reason}")]
    Refused { device: String, reason: String },
    #[error(transparent)]
    Gpu(#[from] gpu::Error),
    #[error("process {rank}: {reason}")]
    Group { rank: usize, reason: String },
    #[error("a batch of {batch_size} cannot be shared by {world} processes")]
    Share { batch_size: usize, world: usize },
    #[error("stopped after {done} of {total}")]
    Stopped { done: u64, total: u64 },
    #[error("stopped at step {step} of {steps}")]
    Interrupted { step: u64, steps: u64 },
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

impl Error {
    /// The next thing to do about it, where there is one.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Error::UnknownScale { name, known } => match storage::closest(name, known.iter().copied()) {
                Some(near) => format!("did you mean '{near}'?"),
                None => "see the scales with: tarn train --help".into(),
            },
            Error::NotACheckpoint { path } => match crate::saved::newest_folder(path) {
                Some(newest) => format!("the run is not finished; its newest checkpoint is {}", newest.display()),
                None => "give the folder that tarn train -o wrote".into(),
            },
            Error::ParameterValue { .. } => "the training that wrote it diverged: take an earlier checkpoint".into(),
            Error::ParameterShape { .. } | Error::ParameterMissing { .. } | Error::ParameterUnknown { .. } => {
                "open_clip_config.json and the weights beside it belong to different models".into()
            }
            Error::Share { world, .. } => format!("choose a batch that {world} divides, or another number of processes"),
            Error::Group { .. } => "a run that has a checkpoint goes on with --resume, in all processes".into(),
            Error::RunInPool { .. } => "choose another folder with -o: the pool gets a row of the run in its table runs".into(),
            Error::RunExists { .. } => "choose another folder with -o, or remove this one".into(),
            Error::RunUnfinished { .. } => "go on with the same command and --resume, or remove the folder".into(),
            Error::NothingToResume { .. } => "leave --resume away to begin".into(),
            Error::NothingLeft { .. } => "give more --max-steps, or leave it away".into(),
            Error::Memory { least, .. } => format!("give --train-memory {}MB or more", (least >> 20) + 1),
            Error::Resume { what, .. } if what.starts_with("samples") && what != "samples seen" => {
                "the selection gives other samples now, or the pool has got or lost images of it: give the pool as it was with --at".into()
            }
            Error::Resume { .. } => "give the run's own, or another folder with -o".into(),
            Error::Stopped { .. } => "the same command goes on from there".into(),
            Error::Interrupted { step: 0, .. } => return None,
            Error::Interrupted { .. } => "go on with the same command and --resume".into(),
            Error::ConfigField { .. } => "ViT models of open_clip are supported, without this".into(),
            Error::MicroBatch { batch_size, .. } => format!("give --micro-batch {batch_size} or less"),
            Error::Diverged { .. } => "lower the learning rate, or look at the data".into(),
            Error::NoReadableImage { .. } => {
                "look at them: tarn sql POOL -c \"SELECT uid, format, width, height, source FROM images LIMIT 20\"".into()
            }
            Error::Storage(e) => return e.hint(),
            Error::Gpu(e) => return e.hint(),
            Error::Refused { .. } => "give --device cpu".into(),
            _ => return None,
        })
    }

    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { path, source }
    }
}
