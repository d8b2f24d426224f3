//! The `tarn` program: arguments, the REPL, output formats, progress and the demo. Holds no logic of its own.
#![allow(clippy::print_stdout, clippy::print_stderr)] // the one crate that prints

/// A line for standard error. A reader that has gone away ends no work.
#[macro_export]
macro_rules! note {
    ($($words:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($words)*);
    }};
}

mod cli;
mod command;
mod demo;
mod error;
mod format;
mod progress;
mod repl;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser;
use tokio::sync::Notify;

pub(crate) use error::{Error, Result};

/// Set by the first Ctrl-C; long work ends at its next step. A second one ends the program at once.
pub(crate) static STOP: AtomicBool = AtomicBool::new(false);

/// Woken at the first Ctrl-C.
pub(crate) static STOPPED: Notify = Notify::const_new();

/// Whether something is waited for that need not come to an end of its own: nothing is lost where the program just goes.
pub(crate) static WAITING: AtomicBool = AtomicBool::new(false);

/// How long a query may take to notice.
const GRACE: Duration = Duration::from_millis(300);

/// Ctrl-C, or what a scheduler sends before it kills.
async fn interrupted() -> bool {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let Ok(mut terminated) = signal(SignalKind::terminate()) else { return tokio::signal::ctrl_c().await.is_ok() };
        tokio::select! {
            ctrl_c = tokio::signal::ctrl_c() => ctrl_c.is_ok(),
            term = terminated.recv() => term.is_some(),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await.is_ok()
}

/// On a thread of its own: queries may keep all others busy for long.
fn watch_for_ctrl_c() {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
    runtime.block_on(async {
        while interrupted().await {
            if STOP.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            STOPPED.notify_waiters();
            tokio::spawn(async {
                tokio::time::sleep(GRACE).await;
                if WAITING.load(Ordering::SeqCst) && STOP.load(Ordering::SeqCst) {
                    crate::note!("interrupted: {}", Error::Interrupted);
                    std::process::exit(130);
                }
            });
        }
    });
}

/// Stacks of the thread that plans queries and of those that compute them: a condition of thousands of parts is a tree as
/// deep. Only what is used of them takes memory.
const PLANNING_STACK: usize = 1 << 30;
const WORKING_STACK: usize = 256 << 20;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match std::thread::Builder::new().name("main".into()).stack_size(PLANNING_STACK).spawn(|| run(cli)) {
        // A panic has been printed where it came up; 101 is what Rust ends with.
        Ok(thread) => thread.join().unwrap_or(ExitCode::from(101)),
        Err(e) => {
            crate::note!("error: cannot start: {e}");
            ExitCode::from(1)
        }
    }
}

fn run(cli: cli::Cli) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().thread_stack_size(WORKING_STACK).enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => {
            crate::note!("error: cannot start: {e}");
            return ExitCode::from(1);
        }
    };
    std::thread::spawn(watch_for_ctrl_c);
    let result = command::run(cli.command, &runtime);
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if e.is_interrupt() => {
            crate::note!("interrupted: {e}");
            e.hint().iter().for_each(|hint| crate::note!("hint: {hint}"));
            ExitCode::from(130)
        }
        Err(e) => {
            crate::note!("error: {e}");
            if let Some(hint) = e.hint() {
                crate::note!("hint: {hint}");
            }
            ExitCode::from(if matches!(e, Error::Usage { .. }) { 2 } else { 1 })
        }
    }
}
