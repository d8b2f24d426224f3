//! One file a command: arguments in, calls to the libraries, words out.

pub(crate) mod allocator;
mod doctor;
mod embed;
mod encode;
mod eval;
mod eval_images;
mod export;
mod filter;
mod index;
mod ingest;
mod report;
mod resources;
mod runs;
pub(crate) mod session;
pub(crate) mod sql;
mod subset_facts;
mod train;
mod vectors;
mod verify;
mod versions;

use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use ::train::{CONFIG_FILE, Device, Encoder, Precision};
use storage::Pool;
use tokio::runtime::Runtime;

use crate::cli::{self, Command};
use crate::{Error, Result, STOP, STOPPED, WAITING, demo};

pub(crate) fn run(command: Command, runtime: &Runtime) -> Result<()> {
    match command {
        Command::Demo(args) => demo::run(args, runtime),
        Command::Ingest(args) => ingest::run(args, runtime),
        Command::Sql(args) => sql::run(args, runtime),
        Command::Filter(args) => filter::run(args, runtime),
        Command::Train(args) => train::run(args, runtime),
        Command::Embed(args) => embed::run(args, runtime),
        Command::Encode(args) => encode::run(args),
        Command::Eval(args) => eval::run(args, runtime),
        Command::EvalImages(args) => eval_images::run(args, runtime),
        Command::Report(args) => report::run(args, runtime),
        Command::Export(args) => export::run(args, runtime),
        Command::Verify(args) => verify::run(args, runtime),
        Command::Tag(args) => versions::tag(args, runtime),
        Command::Compact(args) => versions::compact(args, runtime),
        Command::Shrink(args) => versions::shrink(args, runtime),
        Command::Clean(args) => versions::clean(args, runtime),
        Command::Index(args) => index::run(args, runtime),
        Command::Vectors(args) => vectors::run(args, runtime),
        Command::Doctor(args) => doctor::run(args, runtime),
        Command::Resources(args) => resources::run(args),
    }
}

/// Runs a future to its end, or until Ctrl-C.
pub(crate) fn block_on<T, E: Into<Error>>(runtime: &Runtime, work: impl Future<Output = Result<T, E>>) -> Result<T> {
    // In the shell a query that does not notice takes a second Ctrl-C, which ends the shell with it.
    WAITING.store(!INTERACTIVE.load(Ordering::SeqCst), Ordering::SeqCst);
    let result = runtime.block_on(async {
        tokio::select! {
            result = work => result.map_err(Into::into),
            () = stopped() => Err(Error::Interrupted),
        }
    });
    WAITING.store(false, Ordering::SeqCst);
    result
}

/// Set while the shell reads statements from a person.
pub(crate) static INTERACTIVE: AtomicBool = AtomicBool::new(false);

/// A pool at its newest version, or at `at`: a tag, a version or a receipt.
pub(crate) async fn open(pool: &str, at: Option<&str>) -> Result<Pool> {
    let pool = Pool::open(pool).await?;
    match at {
        Some(at) => Ok(pool.at_version(at).await?),
        None => Ok(pool),
    }
}

/// A path that holds from any folder; URIs stay as they are.
pub(crate) fn absolute(path: &str) -> String {
    std::fs::canonicalize(path).map_or_else(|_| path.to_string(), |path| path.display().to_string())
}

/// A checkpoint as an encoder. A PyTorch file alone does not say which activation its model has, and so on.
pub(crate) fn open_encoder(path: &Path, device: Device) -> Result<Encoder> {
    let encoder = Encoder::open(path, device)?;
    if device != Device::Cpu {
        crate::note!("on {device}");
    }
    if path.is_file() && !path.with_file_name(CONFIG_FILE).exists() {
        crate::note!(
            "warning: {} has no {CONFIG_FILE} beside it: taken for a ViT with heads 64 wide and the exact GELU, not QuickGELU",
            path.display()
        );
    }
    Ok(encoder)
}

/// Where to compute, and why not on a GPU where none was asked for by name.
pub(crate) fn device(args: &cli::Compute) -> Result<Device> {
    let precision = match args.precision {
        Some(cli::Precision::Fp32) => Precision::Fp32,
        Some(cli::Precision::Bf16) | None => Precision::Bf16,
    };
    let (device, why) = Device::choose(&args.device, precision)?;
    if device == Device::Cpu && matches!(args.precision, Some(cli::Precision::Bf16)) {
        let message = "the CPU computes in float32, and --precision bf16 was given".to_string();
        return Err(Error::Usage { message, hint: "leave it away, or give --precision fp32" });
    }
    if let Some(why) = why {
        crate::note!("on the CPU: {why}");
    }
    Ok(device)
}

/// Ends soon after Ctrl-C.
pub(crate) async fn stopped() {
    let mut notified = std::pin::pin!(STOPPED.notified());
    notified.as_mut().enable();
    if !STOP.load(Ordering::SeqCst) {
        notified.await;
    }
}
