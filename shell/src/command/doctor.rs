//! What this machine can compute with, and with `--gpu` whether the GPU does it right, and how fast.

use std::time::Duration;

use gpu::Timing;
use storage::{Pool, Samples};
use tokio::runtime::Runtime;
use train::backend::Check;
use train::selftest::{self, Pairs, Throughput};
use train::{Device, ModelConfig, Precision, Tokenizer};

use super::block_on;
use crate::cli;
use crate::format::{pipe_table, print};
use crate::{Error, Result};

/// Steps of the training on both, and samples of a step.
const STEPS: usize = 50;
const BATCH: usize = 32;
const SIZE: usize = 64;
/// What losses on a GPU may differ from the CPU's by, relative to them.
const FLOAT32: f32 = 1e-3;
const BFLOAT16: f32 = 3e-2;

pub(crate) fn run(args: cli::Doctor, runtime: &Runtime) -> Result<()> {
    if let Some(place) = &args.place {
        block_on(runtime, storage::check_exclusion(place))?;
        crate::note!("{place}: what exists is not written over, so writers of a pool there exclude each other");
        return Ok(());
    }
    if let Some(model) = args.models.iter().find(|model| ModelConfig::named(model).is_none()) {
        let message = format!("no model is named '{model}'");
        return Err(Error::Usage { message, hint: "ViT-B-32, ViT-B-16, ViT-L-14, these with -quickgelu, or tiny" });
    }
    if args.batch_size == 0 || args.steps == 0 {
        return Err(Error::Usage {
            message: "--batch-size and --steps must be at least 1".into(),
            hint: "for instance: --batch-size 4096",
        });
    }
    let pool = match &args.pool {
        Some(pool) => Some(block_on(runtime, Pool::open(pool))?),
        None => None,
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    crate::note!("CPU  {cores} threads");
    let chosen = match args.device.as_str() {
        "auto" => "cuda",
        named => named,
    };
    let device = match Device::choose(chosen, Precision::Bf16) {
        Ok((device, _)) => device,
        // That there is none is no failure of the test, unless one was asked for.
        Err(e) if args.device == "auto" => {
            crate::note!("GPU  {e}");
            if args.gpu {
                crate::note!("skipped: the self-test needs a GPU; --device emulated checks the kernels without one");
            }
            return Ok(());
        }
        Err(e) => return Err(e.into()),
    };
    let (float32, info) = match device {
        Device::Cuda(ordinal, _) => (Device::Cuda(ordinal, Precision::Fp32), gpu::probe(ordinal)?),
        Device::Emulated(_) => (Device::Emulated(Precision::Fp32), gpu::Device::emulated()?.info().clone()),
        _ => return Err(Error::Usage { message: format!("--device {device} is no GPU"), hint: "give auto, cuda:N or emulated" }),
    };
    let (major, minor) = info.capability;
    let memory = info.memory as f64 / f64::from(1 << 30);
    crate::note!(
        "GPU  {device}: {}, compute capability {major}.{minor}, {} multiprocessors, {memory:.0} GiB",
        info.name,
        info.multiprocessors
    );
    if !args.gpu {
        return Ok(());
    }
    let mut wrong = Vec::new();
    for (what, device) in [("bfloat16", device), ("float32", float32)] {
        wrong.extend(show_operations(what, &selftest::operations(device)?)?);
    }
    let emulated = matches!(device, Device::Emulated(_));
    wrong.extend(train_side_by_side(pool.as_ref(), device, float32, if emulated { 5 } else { STEPS }, runtime)?);
    if !emulated {
        show_rates(device, float32)?;
        let peak = selftest::product_rate(device, [8192; 3])?;
        for model in &args.models {
            show_throughput(model, &selftest::throughput(device, model, args.batch_size, args.steps)?, peak)?;
        }
    }
    match wrong.is_empty() {
        true => {
            crate::note!("all results are the CPU's");
            Ok(())
        }
        false => Err(Error::SelfTest { wrong }),
    }
}

/// The table of all results; gives back those that are wrong.
fn show_operations(what: &str, checks: &[Check]) -> Result<Vec<String>> {
    let row = |check: &Check| {
        let verdict = if check.passes() { "" } else { "WRONG" };
        vec![
            check.operation.clone(),
            check.result.into(),
            format!("{:.1e}", check.distance),
            format!("{:.0e}", check.allowed),
            verdict.into(),
        ]
    };
    let header = [&format!("kernels in {what}"), "result", "distance from the CPU", "allowed", ""].map(str::to_string);
    print(&format!("{}\n", pipe_table(&header, &checks.iter().map(row).collect::<Vec<_>>())))?;
    Ok(checks.iter().filter(|check| !check.passes()).map(|check| format!("{}: {} in {what}", check.operation, check.result)).collect())
}

/// The same training on the CPU and on the GPU, of a small model on the pool's first images or made-up ones.
fn train_side_by_side(pool: Option<&Pool>, bfloat16: Device, float32: Device, steps: usize, runtime: &Runtime) -> Result<Vec<String>> {
    let model = selftest::small_model(SIZE);
    let pairs = match pool {
        Some(pool) => block_on(runtime, of_pool(pool))?,
        None => Pairs::made_up(4 * BATCH, SIZE),
    };
    let run = |device| selftest::losses(device, &model, &pairs, BATCH.min(pairs.captions.len()), steps);
    let (cpu, full, half) = (run(None)?, run(Some(float32))?, run(Some(bfloat16))?);
    // What is not a number is not close.
    let distance = |(a, b): (&f32, &f32)| if a.is_finite() { (a - b).abs() / b.abs().max(0.1) } else { f32::INFINITY };
    let apart = |losses: &[f32]| losses.iter().zip(&cpu).map(distance).fold(0.0, f32::max);
    let row = |step: usize| {
        let numbers = [cpu[step], full[step], half[step]].map(|loss| format!("{loss:.5}"));
        [vec![(step + 1).to_string()], numbers.to_vec()].concat()
    };
    let shown: Vec<usize> = (0..steps).filter(|step| step % 5 == 4 || *step == 0).collect();
    let header = ["step", "loss, CPU", "GPU, float32", "GPU, bfloat16"].map(str::to_string);
    print(&format!("{}\n", pipe_table(&header, &shown.into_iter().map(row).collect::<Vec<_>>())))?;
    let mut wrong = Vec::new();
    for (what, losses, allowed) in [("float32", &full, FLOAT32), ("bfloat16", &half, BFLOAT16)] {
        let distance = apart(losses);
        crate::note!("losses of {steps} steps in {what}: at most {distance:.1e} from the CPU's, allowed {allowed:.0e}");
        if distance > allowed || losses.len() < steps {
            wrong.push(format!("losses of {steps} steps in {what}"));
        }
    }
    Ok(wrong)
}

async fn of_pool(pool: &Pool) -> Result<Pairs> {
    let samples = Samples::of_pool(pool).await?;
    let which: Vec<usize> = (0..samples.len()).filter(|&i| samples.has_image(i)).take(4 * BATCH).collect();
    let tokenizer = Tokenizer::default();
    let mut pairs = Pairs { pixels: Vec::new(), captions: Vec::new() };
    for sample in samples.read(&which).await? {
        let Some(image) = &sample.image else { continue };
        let Ok(image) = train::image::decode(image) else { continue };
        pairs.pixels.extend(train::image::resize_center_crop(&image, SIZE)?);
        pairs.captions.push(tokenizer.encode(sample.text.as_deref().unwrap_or(""), 77));
    }
    match pairs.captions.is_empty() {
        true => Err(Error::Usage { message: "the pool has no images that can be read".into(), hint: "leave --pool away for made-up ones" }),
        false => Ok(pairs),
    }
}

fn show_rates(bfloat16: Device, float32: Device) -> Result<()> {
    let bandwidth = selftest::bandwidth(bfloat16)?;
    let mut rows = vec![
        vec!["copy to the GPU".into(), format!("{:.1} GB/s", bandwidth.write / 1e9)],
        vec!["copy from the GPU".into(), format!("{:.1} GB/s", bandwidth.read / 1e9)],
        vec!["a kernel that reads and writes".into(), format!("{:.0} GB/s", bandwidth.device / 1e9)],
    ];
    // Squares, and what ViT-B-32's blocks multiply in a micro-batch of 512.
    let shapes = [[4096; 3], [8192; 3], [25600, 2304, 768], [25600, 3072, 768], [25600, 768, 3072], [10240, 2048, 512]];
    for (what, device, shapes) in [("bfloat16", bfloat16, &shapes[..]), ("float32", float32, &shapes[..2])] {
        for &[m, n, k] in shapes {
            let rate = selftest::product_rate(device, [m, n, k])?;
            rows.push(vec![format!("product {m}x{n}x{k} in {what}"), format!("{:.0} TFLOP/s", rate / 1e12)]);
        }
    }
    print(&format!("{}\n", pipe_table(&["", "rate"].map(str::to_string), &rows)))
}

fn show_throughput(model: &str, t: &Throughput, peak: f64) -> Result<()> {
    let seconds = t.step.as_secs_f64();
    let kept = format!("micro-batches of {}, {} kept", t.micro_batch, t.kept);
    crate::note!("{model}, batch {} ({kept}): {:.0} samples/s", t.batch, t.batch as f64 / seconds);
    crate::note!(
        "  {:.0} TFLOP/s in matrix products, {:.0}% of {:.0}; counted as open_clip does them {:.0}%",
        t.flops / seconds / 1e12,
        100.0 * t.flops / seconds / peak,
        peak / 1e12,
        100.0 * t.padded_flops / seconds / peak
    );
    let total: Duration = t.kernels.iter().map(|kernel| kernel.total).sum();
    let row = |kernel: &Timing| {
        let seconds = kernel.total.as_secs_f64();
        let share = if kernel.flops > 0.0 { format!("{:.0}%", 100.0 * kernel.flops / seconds / peak) } else { String::new() };
        vec![
            kernel.name.clone(),
            kernel.calls.to_string(),
            format!("{:.2} ms", 1e3 * seconds),
            format!("{:.1}%", 100.0 * seconds / total.as_secs_f64()),
            share,
        ]
    };
    let header = ["kernel", "calls", "time", "of the step", "of peak"].map(str::to_string);
    print(&format!("{}\n", pipe_table(&header, &t.kernels.iter().take(40).map(row).collect::<Vec<_>>())))
}
