//! Checkpoints of a run that goes on: `RUN/checkpoints/step_00000030/` is one that open_clip loads, with the state of the
//! training beside it.

use std::fs::File;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, write_safetensors, write_whole};
use crate::config::ModelConfig;
use crate::loader::Shuffle;
use crate::recipe::Recipe;
use crate::{Error, Result};

const STATE_FILE: &str = "state.json";
const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// Where a run stands. Batches are a function of the seed and the step, so there is no other random state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Steps done.
    pub step: u64,
    pub seconds: f64,
    pub unreadable: u64,
    pub about: About,
}

/// What must be the same when the run goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct About {
    pub recipe: Recipe,
    pub model: ModelConfig,
    pub seed: u64,
    pub shuffle: Shuffle,
    pub subset_sha256: String,
    /// Entries of the subset that can be drawn.
    pub samples: u64,
    pub track_samples: bool,
}

/// By position in the samples: how often each was drawn, and its last loss (NaN where there is none).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    pub counts: Vec<u32>,
    pub last_loss: Vec<f32>,
}

/// A training at rest.
pub struct Saved {
    pub state: State,
    pub checkpoint: Checkpoint,
    /// The optimizer's.
    pub moments: [Vec<f32>; 2],
    pub seen: Seen,
}

impl Saved {
    /// Writes into a folder of `run` that gets its name when all is on the disk. The optimizer's state of those before
    /// it is removed then: their weights stay.
    pub fn write(&self, run: &Path) -> Result<()> {
        let all = run.join("checkpoints");
        let folder = all.join(format!("step_{:08}", self.state.step));
        let part = all.join(format!("step_{:08}.part", self.state.step));
        let _ = std::fs::remove_dir_all(&part);
        self.checkpoint.write(&part)?;
        let len = self.moments[0].len();
        let counts: Vec<f32> = self.seen.counts.iter().map(|&count| f32::from_bits(count)).collect();
        let mut tensors = vec![("m".to_string(), vec![len], &self.moments[0][..]), ("v".to_string(), vec![len], &self.moments[1])];
        if !counts.is_empty() {
            tensors.push(("seen_bits".to_string(), vec![counts.len()], &counts));
            tensors.push(("last_loss".to_string(), vec![counts.len()], &self.seen.last_loss));
        }
        write_safetensors(&part.join(OPTIMIZER_FILE), &tensors)?;
        let state = serde_json::to_vec_pretty(&self.state).expect("a state is plain data");
        write_whole(&part.join(STATE_FILE), |file| std::io::Write::write_all(file, &state))?;
        let _ = std::fs::remove_dir_all(&folder);
        sync_folder(&part)?;
        std::fs::rename(&part, &folder).map_err(Error::io(&folder))?;
        sync_folder(&all)?;
        for other in folders(run) {
            if other != folder {
                let _ = std::fs::remove_file(other.join(OPTIMIZER_FILE));
            }
        }
        Ok(())
    }

    /// The newest in `run` that is whole. One that was being written when its run was killed is removed.
    pub fn newest(run: &Path) -> Result<Option<Saved>> {
        let entries = std::fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten().map(|entry| entry.path());
        for part in entries.filter(|path| path.extension().is_some_and(|extension| extension == "part")) {
            std::fs::remove_dir_all(&part).map_err(Error::io(&part))?;
        }
        let whole = |folder: &PathBuf| folder.join(OPTIMIZER_FILE).exists() && folder.join(STATE_FILE).exists();
        let Some(folder) = folders(run).into_iter().rfind(whole) else { return Ok(None) };
        let path = folder.join(STATE_FILE);
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let state = serde_json::from_str(&text).map_err(|source| Error::Config { path, source })?;
        let path = folder.join(OPTIMIZER_FILE);
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        let wrong = |source| Error::Safetensors { path: path.clone(), source };
        let tensors = SafeTensors::deserialize(&bytes).map_err(wrong)?;
        let values = |name: &str| -> Result<Vec<f32>> {
            let tensor = tensors.tensor(name).map_err(wrong)?;
            if tensor.dtype() != Dtype::F32 {
                return Err(Error::ParameterType { path: path.clone(), name: name.into(), got: format!("{:?}", tensor.dtype()) });
            }
            Ok(tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
        };
        let seen = match tensors.tensor("seen_bits").is_ok() {
            true => Seen { counts: values("seen_bits")?.into_iter().map(f32::to_bits).collect(), last_loss: values("last_loss")? },
            false => Seen::default(),
        };
        Ok(Some(Saved { state, checkpoint: Checkpoint::read(&folder)?, moments: [values("m")?, values("v")?], seen }))
    }
}

impl About {
    /// An error that names the first difference from a run that goes on.
    pub fn check(&self, saved: &About, run: &Path) -> Result<()> {
        let text = |value: serde_json::Value| value.to_string();
        let (now, then) = (serde_json::to_value(self), serde_json::to_value(saved));
        let (now, then) = (now.expect("plain data"), then.expect("plain data"));
        for (what, value) in now.as_object().into_iter().flatten() {
            if then[what] != *value {
                let (saved, given) = (text(then[what].clone()), text(value.clone()));
                return Err(Error::Resume { path: run.to_path_buf(), what: what.clone(), saved, given });
            }
        }
        Ok(())
    }
}

/// The run's checkpoints by step.
fn folders(run: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    let is_whole = |path: &PathBuf| path.extension().is_none() && path.is_dir();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.path()).filter(is_whole).collect();
    folders.sort();
    folders
}

fn sync_folder(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::io(folder))
}
