use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// An embedded columnar store and query engine for image-text pools: choose data by SQL, train CLIP on the answer,
/// evaluate it.
#[derive(Debug, Parser)]
#[command(name = "tarn", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// The whole story in three minutes on two cores: a small pool, filters, training, scores
    Demo(Demo),
    /// Bring metadata, embeddings and shards into a pool
    Ingest(Ingest),
    /// Query a pool: a REPL, or one text and out
    Sql(Sql),
    /// Select a subset by a saved filter, a file or SQL
    Filter(Filter),
    /// Train a CLIP on a selection
    Train(Train),
    /// Write a checkpoint's embeddings and scores into the pool, as new columns
    Embed(Embed),
    /// Evaluate a checkpoint zero-shot
    Eval(Eval),
    /// Lay the scores of runs side by side
    Report(Report),
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Folder for everything that the demo makes
    #[arg(default_value = "tarn-demo")]
    pub dir: PathBuf,
    /// Samples in the pool
    #[arg(long, default_value_t = 14_000, hide = true)]
    pub samples: usize,
    /// Samples that each training sees
    #[arg(long, hide = true)]
    pub samples_seen: Option<u64>,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Ingest {
    /// The pool, made if it does not exist
    pub pool: String,
    /// Files, folders or patterns: metadata/*.parquet with *.npz beside, shards/*.tar
    #[arg(required = true)]
    pub sources: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Sql {
    pub pool: String,
    /// Run this text and leave; statements end in semicolons
    #[arg(short = 'c', long = "command", value_name = "SQL", conflicts_with = "file")]
    pub text: Option<String>,
    /// Run this file and leave
    #[arg(short, long)]
    pub file: Option<PathBuf>,
    /// A value for $NAME in the text
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = parse_param)]
    pub params: Vec<(String, String)>,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Write the rows to a file instead of standard output
    #[arg(short, long)]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people: the first 40 rows, vectors shortened
    Table,
    Csv,
    /// One array of objects
    Json,
    /// One object a line
    Jsonl,
    /// Arrow's streaming format
    Arrow,
    Parquet,
}

#[derive(Debug, Args)]
pub(crate) struct Filter {
    #[arg(required_unless_present_any = ["list", "show"])]
    pub pool: Option<String>,
    /// A shipped filter's name, a file that ends in .sql, or SQL
    #[arg(required_unless_present_any = ["list", "show"])]
    pub filter: Option<String>,
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = parse_param)]
    pub params: Vec<(String, String)>,
    /// The subset to write; NAME.receipt.json is written beside it
    #[arg(short, long, value_name = "NAME.npy", required_unless_present_any = ["list", "show"])]
    pub output: Option<PathBuf>,
    /// List the shipped filters and their parameters
    #[arg(long)]
    pub list: bool,
    /// Print a filter's text
    #[arg(long, value_name = "NAME")]
    pub show: Option<String>,
}

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
    /// Folder for the run: checkpoint, metrics, receipt
    #[arg(short, long, value_name = "RUN")]
    pub output: PathBuf,
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Stop after so many steps of the schedule (off recipe)
    #[arg(long)]
    pub max_steps: Option<u64>,
    /// Samples whose activations are held at once; changes memory, not results
    #[arg(long)]
    pub micro_batch: Option<usize>,
    /// Another number of samples seen (off recipe)
    #[arg(long)]
    pub samples_seen: Option<u64>,
    /// Another batch size (off recipe)
    #[arg(long)]
    pub batch_size: Option<usize>,
    /// Another learning rate (off recipe)
    #[arg(long)]
    pub learning_rate: Option<f32>,
}

#[derive(Debug, Args)]
pub(crate) struct Embed {
    pub pool: String,
    /// A run's folder, or any with open_clip_config.json and open_clip_model.safetensors
    #[arg(long, value_name = "CHECKPOINT")]
    pub model: PathBuf,
    /// Writes the columns NAME_img, NAME_txt and NAME_score
    #[arg(long, value_name = "NAME")]
    pub column: String,
    /// Replace columns of these names
    #[arg(long)]
    pub replace: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Eval {
    /// A run's folder, or any with open_clip_config.json and open_clip_model.safetensors
    pub checkpoint: PathBuf,
    /// The folder that holds wds_*_test
    #[arg(long)]
    pub data: PathBuf,
    /// Where eval_results.jsonl goes, by default into the checkpoint's folder
    #[arg(short, long)]
    pub output: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Report {
    #[arg(required = true, value_name = "RUN")]
    pub runs: Vec<PathBuf>,
}

fn parse_param(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_string(), value.to_string())),
        _ => Err(format!("expected NAME=VALUE, got '{text}'")),
    }
}
