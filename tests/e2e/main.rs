//! The program from end to end, and numbers against golden files. What needs real data is counted as ignored where
//! `TARN_TEST_DATA` does not name it.
#![allow(clippy::print_stderr)] // says what is skipped

mod awkward;
mod cli;
mod crashes;
mod differential;
mod evaluation;
mod filters;
mod fuzz;
mod golden;
mod gpus;
mod gradients;
mod group;
mod path;
mod plain;
mod real;
mod reports;
mod s3;
mod search;
mod sets;
mod source;
mod storage;
mod training;

use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::{Arguments, Failed, Trial};

fn main() {
    let data = tarn_tests::test_data();
    if data.is_none() {
        eprintln!("TARN_TEST_DATA is not set: tests on real data are skipped");
    }
    let mut trials = Vec::new();
    for (name, test) in [
        cli::TESTS,
        filters::TESTS,
        search::TESTS,
        storage::TESTS,
        awkward::TESTS,
        path::TESTS,
        gradients::TESTS,
        training::TESTS,
        evaluation::TESTS,
        reports::TESTS,
        group::TESTS,
        fuzz::TESTS,
        crashes::TESTS,
    ]
    .concat()
    {
        trials.push(Trial::test(name, move || run(|| test(&Sandbox::new()))));
    }
    for (name, test) in
        [filters::DATA_TESTS, search::DATA_TESTS, golden::TESTS, training::DATA_TESTS, real::TESTS, evaluation::DATA_TESTS].concat()
    {
        let folder = data.clone();
        let trial = Trial::test(name, move || run(|| test(&Sandbox::new(), folder.as_deref().expect("ignored without data"))));
        trials.push(trial.with_ignored_flag(data.is_none()));
    }
    for (name, test, module) in [
        ("pool_in_s3", s3::pool_in_s3 as fn(&Sandbox), "moto.server"),
        ("eight_ingests_into_s3_at_once", s3::eight_at_once, "moto.server"),
        ("a_troubled_store_costs_time_only", s3::troubled_store, "moto.server"),
        ("pool_in_pylance", s3::pool_in_pylance, "lance"),
        ("random_queries_as_duckdb", differential::same_as_duckdb, "duckdb"),
    ] {
        let missing = s3::python_with(module).is_none();
        if missing {
            eprintln!("TARN_TEST_PYTHON names no Python with {module}: {name} is skipped");
        }
        trials.push(Trial::test(name, move || run(|| test(&Sandbox::new()))).with_ignored_flag(missing));
    }
    for &(name, test, available) in gpus::TESTS {
        let missing = !available();
        if missing {
            eprintln!("what {name} needs is not here: it is skipped");
        }
        trials.push(Trial::test(name, move || run(|| test(&Sandbox::new()))).with_ignored_flag(missing));
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

/// A test in a fresh folder, and one that reads real data.
type Test = (&'static str, fn(&Sandbox));
type DataTest = (&'static str, fn(&Sandbox, &Path));

fn run(test: impl FnOnce() + std::panic::UnwindSafe) -> Result<(), Failed> {
    std::panic::catch_unwind(test).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(|s| s.to_string()));
        Failed::from(text.unwrap_or_default())
    })
}

/// A fresh folder to run `tarn` in.
struct Sandbox {
    dir: tempfile::TempDir,
    environment: Vec<(String, String)>,
}

/// What a run of `tarn` gave.
struct Output {
    code: i32,
    stdout: Vec<u8>,
    stderr: String,
}

impl Sandbox {
    fn new() -> Sandbox {
        Sandbox { dir: tempfile::tempdir().expect("a temporary folder"), environment: Vec::new() }
    }

    /// A fresh folder, where `tarn` has these variables.
    fn with_environment<const N: usize>(variables: [(&str, &str); N]) -> Sandbox {
        let environment = variables.map(|(name, value)| (name.to_string(), value.to_string())).to_vec();
        Sandbox { environment, ..Sandbox::new() }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tarn"));
        let variables = self.environment.iter().map(|(name, value)| (name, value));
        command.args(args).current_dir(self.dir.path()).envs(variables);
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("inside the folder")).expect("a writable folder");
        std::fs::write(&path, text).expect("a writable file");
        name.to_string()
    }

    fn tarn(&self, args: &[&str]) -> Output {
        let output = self.command(args).output().expect("tarn starts");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        Output { code: output.status.code().unwrap_or(-1), stdout: output.stdout, stderr }
    }

    /// Runs `tarn`, which must succeed, and gives its standard output as text.
    fn ok(&self, args: &[&str]) -> String {
        let output = self.tarn(args);
        let stdout = String::from_utf8(output.stdout).expect("text");
        assert_eq!(output.code, 0, "tarn {args:?}: {}{stdout}", output.stderr);
        stdout
    }

    /// Runs `tarn`, which must fail with this exit code and these words on standard error, and say nothing else.
    fn fails(&self, code: i32, args: &[&str], words: &[&str]) {
        let output = self.tarn(args);
        assert_eq!(output.code, code, "tarn {args:?}: {}", output.stderr);
        for word in words {
            assert!(output.stderr.contains(word), "tarn {args:?}: '{word}' is not in: {}", output.stderr);
        }
        assert!(!output.stderr.contains("panicked"), "{}", output.stderr);
        assert!(output.stdout.is_empty(), "tarn {args:?} printed data: {}", String::from_utf8_lossy(&output.stdout));
    }

    /// A pool of the eight rows of `tarn_tests::rows`, without images.
    fn small_pool(&self) -> &'static str {
        tarn_tests::write_metadata(&self.path("metadata.parquet"), &tarn_tests::rows());
        self.ok(&["ingest", "pool", "metadata.parquet"]);
        "pool"
    }
}
