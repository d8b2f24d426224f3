//! Where a model computes, chosen when the program runs.

use std::fmt;

use crate::backend::{Backend, Cpu, Cuda, Precision, refuses};
use crate::config::ModelConfig;
use crate::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    Cpu,
    /// A GPU by its number.
    Cuda(usize, Precision),
    /// The GPU's kernels on the processor, by its C++ compiler: slow, to see that they are right.
    Emulated(Precision),
    /// PyTorch, on its GPU where it has one.
    #[cfg(feature = "libtorch")]
    Libtorch(Precision),
}

/// Where several processes run on one machine, the number of this one's GPU, as torchrun sets it.
const LOCAL_RANK: &str = "LOCAL_RANK";

impl Device {
    /// From `auto`, `cpu`, `cuda`, `cuda:N` or `emulated`, with why it is not a GPU where `auto` finds none. `auto` and
    /// `cuda` take the GPU of `LOCAL_RANK`.
    pub fn choose(text: &str, precision: Precision) -> Result<(Device, Option<String>)> {
        let wrong = |expected: &str| Error::Device { given: text.into(), expected: expected.into() };
        let local = || match std::env::var(LOCAL_RANK).ok().filter(|rank| !rank.is_empty()) {
            None => Ok(0),
            Some(value) => {
                let wrong = || Error::Environment { name: LOCAL_RANK, value: value.clone(), expected: "a whole number" };
                value.trim().parse::<usize>().map_err(|_| wrong())
            }
        };
        match text {
            "cpu" => return Ok((Device::Cpu, None)),
            "emulated" => return Ok((Device::Emulated(precision), None)),
            #[cfg(feature = "libtorch")]
            "libtorch" => return Ok((Device::Libtorch(precision), None)),
            "auto" => {
                let ordinal = local()?;
                return Ok(match gpu::probe(ordinal) {
                    Ok(_) => (Device::Cuda(ordinal, precision), None),
                    Err(e) => (Device::Cpu, Some(e.to_string())),
                });
            }
            _ => {}
        }
        let ordinal = match text.strip_prefix("cuda") {
            Some("") => local()?,
            Some(rest) => rest.strip_prefix(':').and_then(|n| n.parse().ok()).ok_or_else(|| wrong("a number, as in cuda:0"))?,
            None => return Err(wrong("auto, cpu, cuda, cuda:N or emulated")),
        };
        // What is asked for by name is an error where it is not there.
        gpu::probe(ordinal)?;
        Ok((Device::Cuda(ordinal, precision), None))
    }

    /// A backend for models of this configuration.
    pub fn open(self, config: &ModelConfig) -> Result<Box<dyn Backend>> {
        let (vision, text) = (&config.vision_cfg, &config.text_cfg);
        let on = |device: gpu::Device, precision| -> Result<Box<dyn Backend>> {
            if let Some(reason) = refuses(&[vision.width, vision.hidden(), text.width, text.hidden()]) {
                return Err(Error::Refused { device: self.to_string(), reason });
            }
            Ok(Box::new(Cuda::new(device, precision)?))
        };
        match self {
            Device::Cpu => Ok(Box::new(Cpu::new())),
            Device::Cuda(ordinal, precision) => on(gpu::Device::cuda(ordinal)?, precision),
            Device::Emulated(precision) => on(gpu::Device::emulated()?, precision),
            #[cfg(feature = "libtorch")]
            Device::Libtorch(precision) => Ok(Box::new(crate::backend::Libtorch::new(precision))),
        }
    }

    /// Bytes of an activation's value.
    pub fn value_bytes(self) -> usize {
        match self {
            Device::Cuda(_, precision) | Device::Emulated(precision) => precision.bytes(),
            _ => 4,
        }
    }

    /// Samples of the largest micro-batch that is faster than a smaller one. On a GPU several are made of a batch all the
    /// same, so that the pixels of one are copied while another is computed.
    pub fn largest_micro_batch(self) -> usize {
        match self {
            Device::Cpu | Device::Emulated(_) => 64,
            _ => 512,
        }
    }

    /// Bytes that a model may take by default, where it is not the program's own memory.
    pub fn memory(self) -> Option<usize> {
        match self {
            // What others leave, but for what cublasLt and the kernels take as they go.
            Device::Cuda(ordinal, _) => gpu::probe(ordinal).ok().map(|info| info.free / 10 * 9),
            _ => None,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(ordinal, _) => write!(f, "cuda:{ordinal}"),
            Device::Emulated(_) => f.write_str("emulated"),
            #[cfg(feature = "libtorch")]
            Device::Libtorch(_) => f.write_str("libtorch"),
        }
    }
}
