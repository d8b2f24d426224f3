use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

mod models;

pub(crate) use models::{Compute, Doctor, Embed, Encode, Eval, EvalImages, Precision, Report, ReportFormat, Train};

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
    /// The features of loose pictures and texts under a checkpoint
    Encode(Encode),
    /// Evaluate a checkpoint zero-shot
    Eval(Eval),
    /// Lay the scores of runs side by side, for the terminal, a paper or a browser
    Report(Report),
    /// Remember the images of evaluation sets, to find them in the pool
    EvalImages(EvalImages),
    /// Write a subset as shards, as parquet, or as what a downloader asks for
    Export(Export),
    /// Check a pool's integrity; leaves with 1 if something is wrong
    Verify(Verify),
    /// Name the pool's present version, or list versions and names
    Tag(Tag),
    /// Join small fragments and drop deleted rows for good
    Compact(Compact),
    /// Remove old versions that no tag names
    Clean(Clean),
    /// Store a smaller copy of large images, for training that waits for decoding
    Shrink(Shrink),
    /// Indexes: over vectors, for nearest neighbours, and over other columns
    Index(Index),
    /// Named vector sets: centroids, targets
    Vectors(Vectors),
    /// What this machine computes with; with --gpu, whether the GPU does it right, and how fast
    Doctor(Doctor),
    /// The optional files (language model, WordNet, ...): where they are, what is missing
    Resources(Resources),
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
    /// Files, folders or patterns, in any order: *.parquet or *.csv, *.npz of their stems, *.tar, *.tar.gz or *.tar.zst
    #[arg(required = true)]
    pub sources: Vec<String>,
    /// Stop at the first thing that cannot go in
    #[arg(long)]
    pub strict: bool,
    /// The faces in the shards are blurred already (DataComp's downloader does it unless told not to); otherwise
    /// training blurs them where the metadata has face boxes
    #[arg(long)]
    pub blurred: bool,
    /// Memory to hold at most, roughly
    #[arg(long, default_value = "2GB", value_parser = parse_bytes)]
    pub memory: u64,
    /// The folder of optional files, for computed columns that need them (see: tarn resources)
    #[arg(long, value_name = "DIR")]
    pub resources: Option<PathBuf>,
    /// Rows a fragment
    #[arg(long, hide = true)]
    pub fragment_rows: Option<usize>,
    /// Bytes of shards a commit
    #[arg(long, hide = true, value_parser = parse_bytes)]
    pub group_bytes: Option<u64>,
}

/// How queries are run.
#[derive(Debug, Args)]
pub(crate) struct Queries {
    /// Memory that queries hold at most, roughly; beyond it they spill to the temporary folder
    #[arg(long, default_value = "4GB", value_parser = parse_bytes)]
    pub memory: u64,
    /// The folder of optional files (see: tarn resources)
    #[arg(long, value_name = "DIR")]
    pub resources: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Resources {
    /// The folder to look in, instead of TARN_RESOURCES and the user's data folder
    #[arg(long, value_name = "DIR")]
    pub resources: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Index {
    pub pool: String,
    #[command(subcommand)]
    pub command: IndexCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum IndexCommand {
    /// Make an index over a column
    Create {
        column: String,
        /// Its kind (see: tarn index POOL kinds)
        #[arg(long, default_value = "ivf_rq")]
        using: String,
        /// By default the column and the kind
        #[arg(long)]
        name: Option<String>,
        /// An option of the kind, such as metric=dot or partitions=4096
        #[arg(long, value_name = "NAME=VALUE", value_parser = parse_param)]
        with: Vec<(String, String)>,
        /// Replace one of this name
        #[arg(long)]
        replace: bool,
    },
    /// List the indexes, and the rows that came after them
    List,
    /// List the kinds of indexes
    Kinds,
    /// Remove an index
    Drop { name: String },
    /// Extend one index, or all, to the rows that came after it
    Update { name: Option<String> },
    /// Measure how much of the exact answer an index over vectors finds, and how fast, setting by setting
    Check {
        name: String,
        #[arg(short, long, default_value = "10", value_parser = parse_count)]
        k: usize,
        /// Samples that are looked for
        #[arg(long, default_value = "200", value_parser = parse_count)]
        queries: usize,
        /// A second column whose vectors are looked for; by default the texts beside images, and the other way round
        #[arg(long, value_name = "COLUMN")]
        from: Option<String>,
        /// Partitions looked into; by default a ladder
        #[arg(long, value_delimiter = ',', requires = "refine")]
        nprobes: Vec<usize>,
        /// Candidates looked at again, in multiples of k
        #[arg(long, value_delimiter = ',', requires = "nprobes")]
        refine: Vec<usize>,
        /// The recall to recommend a setting for
        #[arg(long, default_value = "0.95", value_parser = parse_share)]
        recall: f64,
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Store the recommended setting as the index's default
        #[arg(long)]
        set: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Vectors {
    pub pool: String,
    #[command(subcommand)]
    pub command: VectorsCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VectorsCommand {
    /// Add a set from a .npy of shape [n, dim], or from an array of a .npz
    Add {
        name: String,
        /// float16, float32 or float64
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// The array of a .npz, where it has several
        #[arg(long)]
        array: Option<String>,
    },
    /// Find centroids of a column by k-means; a stopped run goes on where it was
    Kmeans {
        /// The name of the set, by default the column and k: l14_img_k1000
        name: Option<String>,
        #[arg(long)]
        column: String,
        #[arg(short, long, value_parser = parse_count)]
        k: usize,
        #[arg(long, default_value = "20", value_parser = parse_count)]
        iterations: usize,
        /// Samples drawn, at most; by default 256 a centroid
        #[arg(long, value_parser = parse_count)]
        samples: Option<usize>,
        /// Samples an iteration, for mini-batches; without, all of them
        #[arg(long, default_value_t = 0)]
        batch: usize,
        /// How the first centroids are drawn
        #[arg(long, value_enum, default_value = "random")]
        start: KmeansStart,
        /// Vectors as they are and squared distances, instead of directions and cosines
        #[arg(long)]
        euclidean: bool,
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Build a graph over a set, for single queries of large sets
    Graph {
        name: String,
        /// Neighbours of a vector
        #[arg(long, default_value = "24", value_parser = clap::value_parser!(u16).range(2..=256))]
        neighbours: u16,
        /// Candidates looked at for each vector
        #[arg(long, default_value = "200", value_parser = parse_count)]
        candidates: usize,
    },
    /// List the sets
    List,
    /// Remove a set
    Drop { name: String },
}

/// A number of at least 1.
fn parse_count(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "expected a whole number of at least 1".to_string())
}

/// A number above 0, at most 1.
fn parse_share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x| *x > 0.0 && *x <= 1.0).ok_or_else(|| "expected a number above 0, at most 1".to_string())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KmeansStart {
    Random,
    #[value(name = "kmeans++")]
    PlusPlus,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    pub pool: String,
    /// A subset.npy, a saved filter's name, a .sql file, or SQL
    pub subset: String,
    #[arg(long, value_enum)]
    pub to: ExportFormat,
    /// Folder to write to
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = parse_param)]
    pub params: Vec<(String, String)>,
    /// Columns of the parquet, by default all but embeddings
    #[arg(long, value_delimiter = ',')]
    pub columns: Vec<String>,
    /// Blur the face boxes in shards (they are blurred already where DataComp's downloader wrote the source)
    #[arg(long)]
    pub blur: bool,
    /// Replace what an earlier export left in the folder
    #[arg(long)]
    pub overwrite: bool,
    /// The pool as it was: a tag, a version, or a receipt
    #[arg(long, value_name = "TAG|VERSION")]
    pub at: Option<String>,
    #[command(flatten)]
    pub queries: Queries,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// Shards of 10,000 as DataComp's resharder writes them
    Webdataset,
    /// The samples' columns, uids as text
    Parquet,
    /// uid, url, text, face boxes and digests, for img2dataset
    Urls,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    pub pool: String,
    /// Read every image and compare its digest
    #[arg(long)]
    pub deep: bool,
    /// Mend what can be mended without loss
    #[arg(long)]
    pub repair: bool,
    /// Memory to hold at most, roughly
    #[arg(long, default_value = "1GB", value_parser = parse_bytes)]
    pub memory: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Tag {
    pub pool: String,
    /// The name; without it, versions and tags are listed
    pub name: Option<String>,
    /// Move the tag if it exists
    #[arg(long)]
    pub force: bool,
    /// Take the tag off
    #[arg(long, requires = "name", conflicts_with = "force")]
    pub delete: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Compact {
    pub pool: String,
    #[command(flatten)]
    pub queries: Queries,
}

#[derive(Debug, Args)]
pub(crate) struct Shrink {
    pub pool: String,
    /// The shorter side of the copies, in pixels; images that are no larger are left as they are
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(16..=4096))]
    pub side: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Clean {
    pub pool: String,
    /// Age from which versions go, for instance 14d, 12h or 0s
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    pub older_than: std::time::Duration,
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
    /// By default that which the output's name ends in, or a table
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Write the rows to a file instead of standard output
    #[arg(short, long)]
    pub output: Option<PathBuf>,
    /// The pool as it was: a tag, a version, or a receipt
    #[arg(long, value_name = "TAG|VERSION")]
    pub at: Option<String>,
    #[command(flatten)]
    pub queries: Queries,
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
    /// A shipped filter's name, a file that ends in .sql, or SQL; with --diff also a subset.npy
    #[arg(required_unless_present_any = ["list", "show"])]
    pub filter: Option<String>,
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = parse_param)]
    pub params: Vec<(String, String)>,
    /// The subset to write; NAME.receipt.json is written beside it
    #[arg(short, long, value_name = "NAME.npy", required_unless_present_any = ["list", "show", "explain", "explain_drop", "diff"])]
    pub output: Option<PathBuf>,
    /// List the shipped filters and their parameters
    #[arg(long)]
    pub list: bool,
    /// Print a filter's text
    #[arg(long, value_name = "NAME|FILE.sql")]
    pub show: Option<String>,
    /// Show the plan instead of running it
    #[arg(long)]
    pub explain: bool,
    /// Show what each condition of the WHERE removes, and what survives
    #[arg(long)]
    pub explain_drop: bool,
    /// Compare with another filter, or a subset.npy: sizes, overlap, examples of each side
    #[arg(long, value_name = "NAME|FILE")]
    pub diff: Option<String>,
    /// The pool as it was: a tag, a version, or a receipt
    #[arg(long, value_name = "TAG|VERSION")]
    pub at: Option<String>,
    #[command(flatten)]
    pub queries: Queries,
}

fn parse_param(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_string(), value.to_string())),
        _ => Err(format!("expected NAME=VALUE, got '{text}'")),
    }
}

/// `512MB`, `2GB`, `1.5GiB` or a number of bytes.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let scale = match unit.trim().to_lowercase().as_str() {
        "" | "b" => 1u64,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        _ => return Err(format!("expected a size such as 512MB or 2GB, got '{text}'")),
    };
    match number.parse::<f64>() {
        Ok(n) if n > 0.0 && n * scale as f64 >= 1.0 => Ok((n * scale as f64) as u64),
        _ => Err(format!("expected a size such as 512MB or 2GB, got '{text}'")),
    }
}

/// `14d`, `12h`, `30m`, `90s`.
fn parse_age(text: &str) -> Result<std::time::Duration, String> {
    let wrong = || format!("expected an age such as 14d, 12h or 0s, got '{text}'");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        'd' => 86_400,
        'h' => 3600,
        'm' => 60,
        's' => 1,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(std::time::Duration::from_secs).ok_or_else(wrong)
}
