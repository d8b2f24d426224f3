//! What a run writes down as it goes, line by line.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use storage::Uid;

use crate::checkpoint::write_whole;
use crate::{Error, Result};

const UNREADABLE_FILE: &str = "unreadable.jsonl";

/// A file of a line of JSON each, cut back to the step that a run goes on from.
pub struct Lines {
    path: PathBuf,
    file: BufWriter<File>,
}

impl Lines {
    pub fn open(out: &Path, name: &str, step: u64) -> Result<Lines> {
        let path = out.join(name);
        let kept: String = match std::fs::read_to_string(&path) {
            Ok(text) if step > 0 => {
                let of = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["step"].as_u64();
                text.split_inclusive('\n').filter(|line| of(line).is_some_and(|at| at <= step)).collect()
            }
            _ => String::new(),
        };
        write_whole(&path, |file| file.write_all(kept.as_bytes()))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(Error::io(&path))?;
        Ok(Lines { path, file: BufWriter::new(file) })
    }

    pub fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let line = serde_json::to_string(line).expect("figures are plain data");
        writeln!(self.file, "{line}").and_then(|()| self.file.flush()).map_err(Error::io(&self.path))
    }
}

/// `RUN/unreadable.jsonl`: samples whose draws were replaced, each once. Made with the first of them.
pub struct Unreadable {
    out: PathBuf,
    lines: Option<Lines>,
    known: HashSet<Uid>,
}

impl Unreadable {
    pub fn open(out: &Path, step: u64) -> Result<Unreadable> {
        let path = out.join(UNREADABLE_FILE);
        let mut unreadable = Unreadable { out: out.to_path_buf(), lines: None, known: HashSet::new() };
        if step > 0 && path.exists() {
            unreadable.lines = Some(Lines::open(out, UNREADABLE_FILE, step)?);
            let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
            let of = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["uid"].as_str()?.parse().ok();
            unreadable.known = text.lines().filter_map(of).collect();
        } else {
            let _ = std::fs::remove_file(&path);
        }
        Ok(unreadable)
    }

    pub fn add(&mut self, step: u64, unreadable: &[(Uid, String)]) -> Result<()> {
        for (uid, reason) in unreadable {
            if !self.known.insert(*uid) {
                continue;
            }
            if self.lines.is_none() {
                self.lines = Some(Lines::open(&self.out, UNREADABLE_FILE, 0)?);
            }
            let line = serde_json::json!({ "step": step, "uid": uid.to_string(), "reason": reason });
            self.lines.as_mut().expect("opened above").write(&line)?;
        }
        Ok(())
    }
}
