//! Weights in open_clip's names, as a folder that open_clip loads: `open_clip_config.json` and
//! `open_clip_model.safetensors`.

use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::config::OpenClipConfig;
use crate::parameters::Parameters;
use crate::{Error, Result};

pub const CONFIG_FILE: &str = "open_clip_config.json";
pub const WEIGHTS_FILE: &str = "open_clip_model.safetensors";

/// A model's configuration and the values of all its parameters, `[parameters.len]`.
#[derive(Clone)]
pub struct Checkpoint {
    pub config: OpenClipConfig,
    pub values: Vec<f32>,
}

impl Checkpoint {
    /// Reads float32, float16 or bfloat16 weights; every parameter must be there with its shape.
    pub fn read(folder: &Path) -> Result<Checkpoint> {
        let config_path = folder.join(CONFIG_FILE);
        if !config_path.exists() {
            return Err(Error::NotACheckpoint { path: folder.to_path_buf() });
        }
        let config = OpenClipConfig::read(&config_path)?;
        let path = folder.join(WEIGHTS_FILE);
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|source| Error::Safetensors { path: path.clone(), source })?;
        let parameters = Parameters::new(&config.model_cfg);
        let mut values = Vec::with_capacity(parameters.len);
        for parameter in &parameters.all {
            let name = parameter.name.clone();
            let Ok(tensor) = tensors.tensor(&name) else {
                return Err(Error::ParameterMissing { path, name });
            };
            if tensor.shape() != parameter.shape {
                return Err(Error::ParameterShape { path, name, expected: parameter.shape.clone(), got: tensor.shape().to_vec() });
            }
            match to_f32(&tensor) {
                Some(tensor) => values.extend(tensor),
                None => return Err(Error::ParameterType { path, name, got: format!("{:?}", tensor.dtype()) }),
            }
        }
        Ok(Checkpoint { config, values })
    }

    /// Writes both files, each under a temporary name that is renamed when it is whole.
    pub fn write(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
        let mut config = serde_json::to_string_pretty(&self.config).expect("a configuration is plain data");
        config.push('\n');
        write_whole(&folder.join(CONFIG_FILE), config.as_bytes())?;

        let path = folder.join(WEIGHTS_FILE);
        let bytes: Vec<u8> = self.values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let parameters = Parameters::new(&self.config.model_cfg);
        let view = |source| Error::Safetensors { path: path.clone(), source };
        let tensors = parameters.all.iter().map(|parameter| {
            let bytes = &bytes[parameter.range.start * 4..parameter.range.end * 4];
            Ok((parameter.name.as_str(), TensorView::new(Dtype::F32, parameter.shape.clone(), bytes).map_err(view)?))
        });
        let tensors = tensors.collect::<Result<Vec<_>>>()?;
        let file = safetensors::serialize(tensors, None).map_err(view)?;
        write_whole(&path, &file)
    }
}

fn to_f32(tensor: &TensorView) -> Option<Vec<f32>> {
    let pairs = || tensor.data().chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    Some(match tensor.dtype() {
        Dtype::F32 => tensor.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        Dtype::F16 => pairs().map(|b| half::f16::from_bits(b).to_f32()).collect(),
        Dtype::BF16 => pairs().map(|b| half::bf16::from_bits(b).to_f32()).collect(),
        _ => return None,
    })
}

fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let part = path.with_extension("part");
    let write = || {
        std::fs::write(&part, bytes)?;
        std::fs::File::open(&part)?.sync_all()?;
        std::fs::rename(&part, path)
    };
    write().map_err(Error::io(path))
}
