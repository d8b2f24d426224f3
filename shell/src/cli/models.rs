//! Commands that train models or use them.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use train::loader::Shuffle;

use super::{Queries, parse_bytes, parse_param};

#[derive(Debug, Args)]
pub(crate) struct Train {
    pub pool: String,
    /// What to train on: a shipped filter, a .sql file, SQL, or a subset.npy
    #[arg(long)]
    pub select: String,
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = parse_param)]
    pub params: Vec<(String, String)>,
    /// The recipe: tiny, debug, small, medium, large or xlarge
    #[arg(long)]
    pub scale: String,
    /// Folder for the run: checkpoints, metrics, receipt
    #[arg(short, long, value_name = "RUN", required_unless_present = "doctor")]
    pub output: Option<PathBuf>,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Stop after so many steps of the schedule (off recipe)
    #[arg(long)]
    pub max_steps: Option<u64>,
    /// Samples whose activations are held at once; results stay the same but for rounding. By default what --train-memory
    /// has room for
    #[arg(long)]
    pub micro_batch: Option<usize>,
    /// Memory for parameters, optimizer and activations, roughly: by default 6GB, or what is free on the GPU
    #[arg(long, value_parser = parse_bytes)]
    pub train_memory: Option<u64>,
    #[command(flatten)]
    pub compute: Compute,
    /// How samples are drawn: "full", each on its own; or "blocks:N", N that lie side by side, then others, for slow
    /// disks and object stores. A sample's chance is the same; a batch of 4096 is then of 4096/N places of the pool
    #[arg(long, default_value = "full", value_parser = parse_shuffle)]
    pub shuffle: Shuffle,
    /// Read images from what `tarn shrink --side SIDE` has made of them: faster to decode, and other pixels (off recipe)
    #[arg(long, value_name = "SIDE")]
    pub shrunk: Option<usize>,
    /// Go on with the run that the folder holds, after Ctrl-C or a crash: the same command with this added
    #[arg(long)]
    pub resume: bool,
    /// Write RUN/samples.parquet: how often each sample was seen, and its last loss
    #[arg(long)]
    pub track_samples: bool,
    /// Measure how fast samples are read, decoded and trained on, say which of them binds, and stop
    #[arg(long)]
    pub doctor: bool,
    /// Another model: a name, or a file of open_clip's model_configs (off recipe)
    #[arg(long, value_name = "NAME|FILE.json")]
    pub model: Option<String>,
    /// Scale gradients down to this norm (off recipe)
    #[arg(long, value_name = "NORM")]
    pub clip_gradients: Option<f32>,
    /// Another number of samples seen (off recipe)
    #[arg(long)]
    pub samples_seen: Option<u64>,
    /// Another batch size (off recipe)
    #[arg(long)]
    pub batch_size: Option<usize>,
    /// Another learning rate (off recipe)
    #[arg(long)]
    pub learning_rate: Option<f32>,
    /// The pool as it was: a tag, a version, or a receipt
    #[arg(long, value_name = "TAG|VERSION")]
    pub at: Option<String>,
    #[command(flatten)]
    pub queries: Queries,
}

/// Where a model computes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Device")]
pub(crate) struct Compute {
    /// "auto", a GPU where there is one; "cpu"; "cuda" or "cuda:N"; or "emulated", the GPU's kernels compiled for the CPU
    /// (slow, for those who write kernels)
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// What a GPU computes matrix products and keeps activations in, by default bf16; sums, parameters and optimizer are
    /// float32 in both. A CPU computes in fp32
    #[arg(long, value_enum)]
    pub precision: Option<Precision>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Precision {
    Bf16,
    Fp32,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Look at this place in an object store instead: whether writers of a pool there exclude each other
    #[arg(value_name = "URI", conflicts_with_all = ["gpu", "pool"])]
    pub place: Option<String>,
    /// Check every kernel against the CPU, train on both, and measure copies, matrix products and whole models
    #[arg(long)]
    pub gpu: bool,
    /// "auto", "cuda:N", or "emulated": the kernels compiled for the CPU, which are checked and not measured
    #[arg(long, default_value = "auto")]
    pub device: String,
    /// Train on this pool's first images instead of made-up ones
    #[arg(long)]
    pub pool: Option<String>,
    /// Models to measure training steps of
    #[arg(long, value_name = "MODEL,...", value_delimiter = ',', default_value = "ViT-B-32,ViT-B-16,ViT-L-14")]
    pub models: Vec<String>,
    #[arg(long, default_value_t = 4096)]
    pub batch_size: usize,
    /// Steps of each model that are measured
    #[arg(long, default_value_t = 5)]
    pub steps: usize,
}

#[derive(Debug, Args)]
pub(crate) struct Embed {
    pub pool: String,
    /// A run's folder, any with open_clip_config.json and weights, or open_clip's .pt
    #[arg(long, value_name = "CHECKPOINT")]
    pub model: PathBuf,
    /// Writes the columns NAME_img, NAME_txt and NAME_score
    #[arg(long, value_name = "NAME")]
    pub column: String,
    /// Replace columns of these names
    #[arg(long)]
    pub replace: bool,
    #[command(flatten)]
    pub compute: Compute,
}

#[derive(Debug, Args)]
pub(crate) struct Encode {
    /// A run's folder, any with open_clip_config.json and weights, or open_clip's .pt
    pub checkpoint: PathBuf,
    /// Pictures: the jpg, png, webp and gif files of a folder and those below it, by name
    #[arg(long, value_name = "DIR", required_unless_present = "texts")]
    pub images: Option<PathBuf>,
    /// Texts, one a line
    #[arg(long, value_name = "FILE")]
    pub texts: Option<PathBuf>,
    /// Divide each row by its norm
    #[arg(long)]
    pub normalize: bool,
    /// Gets image_features, image_files and text_features, as numpy.load reads them
    #[arg(short, long, value_name = "OUT.npz")]
    pub output: PathBuf,
    #[command(flatten)]
    pub compute: Compute,
}

#[derive(Debug, Args)]
pub(crate) struct Eval {
    /// A run's folder, any with open_clip_config.json and weights, or open_clip's .pt
    #[arg(required_unless_present = "list")]
    pub checkpoint: Option<PathBuf>,
    /// The folder that holds wds_*_test, hf_cache and sets of your own
    #[arg(long)]
    pub data: PathBuf,
    /// Where eval_results.jsonl goes, by default into the checkpoint's folder
    #[arg(short, long)]
    pub output: Option<PathBuf>,
    /// These alone, by key or name
    #[arg(long, value_name = "TASK,...", value_delimiter = ',')]
    pub tasks: Vec<String>,
    /// Say which sets the folder holds, and stop
    #[arg(long)]
    pub list: bool,
    /// Evaluate again what has results, and forget those of another checkpoint
    #[arg(long)]
    pub overwrite: bool,
    /// Write predictions/TASK.csv of classifications: label, best classes and logits of each sample
    #[arg(long)]
    pub predictions: bool,
    #[command(flatten)]
    pub compute: Compute,
}

#[derive(Debug, Args)]
pub(crate) struct EvalImages {
    pub pool: String,
    /// The folder that holds wds_*_test, hf_cache and sets of your own
    #[arg(long)]
    pub data: PathBuf,
    /// Embed them, too: a run's folder, any with open_clip_config.json and weights, or open_clip's .pt
    #[arg(long, value_name = "CHECKPOINT", requires = "column")]
    pub model: Option<PathBuf>,
    /// The pool's column of image embeddings by the same model
    #[arg(long, value_name = "NAME_img", requires = "model")]
    pub column: Option<String>,
    #[command(flatten)]
    pub compute: Compute,
}

#[derive(Debug, Args)]
pub(crate) struct Report {
    /// Runs, other folders with results, or folders of these
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
    /// By default that which the output's name ends in, or text
    #[arg(long, value_enum)]
    pub format: Option<ReportFormat>,
    /// Write to a file instead of standard output
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Ask the runs' pools what the subsets are like; a page does it anyway
    #[arg(long)]
    pub subsets: bool,
    /// With the subsets, how many samples are as near to an evaluation image as this cosine, by eval_images' embeddings
    #[arg(long, value_name = "COSINE", value_parser = parse_cosine)]
    pub similarity: Option<f64>,
    /// The run that differences are taken from, by its name; a page takes the first where none is given
    #[arg(long, value_name = "RUN")]
    pub against: Option<String>,
    /// Write what DataComp's leaderboard asks for into this folder
    #[arg(long, value_name = "DIR")]
    pub submission: Option<PathBuf>,
    #[command(flatten)]
    pub submit: Submit,
    #[command(flatten)]
    pub queries: Queries,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "With --submission")]
pub(crate) struct Submit {
    #[arg(long, value_parser = ["filtering", "byod"], requires = "submission")]
    pub track: Option<String>,
    /// The method's name on the leaderboard
    #[arg(long, requires = "submission")]
    pub method: Option<String>,
    /// Names of the authors
    #[arg(long, requires = "submission")]
    pub author: Option<String>,
    #[arg(long, requires = "submission")]
    pub email: Option<String>,
    /// A link to a paper or a page
    #[arg(long, requires = "submission")]
    pub writeup: Option<String>,
    /// Of the repository on Hugging Face that the files go to
    #[arg(long, requires = "submission")]
    pub hf_username: Option<String>,
    #[arg(long, requires = "submission")]
    pub hf_repo: Option<String>,
    /// The uids trained on, where the run's folder has no subset.npy
    #[arg(long, value_name = "FILE.npy", requires = "submission")]
    pub samples: Option<PathBuf>,
    /// Put the weights in, too
    #[arg(long, requires = "submission")]
    pub checkpoint: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    /// For people
    Text,
    /// A line a run with everything, unrounded
    Csv,
    Markdown,
    /// Tables with booktabs
    Latex,
    /// One page with plots, which needs no other file
    Html,
}

fn parse_cosine(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(cosine) if (-1.0..=1.0).contains(&cosine) => Ok(cosine),
        _ => Err(format!("expected a number between -1 and 1, got '{text}'")),
    }
}

/// `full` or `blocks:N`.
fn parse_shuffle(text: &str) -> Result<Shuffle, String> {
    match text.strip_prefix("blocks:").map(str::parse) {
        None if text == "full" => Ok(Shuffle::Full),
        Some(Ok(size)) if size > 0 => Ok(Shuffle::Blocks(size)),
        _ => Err(format!("expected full or blocks:N, for instance blocks:256, got '{text}'")),
    }
}
