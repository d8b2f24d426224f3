//! Checkpoints of a run that goes on: `RUN/checkpoints/step_00000030/` is one that open_clip loads, with the state of the
//! training beside it.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, floats, write_model, write_safetensors, write_whole};
use crate::config::{ModelConfig, OpenClipConfig};
use crate::loader::Shuffle;
use crate::recipe::Recipe;
use crate::step::Trainer;
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
    /// Of the last step.
    pub loss: f32,
    pub about: About,
}

/// What must be the same when the run goes on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct About {
    pub recipe: Recipe,
    pub model: ModelConfig,
    pub seed: u64,
    pub shuffle: Shuffle,
    /// Entries of the subset that can be drawn, and the SHA-256 of their uids and weights in the order of the draws.
    pub samples: u64,
    pub samples_sha256: String,
    pub track_samples: bool,
    #[serde(default)]
    pub shrunk: Option<usize>,
}

/// By position in the samples: how often each was drawn, and its last loss (NaN where there is none).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    pub counts: Vec<u32>,
    pub last_loss: Vec<f32>,
}

/// A training at rest.
pub struct Saved {
    pub folder: PathBuf,
    pub state: State,
    pub values: Vec<f32>,
    /// The optimizer's.
    pub moments: [Vec<f32>; 2],
    pub seen: Seen,
}

/// Writes a training into a folder of `run` that gets its name when all is on the disk. Then the others' optimizer goes,
/// and those before it that `keep` does not want.
pub fn save(run: &Path, state: &State, config: &OpenClipConfig, trainer: &Trainer, seen: &Seen, keep: impl Fn(u64) -> bool) -> Result<()> {
    let all = run.join("checkpoints");
    let folder = all.join(format!("step_{:08}", state.step));
    let part = all.join(format!("step_{:08}.part", state.step));
    let _ = std::fs::remove_dir_all(&part);
    write_model(&part, config, |range| trainer.values(range))?;

    let parameters = &trainer.model.parameters.all;
    // The moments parameter by parameter, so that no second copy of them is made.
    let mut tensors: Vec<_> = parameters.iter().map(|p| (format!("m.{}", p.name), p.shape.clone())).collect();
    tensors.extend(parameters.iter().map(|p| (format!("v.{}", p.name), p.shape.clone())));
    if !seen.counts.is_empty() {
        tensors.extend(["seen_bits", "last_loss"].map(|name| (name.to_string(), vec![seen.counts.len()])));
    }
    let n = parameters.len();
    write_safetensors(&part.join(OPTIMIZER_FILE), &tensors, |i| match i / n {
        which @ (0 | 1) => trainer.moment(which, parameters[i % n].range.clone()),
        _ if i == 2 * n => seen.counts.iter().map(|&count| f32::from_bits(count)).collect(),
        _ => seen.last_loss.clone(),
    })?;
    let text = serde_json::to_vec_pretty(state).expect("a state is plain data");
    write_whole(&part.join(STATE_FILE), |file| std::io::Write::write_all(file, &text))?;
    // What was read of a device that has failed since is nothing to go on from.
    trainer.model.backend.check()?;
    let _ = std::fs::remove_dir_all(&folder);
    storage::put_in_place(&part, &folder).map_err(Error::io(&folder))?;
    prune(run, |step| keep(step) || step == state.step, |step| step == state.step);
    Ok(())
}

/// Removes checkpoints that are not kept, and the optimizer's state of those that are not gone on from.
pub fn prune(run: &Path, keep: impl Fn(u64) -> bool, goes_on: impl Fn(u64) -> bool) {
    for (step, folder) in folders(run) {
        if !keep(step) {
            let _ = std::fs::remove_dir_all(&folder);
        } else if !goes_on(step) {
            let _ = std::fs::remove_file(folder.join(OPTIMIZER_FILE));
        }
    }
}

/// The newest checkpoint of `run`, whether a training can go on from it or not.
pub fn newest_folder(run: &Path) -> Option<PathBuf> {
    folders(run).pop().map(|(_, folder)| folder)
}

impl Saved {
    /// The newest in `run` that a training can go on from. One that was being written when its run was killed is removed.
    pub fn newest(run: &Path) -> Result<Option<Saved>> {
        let entries = std::fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten().map(|entry| entry.path());
        for part in entries.filter(|path| path.extension().is_some_and(|extension| extension == "part")) {
            std::fs::remove_dir_all(&part).map_err(Error::io(&part))?;
        }
        let whole = |folder: &PathBuf| folder.join(OPTIMIZER_FILE).exists() && folder.join(STATE_FILE).exists();
        let Some(folder) = folders(run).into_iter().map(|(_, folder)| folder).rfind(whole) else { return Ok(None) };
        let path = folder.join(STATE_FILE);
        let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
        let state: State = serde_json::from_str(&text).map_err(|source| Error::Config { path, source })?;
        let Checkpoint { config, values } = Checkpoint::read(&folder)?;
        let path = folder.join(OPTIMIZER_FILE);
        let file = File::open(&path).map_err(Error::io(&path))?;
        // SAFETY: the file is this run's own, and nobody else writes to it while the run's lock is held.
        let bytes = unsafe { Mmap::map(&file) }.map_err(Error::io(&path))?;
        let wrong = |source| Error::Safetensors { path: path.clone(), source };
        let tensors = SafeTensors::deserialize(&bytes).map_err(wrong)?;
        let values_of = |name: &str| -> Result<Vec<f32>> {
            let tensor = tensors.tensor(name).map_err(wrong)?;
            let of_type = |got: Dtype| Error::ParameterType { path: path.clone(), name: name.into(), got: format!("{got:?}") };
            if tensor.dtype() == Dtype::F32 { Ok(floats(tensor.data())) } else { Err(of_type(tensor.dtype())) }
        };
        let parameters = crate::parameters::Parameters::new(&config.model_cfg);
        let moment = |of: &str| -> Result<Vec<f32>> {
            let parts = parameters.all.iter().map(|p| values_of(&format!("{of}.{}", p.name)));
            Ok(parts.collect::<Result<Vec<_>>>()?.concat())
        };
        let seen = match state.about.track_samples {
            true => Seen { counts: values_of("seen_bits")?.into_iter().map(f32::to_bits).collect(), last_loss: values_of("last_loss")? },
            false => Seen::default(),
        };
        let moments = [moment("m")?, moment("v")?];
        Ok(Some(Saved { folder, state, values, moments, seen }))
    }
}

impl About {
    /// An error that names the first difference from a run that goes on.
    pub fn check(&self, saved: &About, run: &Path) -> Result<()> {
        let plain = |about: &About| serde_json::to_value(about).expect("plain data");
        let (mut now, mut then) = (plain(self), plain(saved));
        // The fields of the recipe beside the others.
        for value in [&mut now, &mut then] {
            let recipe = value["recipe"].take();
            value.as_object_mut().expect("a struct").extend(recipe.as_object().expect("a struct").clone());
        }
        let none = serde_json::Value::Null;
        // Whether the samples are the same is said last: other differences make them differ.
        let fields = || now.as_object().into_iter().flatten();
        let last = |what: &str| what == "samples_sha256";
        let of_samples = fields().filter(|(what, _)| last(what));
        for (what, value) in fields().filter(|(what, _)| *what != "recipe" && !last(what)).chain(of_samples) {
            let was = then.get(what).unwrap_or(&none);
            if was != value {
                let (saved, given) = (was.to_string(), value.to_string());
                return Err(Error::Resume { path: run.to_path_buf(), what: what.replace('_', " "), saved, given });
            }
        }
        Ok(())
    }
}

/// The run's checkpoints by step.
fn folders(run: &Path) -> Vec<(u64, PathBuf)> {
    let entries = std::fs::read_dir(run.join("checkpoints")).into_iter().flatten().flatten();
    let step_of = |path: &Path| path.file_name()?.to_str()?.strip_prefix("step_")?.parse().ok();
    let mut folders: Vec<(u64, PathBuf)> = entries.filter_map(|entry| Some((step_of(&entry.path())?, entry.path()))).collect();
    folders.sort();
    folders
}
