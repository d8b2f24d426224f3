//! How fast each part of a training is by itself, so that one knows which of them to help.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rayon::prelude::*;
use storage::Samples;

use crate::backend::{Backend, Epilogue, Gemm};
use crate::device::Device;
use crate::loader::{self, Order};
use crate::parameters::Parameters;
use crate::plan::Plan;
use crate::text::Tokenizer;
use crate::{Recipe, Result};

/// Samples a second of each part with the machine to itself, and what the machine could do.
#[derive(Debug, Clone, Copy)]
pub struct Ceilings {
    /// Images and captions out of the pool.
    pub read: f64,
    /// Decoding, cropping and tokens, on all cores.
    pub decode: f64,
    /// Forward, backward and update.
    pub compute: f64,
    /// Floating-point operations of matrix products a second: while computing, and of one large product.
    pub flops: f64,
    pub peak_flops: f64,
}

/// Each part is measured for about so long.
const AT_LEAST: Duration = Duration::from_secs(3);

/// Measures on the samples and the model of a plan. Call it inside a tokio runtime; it blocks.
pub fn doctor(samples: &Samples, plan: &Plan) -> Result<Ceilings> {
    let runtime = tokio::runtime::Handle::current();
    // A GPU's step is not the same where it has less to do.
    let batch_size = match plan.device {
        Device::Cuda(..) => plan.recipe.batch_size,
        _ => plan.capacity()?.samples.max(64),
    };
    // Of a part of a step: the draws of the run's own order.
    let order = |steps| Order { seed: plan.seed, batch_size, shuffle: plan.shuffle, steps, part: 0, parts: 1 };
    let prepare = loader::Prepare::new(&plan.model, Arc::new(Tokenizer::default()));
    let draw = loader::Draw::new(samples, &order(0..1));
    let (mut read, mut decode, mut seen) = (Duration::ZERO, Duration::ZERO, 0);
    for step in 0.. {
        if read + decode > 2 * AT_LEAST || (step > 0 && read + decode > AT_LEAST && seen > 1000) {
            break;
        }
        let drawn = draw.positions(step);
        let start = Instant::now();
        let read_now = runtime.block_on(samples.read(&drawn))?;
        read += start.elapsed();
        let start = Instant::now();
        let prepared = read_now.par_iter().filter(|sample| prepare.sample(sample, step).is_ok()).count();
        decode += start.elapsed();
        seen += prepared.max(1);
    }

    let recipe = Recipe { batch_size, ..plan.recipe.clone() };
    let values = Parameters::new(&plan.model).draw(plan.seed);
    let mut trainer = Plan { recipe, ..plan.clone() }.trainer(&values, plan.capacity()?)?;
    let batches = loader::start(samples.clone(), &plan.model, Arc::new(Tokenizer::default()), order(0..1));
    let batch = batches.recv().map_err(|_| crate::Error::WorkerPanicked)??;
    // The first step also takes memory from the system.
    crate::run::train_step(&mut trainer, &batch, &|_| true)?;
    let (start, flops, mut steps) = (Instant::now(), trainer.model.backend.flops(), 0);
    while steps == 0 || start.elapsed() < AT_LEAST {
        crate::run::train_step(&mut trainer, &batch, &|_| true)?;
        steps += 1;
    }
    let seconds = start.elapsed().as_secs_f64();
    Ok(Ceilings {
        read: seen as f64 / read.as_secs_f64(),
        decode: seen as f64 / decode.as_secs_f64(),
        compute: (steps * batch_size) as f64 / seconds,
        flops: (trainer.model.backend.flops() - flops) / seconds,
        peak_flops: peak_flops(trainer.model.backend.as_mut(), plan.device),
    })
}

impl Plan {
    /// Floating-point operations a second of one large matrix product on the plan's device.
    pub fn peak_flops(&self) -> Result<f64> {
        let mut backend = self.device.open(&self.model)?;
        let peak = peak_flops(backend.as_mut(), self.device);
        backend.check()?;
        Ok(peak)
    }
}

/// Of activations, the best of several.
fn peak_flops(b: &mut dyn Backend, device: Device) -> f64 {
    let n = if matches!(device, Device::Cuda(..)) { 8192 } else { 1024 };
    let [out, x, y] = [(); 3].map(|()| b.alloc_activations(n * n));
    let gemm = Gemm { out, a: x, b: y, m: n, n, k: n, transpose_a: false, transpose_b: true, accumulate: false, epilogue: Epilogue::None };
    let mut timed = || {
        let start = Instant::now();
        b.gemm(gemm);
        b.read(out.first(1));
        2.0 * (n * n * n) as f64 / start.elapsed().as_secs_f64()
    };
    (0..30).map(|_| timed()).fold(0.0, f64::max)
}
