//! Weights in open_clip's names, as a folder that open_clip loads: `open_clip_config.json` and
//! `open_clip_model.safetensors`. Read as well: PyTorch files of open_clip.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::config::{ModelConfig, OpenClipConfig, PreprocessConfig};
use crate::parameters::Parameters;
use crate::pickle::{self, Tensor};
use crate::{Error, Result};

pub const CONFIG_FILE: &str = "open_clip_config.json";
pub const WEIGHTS_FILE: &str = "open_clip_model.safetensors";
/// The same as PyTorch writes it; read where there is no safetensors file.
const PYTORCH_FILE: &str = "open_clip_pytorch_model.bin";

/// A model's configuration and the values of all its parameters, `[parameters.len]`.
#[derive(Clone)]
pub struct Checkpoint {
    pub config: OpenClipConfig,
    pub values: Vec<f32>,
}

impl Checkpoint {
    /// A folder with a configuration and weights, or a file of weights (`.safetensors`, `.pt`, `.pth`, `.bin`) with an
    /// `open_clip_config.json` beside it. A PyTorch file without one is taken for the model that its shapes say, with
    /// heads of 64 and the exact GELU.
    ///
    /// Weights are float32, float16 or bfloat16; every parameter must be there with its shape and finite values, and no
    /// other parameter.
    pub fn read(path: &Path) -> Result<Checkpoint> {
        let (folder, file) = match path.is_dir() {
            true if !path.join(CONFIG_FILE).exists() => return Err(Error::NotACheckpoint { path: path.to_path_buf() }),
            true => {
                let names = [WEIGHTS_FILE, PYTORCH_FILE].map(|name| path.join(name));
                let file = names.iter().find(|file| file.exists()).unwrap_or(&names[0]);
                (path, file.clone())
            }
            false => (path.parent().unwrap_or(Path::new(".")), path.to_path_buf()),
        };
        let config_path = folder.join(CONFIG_FILE);
        let config = config_path.exists().then(|| OpenClipConfig::read(&config_path)).transpose()?;
        let is_safetensors = file.extension().is_some_and(|extension| extension == "safetensors");
        let mut tensors = if is_safetensors { read_safetensors(&file)? } else { pickle::read_tensors(&file)? };
        strip_prefixes(&mut tensors);
        let config = match config {
            Some(config) => config,
            None if is_safetensors => return Err(Error::NotACheckpoint { path: folder.to_path_buf() }),
            None => {
                let model_cfg = config_of(&tensors).ok_or_else(|| Error::NotACheckpoint { path: path.to_path_buf() })?;
                model_cfg.check(path)?;
                OpenClipConfig { model_cfg, preprocess_cfg: PreprocessConfig::default() }
            }
        };
        let parameters = Parameters::new(&config.model_cfg);
        let mut values = Vec::with_capacity(parameters.len);
        for parameter in &parameters.all {
            let (path, name) = (file.clone(), parameter.name.clone());
            let Some(tensor) = tensors.remove(&name) else {
                return Err(Error::ParameterMissing { path, name });
            };
            if tensor.shape != parameter.shape {
                return Err(Error::ParameterShape { path, name, expected: parameter.shape.clone(), got: tensor.shape });
            }
            let of_tensor = tensor.values.map_err(|got| Error::ParameterType { path: path.clone(), name: name.clone(), got })?;
            if let Some(got) = of_tensor.iter().find(|value| !value.is_finite()) {
                return Err(Error::ParameterValue { path, name, got: *got });
            }
            values.extend(of_tensor);
        }
        // Masks are computed, not learned.
        let mut unknown: Vec<String> = tensors.into_keys().filter(|name| !name.ends_with("attn_mask")).collect();
        unknown.sort();
        if let Some(name) = unknown.first() {
            return Err(Error::ParameterUnknown { path: file, name: name.clone(), more: unknown.len() - 1 });
        }
        Ok(Checkpoint { config, values })
    }

    /// Writes both files, each under a temporary name that is renamed when it is on the disk.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write_model(folder, &self.config, |range| self.values[range].to_vec())
    }
}

/// The same of values that are read parameter by parameter.
pub(crate) fn write_model(folder: &Path, config: &OpenClipConfig, mut values: impl FnMut(Range<usize>) -> Vec<f32>) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(Error::io(folder))?;
    config.write(&folder.join(CONFIG_FILE))?;
    let parameters = Parameters::new(&config.model_cfg).all;
    let tensors: Vec<_> = parameters.iter().map(|p| (p.name.clone(), p.shape.clone())).collect();
    write_safetensors(&folder.join(WEIGHTS_FILE), &tensors, |i| values(parameters[i].range.clone()))
}

/// Takes off what wrappers put before every name: data-parallel training, `torch.compile`, Lightning.
fn strip_prefixes(tensors: &mut HashMap<String, Tensor>) {
    while let Some(prefix) = ["module.", "_orig_mod.", "model."]
        .into_iter()
        .find(|prefix| !tensors.is_empty() && tensors.keys().all(|name| name.starts_with(prefix)))
    {
        *tensors = std::mem::take(tensors).into_iter().map(|(name, tensor)| (name[prefix.len()..].to_string(), tensor)).collect();
    }
}

fn read_safetensors(path: &Path) -> Result<HashMap<String, Tensor>> {
    let file = File::open(path).map_err(Error::io(path))?;
    // SAFETY: weights are replaced by renaming, not written over, by every program known to write them.
    let bytes = unsafe { Mmap::map(&file) }.map_err(Error::io(path))?;
    let tensors = SafeTensors::deserialize(&bytes).map_err(|source| Error::Safetensors { path: path.to_path_buf(), source })?;
    let mut all = HashMap::new();
    for (name, tensor) in tensors.tensors() {
        let values = to_f32(&tensor).ok_or_else(|| format!("{:?}", tensor.dtype()));
        all.insert(name, Tensor { shape: tensor.shape().to_vec(), values });
    }
    Ok(all)
}

/// Float32 tensors by name and shape; `values` gives those of one at a time, so that a model need not be held twice.
/// Source: the format's own description, a length, a header of JSON, and the bytes.
pub(crate) fn write_safetensors(path: &Path, tensors: &[(String, Vec<usize>)], mut values: impl FnMut(usize) -> Vec<f32>) -> Result<()> {
    let (mut header, mut at) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let end = at + 4 * shape.iter().product::<usize>();
        header.insert(name.clone(), serde_json::json!({ "dtype": "F32", "shape": shape, "data_offsets": [at, end] }));
        at = end;
    }
    let mut header = serde_json::to_vec(&header).expect("plain data");
    // The bytes begin at a multiple of eight.
    header.resize(header.len().next_multiple_of(8), b' ');
    write_whole(path, |file| {
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(&header)?;
        for (i, (_, shape)) in tensors.iter().enumerate() {
            let values = values(i);
            assert_eq!(values.len(), shape.iter().product::<usize>(), "as many values as the shape says");
            file.write_all(f32_bytes(&values))?;
        }
        Ok(())
    })
}

/// The bytes of float32 values as they lie in memory.
pub(crate) fn f32_bytes(values: &[f32]) -> &[u8] {
    const { assert!(cfg!(target_endian = "little"), "the file format is little-endian") };
    // SAFETY: every float32 is four initialised bytes, and u8 has no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), values.len() * 4) }
}

/// Little-endian float32.
pub(crate) fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

fn to_f32(tensor: &TensorView) -> Option<Vec<f32>> {
    let pairs = || tensor.data().chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]]));
    Some(match tensor.dtype() {
        Dtype::F32 => floats(tensor.data()),
        Dtype::F16 => pairs().map(|b| half::f16::from_bits(b).to_f32()).collect(),
        Dtype::BF16 => pairs().map(|b| half::bf16::from_bits(b).to_f32()).collect(),
        _ => return None,
    })
}

/// The model that has parameters of these shapes.
fn config_of(tensors: &HashMap<String, Tensor>) -> Option<ModelConfig> {
    let shape = |name: &str| tensors.get(name).map(|tensor| &tensor.shape[..]);
    let layers = |prefix: &str| (0..).take_while(|i| tensors.contains_key(&format!("{prefix}.{i}.ln_1.weight"))).count();
    let &[vision_width, 3, patch_size, _] = shape("visual.conv1.weight")? else { return None };
    let &[vision_tokens, _] = shape("visual.positional_embedding")? else { return None };
    let &[text_width, embed_dim] = shape("text_projection")? else { return None };
    let &[context_length, _] = shape("positional_embedding")? else { return None };
    let &[vocab_size, _] = shape("token_embedding.weight")? else { return None };
    let mut config = ModelConfig::named("ViT-B-32").expect("a known model");
    config.embed_dim = embed_dim;
    let vision = &mut config.vision_cfg;
    (vision.width, vision.patch_size) = (vision_width, patch_size);
    vision.image_size = (vision_tokens.checked_sub(1)?).isqrt() * patch_size;
    vision.layers = layers("visual.transformer.resblocks");
    vision.no_ln_pre = shape("visual.ln_pre.weight").is_none();
    let text = &mut config.text_cfg;
    (text.width, text.context_length, text.vocab_size) = (text_width, context_length, vocab_size);
    (text.heads, text.layers) = ((text_width / 64).max(1), layers("transformer.resblocks"));
    Some(config)
}

/// Writes a file under a temporary name, and renames it when it is on the disk.
pub(crate) fn write_whole(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>) -> Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let all = || {
        let mut file = BufWriter::with_capacity(1 << 20, File::create(&part)?);
        write(&mut file)?;
        file.into_inner()?;
        storage::put_in_place(Path::new(&part), path)
    };
    all().map_err(Error::io(path))
}
