//! What shows that a GPU computes what the CPU does, and how fast: operations, training side by side, copies, matrix products,
//! steps of whole models.

use std::ops::Range;
use std::time::{Duration, Instant};

use gpu::{Kind, Launch, Matmul, Timing};

use crate::backend::{Backend, Check, Cpu, Cuda, Pixels, Precision, check_operations};
use crate::config::{ModelConfig, PreprocessConfig};
use crate::device::Device;
use crate::loader::Shuffle;
use crate::model::{Capacity, Model};
use crate::parameters::Parameters;
use crate::plan::Plan;
use crate::recipe::Recipe;
use crate::step::Trainer;
use crate::{Error, Result};

/// Every kernel beside the CPU, in the device's precision.
pub fn operations(device: Device) -> Result<Vec<Check>> {
    let mut cuda = open(device)?;
    let checks = check_operations(&mut cuda, precision(device) == Precision::Bf16);
    cuda.check()?;
    Ok(checks)
}

fn precision(device: Device) -> Precision {
    match device {
        Device::Cuda(_, precision) | Device::Emulated(precision) => precision,
        _ => Precision::Fp32,
    }
}

fn open(device: Device) -> Result<Cuda> {
    match device {
        Device::Cuda(ordinal, precision) => Cuda::new(gpu::Device::cuda(ordinal)?, precision),
        Device::Emulated(precision) => Cuda::new(gpu::Device::emulated()?, precision),
        _ => Err(Error::Device { given: device.to_string(), expected: "a GPU".into() }),
    }
}

/// Pixels `[n, size, size, 3]`, and captions' ids with start and end.
pub struct Pairs {
    pub pixels: Vec<u8>,
    pub captions: Vec<Vec<u32>>,
}

impl Pairs {
    /// Made up: coarse patterns, and captions of 8 to 31 tokens.
    pub fn made_up(n: usize, size: usize) -> Pairs {
        let pixel = |i: usize, at: usize| {
            let (row, column, channel) = (at / (3 * size) / 4, at / 3 % size / 4, at % 3);
            (((row * 31 + column * 17 + i * (7 + channel)) * 2_654_435_761) >> 7) as u8
        };
        let pixels = (0..n).flat_map(|i| (0..3 * size * size).map(move |at| pixel(i, at))).collect();
        let caption =
            |i: usize| [vec![49406], (0..6 + i * 5 % 24).map(|j| (300 + i * 31 + j * 17) as u32 % 49000).collect(), vec![49407]].concat();
        Pairs { pixels, captions: (0..n).map(caption).collect() }
    }

    fn part(&self, range: Range<usize>) -> Pixels<'_> {
        let sample = self.pixels.len() / self.captions.len();
        let PreprocessConfig { mean, std, .. } = PreprocessConfig::default();
        Pixels::Bytes { bytes: &self.pixels[range.start * sample..range.end * sample], mean, std }
    }
}

/// A small CLIP with heads of 64, on images of `size`, which trains on a CPU within seconds.
pub fn small_model(size: usize) -> ModelConfig {
    let mut model = ModelConfig::named("tiny").expect("a known model");
    let vision = &mut model.vision_cfg;
    (vision.image_size, vision.patch_size, vision.width, vision.head_width, vision.layers) = (size, 16, 128, 64, 3);
    (model.text_cfg.width, model.text_cfg.heads) = (128, 2);
    model
}

/// The losses of so many steps on batches of `batch`, on the device or on the CPU: from the same first parameters, on the same
/// samples.
pub fn losses(device: Option<Device>, model: &ModelConfig, pairs: &Pairs, batch: usize, steps: usize) -> Result<Vec<f32>> {
    let backend: Box<dyn Backend> = match device {
        Some(device) => Box::new(open(device)?),
        None => Box::new(Cpu::new()),
    };
    let n = pairs.captions.len();
    let recipe =
        Recipe { batch_size: batch, learning_rate: 1e-3, warmup: 5, samples_seen: (batch * steps) as u64, ..Recipe::named("tiny")? };
    let capacity = Capacity::of(model, batch.div_ceil(2), 77, 2);
    let mut trainer = Trainer::new(Model::new(backend, model, &Parameters::new(model).draw(1), capacity)?, recipe)?;
    let sample = pairs.pixels.len() / n;
    let mut losses = Vec::new();
    for step in 0..steps {
        let which: Vec<usize> = (0..batch).map(|i| (step * batch + i) % n).collect();
        let batch = Pairs {
            pixels: which.iter().flat_map(|&i| &pairs.pixels[i * sample..(i + 1) * sample]).copied().collect(),
            captions: which.iter().map(|&i| pairs.captions[i].clone()).collect(),
        };
        let report = trainer.step(&batch.captions, |range| batch.part(range), &|_| true)?;
        losses.extend(report.map(|report| report.loss));
    }
    Ok(losses)
}

/// Bytes a second.
#[derive(Debug, Clone, Copy)]
pub struct Bandwidth {
    /// From the program's memory, through pinned memory.
    pub write: f64,
    pub read: f64,
    /// Read and written by a kernel within the GPU's memory.
    pub device: f64,
}

/// The best of several, of half a gigabyte.
pub fn bandwidth(device: Device) -> Result<Bandwidth> {
    const BYTES: usize = 512 << 20;
    let mut cuda = open(device)?;
    let bytes_of_a_value = precision(device).bytes();
    let device = cuda.device();
    let (at, to) = (device.alloc(BYTES), device.alloc(BYTES));
    let mut host = vec![1u8; BYTES];
    let mut best = |bytes: usize, work: &mut dyn FnMut(&mut gpu::Device)| {
        let once = |_| {
            device.synchronize();
            let start = Instant::now();
            work(device);
            device.synchronize();
            bytes as f64 / start.elapsed().as_secs_f64()
        };
        (0..5).map(once).fold(0.0, f64::max)
    };
    let write = best(BYTES, &mut |device| device.write(at, &host));
    let n = BYTES / bytes_of_a_value;
    let args = [gpu::Arg::Pointer(to), gpu::Arg::Pointer(at), gpu::Arg::Long(n as i64), gpu::Arg::Int(1)];
    let within = best(2 * BYTES, &mut |device| device.launch("activate", Launch::new(n.div_ceil(8 * 256), 256), &args));
    let read = best(BYTES, &mut |device| device.read(at, &mut host));
    device.check()?;
    Ok(Bandwidth { write, read, device: within })
}

/// Floating-point operations a second of `[m, k] · [n, k]ᵀ`, in the device's precision, the median of several.
pub fn product_rate(device: Device, [m, n, k]: [usize; 3]) -> Result<f64> {
    let mut cuda = open(device)?;
    let kind = if precision(device) == Precision::Bf16 { Kind::Bf16 } else { Kind::F32 };
    let device = cuda.device();
    let [out, a, b] = [m * n, m * k, n * k].map(|values| device.alloc(values * kind.bytes()));
    let product = Matmul { out, a, b, m, n, k, transpose_a: false, transpose_b: true, inputs: kind, output: kind, add: None, bias: None };
    const AT_ONCE: usize = 10;
    let mut once = || {
        device.synchronize();
        let start = Instant::now();
        (0..AT_ONCE).for_each(|_| device.matmul(product));
        device.synchronize();
        (AT_ONCE * 2 * m * n * k) as f64 / start.elapsed().as_secs_f64()
    };
    once();
    let mut rates: Vec<f64> = (0..5).map(|_| once()).collect();
    device.check()?;
    rates.sort_by(f64::total_cmp);
    Ok(rates[2])
}

/// Training steps of a model on made-up samples.
#[derive(Debug, Clone)]
pub struct Throughput {
    pub batch: usize,
    pub micro_batch: usize,
    pub kept: usize,
    /// The median step.
    pub step: Duration,
    /// Floating-point operations of a step's matrix products as they were done, and as open_clip does them: captions padded,
    /// every token through the last block.
    pub flops: f64,
    pub padded_flops: f64,
    /// Of one step, by kernel.
    pub kernels: Vec<Timing>,
}

pub fn throughput(device: Device, model: &str, batch: usize, steps: usize) -> Result<Throughput> {
    let config = ModelConfig::named(model).ok_or_else(|| Error::Device { given: model.into(), expected: "a known model".into() })?;
    let recipe = Recipe { batch_size: batch, model: model.into(), ..Recipe::named("small")? };
    let plan = Plan {
        pool: String::new(),
        recipe,
        model: config.clone(),
        seed: 1,
        shuffle: Shuffle::Full,
        micro_batch: None,
        memory: device.memory().unwrap_or(6 << 30),
        max_steps: None,
        shrunk: None,
        device,
        resume: false,
        track_samples: false,
    };
    let capacity = plan.capacity()?;
    let mut trainer = plan.trainer(&Parameters::new(&config).draw(1), capacity)?;
    let pairs = Pairs::made_up(batch, config.vision_cfg.image_size);
    let step = |trainer: &mut Trainer| -> Result<(Duration, f64)> {
        let (start, flops) = (Instant::now(), trainer.model.backend.flops());
        trainer.step(&pairs.captions, |range| pairs.part(range), &|_| true)?;
        Ok((start.elapsed(), trainer.model.backend.flops() - flops))
    };
    // The first plans products and takes memory.
    step(&mut trainer)?;
    let mut times = (0..steps).map(|_| step(&mut trainer)).collect::<Result<Vec<_>>>()?;
    times.sort_by_key(|(time, _)| *time);
    let (median, flops) = times[times.len() / 2];
    trainer.model.backend.gpu().into_iter().for_each(gpu::Device::start_profile);
    step(&mut trainer)?;
    let kernels = trainer.model.backend.gpu().map(gpu::Device::stop_profile).unwrap_or_default();
    let padded_flops = 3.0 * batch as f64 * config.flops(config.text_cfg.context_length);
    Ok(Throughput { batch, micro_batch: capacity.samples, kept: capacity.kept, step: median, flops, padded_flops, kernels })
}
