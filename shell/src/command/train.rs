use std::path::Path;
use std::sync::Arc;

use engine::Filter;
use storage::records::{self, Run as RunRecord};
use storage::{Pool, Receipt, Samples, Subset};
use tokio::runtime::Runtime;
use train::doctor::{Ceilings, doctor};
use train::loader::Shuffle;
use train::parameters::Parameters;
use train::{Data, Device, Event, Group, ModelConfig, Plan, Recipe, Rendezvous, Run, StepReport};

use super::session::session;
use super::{absolute, allocator, block_on, device, open};
use crate::cli;
use crate::progress::{Meter, StepMeter, duration};
use crate::{Error, Result, STOP};

pub(crate) fn run(args: cli::Train, runtime: &Runtime) -> Result<()> {
    allocator::keep_memory();
    let mut plan = plan(&args)?;
    let capacity = plan.capacity()?;
    let together = Rendezvous::from_environment()?;
    if args.doctor && together.is_some() {
        let message = "--doctor measures one process, and WORLD_SIZE asks for several".to_string();
        return Err(Error::Usage { message, hint: "run it without WORLD_SIZE" });
    }
    if let Some(at) = together.as_ref().filter(|at| plan.recipe.batch_size % at.world != 0) {
        return Err(::train::Error::Share { batch_size: plan.recipe.batch_size, world: at.world }.into());
    }
    if let Some(output) = args.output.as_ref().filter(|_| args.resume && !args.doctor)
        && output.join(train::RUN_FILE).exists()
    {
        // A job that is started again; and the record may be what it was stopped before.
        if together.as_ref().is_some_and(|at| at.rank > 0) {
            return Ok(());
        }
        let run = Run::read(output)?;
        write_record(&args.pool, output, &run, runtime)?;
        crate::note!("{} is finished: {} steps", output.display(), run.steps);
        let other = [
            ("steps", plan.steps() != run.steps),
            ("batch size", plan.recipe.batch_size != run.recipe.batch_size),
            ("seed", plan.seed != run.seed),
            ("recipe", plan.recipe != run.recipe),
        ];
        let other: Vec<&str> = other.into_iter().filter(|(_, other)| *other).map(|(name, _)| name).take(3).collect();
        if !other.is_empty() {
            crate::note!(
                "warning: other {} than the run's are given; nothing more is trained, choose another folder with -o",
                other.join(", ")
            );
        }
        return Ok(());
    }
    let mut data = block_on(runtime, async {
        let pool = open(&args.pool, args.at.as_deref()).await?;
        let (subset, receipt) = select(&args, &pool).await?;
        let (samples, missing) = Samples::of_subset(&pool, &subset).await?;
        Ok::<_, Error>(Data { subset, samples, missing, receipt })
    })?;
    if let Some(side) = plan.shrunk
        && !block_on(runtime, data.samples.use_shrunk(side))?
    {
        // No image was larger: the pixels are the recipe's.
        plan.shrunk = None;
    }
    let Data { samples, missing, receipt, .. } = &data;
    let others = together.as_ref().filter(|at| at.rank > 0);
    if missing.not_in_pool + missing.no_image > 0 && others.is_none() {
        crate::note!(
            "of {} uids selected {} can be drawn: {} are not in the pool, {} have no image",
            receipt.subset_size,
            samples.len(),
            missing.not_in_pool,
            missing.no_image
        );
    }
    let peak = if others.is_none() { plan.peak_flops()? } else { 0.0 };
    if others.is_none() {
        print_plan(&plan, receipt, samples.len(), capacity, peak);
    }
    let _inside = runtime.enter();
    let Some(output) = args.output.as_ref().filter(|_| !args.doctor) else {
        crate::note!("measuring for some ten seconds, or two steps of a large model");
        print_ceilings(&doctor(samples, &plan)?, &plan);
        return Ok(());
    };
    let group = match &together {
        Some(at) => {
            crate::note!("process {} of {}, meeting at {}:{}", at.rank, at.world, at.address, at.port);
            Group::meet(at, &STOP)?
        }
        None => Group::alone(),
    };
    if others.is_some() {
        // The first says what there is to say.
        train::train(data, &plan, group, output, &STOP, &|_| ())?;
        return Ok(());
    }
    let meter = StepMeter::new(plan.steps());
    let on_event = |event: Event| match event {
        Event::Resumed { step, from } => crate::note!("goes on from step {step}: {}", from.display()),
        Event::Part { step, share } => meter.part(step, share),
        Event::Step(report) => meter.show(report.step, || line(&report, peak)),
    };
    let done = train::train(data, &plan, group, output, &STOP, &on_event);
    meter.finish();
    let run = done?;
    write_record(&args.pool, output, &run, runtime)?;
    if run.unreadable > 0 {
        let list = output.join("unreadable.jsonl");
        crate::note!("{} draws were replaced because their image could not be read: {}", run.unreadable, list.display());
    }
    crate::note!(
        "trained on {} samples seen in {:.1} s ({:.0} samples/s), loss {:.4}: {}",
        run.samples_seen,
        run.seconds,
        run.samples_per_second,
        run.loss,
        output.display()
    );
    Ok(())
}

/// Short, and the run is there already: not for Ctrl-C to part.
fn write_record(pool: &str, output: &Path, run: &Run, runtime: &Runtime) -> Result<()> {
    let pool = runtime.block_on(Pool::open(pool))?;
    Ok(runtime.block_on(records::write_run(&pool, &record(output, run)))?)
}

fn line(r: &StepReport, peak: f64) -> String {
    let norm = r.gradient_norm.map(|norm| format!(" | norm {norm:.2}")).unwrap_or_default();
    format!(
        "loss {:.4} | lr {:.1e} | scale {:.1}{norm} | {}/s | data wait {:.0}% | {:.0}% of peak",
        r.loss,
        r.learning_rate,
        r.logit_scale,
        rate(r.samples_per_second),
        100.0 * r.data_wait,
        100.0 * r.flops_per_second / peak
    )
}

/// Three digits, whatever the size.
fn rate(per_second: f64) -> String {
    let decimals = if per_second >= 100.0 { 0 } else { 1 };
    format!("{per_second:.decimals$}")
}

fn plan(args: &cli::Train) -> Result<Plan> {
    let named = Recipe::named(&args.scale)?;
    let model = match &args.model {
        Some(model) if model.ends_with(".json") => ModelConfig::read(Path::new(model))?,
        Some(model) => ModelConfig::named(model).ok_or_else(|| Error::Usage {
            message: format!("no model is named '{model}'"),
            hint: "ViT-B-32, ViT-B-16, ViT-L-14, these with -quickgelu, tiny, or a file of open_clip's model_configs",
        })?,
        None => ModelConfig::named(&named.model).expect("recipes name known models"),
    };
    let recipe = Recipe {
        model: args.model.clone().unwrap_or(named.model.clone()),
        samples_seen: args.samples_seen.unwrap_or(named.samples_seen),
        batch_size: args.batch_size.unwrap_or(named.batch_size),
        learning_rate: args.learning_rate.unwrap_or(named.learning_rate),
        gradient_clip: args.clip_gradients,
        ..named
    };
    for (what, value, hint) in [
        ("the learning rate", Some(recipe.learning_rate), "for instance: --learning-rate 5e-4"),
        ("the norm of --clip-gradients", recipe.gradient_clip, "for instance: --clip-gradients 1"),
    ] {
        if value.is_some_and(|value| !(value > 0.0 && value.is_finite())) {
            let message = format!("{what} must be a number above 0, got {}", value.unwrap_or_default());
            return Err(Error::Usage { message, hint });
        }
    }
    let device = device(&args.compute)?;
    Ok(Plan {
        pool: absolute(&args.pool),
        recipe,
        model,
        seed: args.seed,
        shuffle: args.shuffle,
        micro_batch: args.micro_batch,
        memory: match args.train_memory {
            Some(bytes) => bytes.try_into().unwrap_or(usize::MAX),
            None => device.memory().unwrap_or(CPU_MEMORY),
        },
        shrunk: args.shrunk,
        device,
        max_steps: args.max_steps,
        resume: args.resume,
        track_samples: args.track_samples,
    })
}

/// The subset that `--select` names, and its receipt; a file without one gets what can be told of it.
async fn select(args: &cli::Train, pool: &Pool) -> Result<(Subset, Receipt)> {
    let path = Path::new(&args.select);
    if path.extension().is_none_or(|extension| extension != "npy") {
        let filter = Filter::resolve(&args.select)?.bind(&args.params)?;
        let session = session(pool.clone(), &args.queries, Arc::new(Meter::new("select"))).await?;
        return Ok(session.subset(&filter).await?);
    }
    let subset = Subset::read(path)?;
    let receipt_path = Receipt::path_beside(path);
    if receipt_path.exists() {
        let receipt = Receipt::read(&receipt_path)?;
        if receipt.subset_sha256 == subset.digest() {
            return Ok((subset, receipt));
        }
        crate::note!("warning: {} is of another subset and is not used", receipt_path.display());
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let receipt = Receipt::of(&name, pool, subset.summary()).await?;
    Ok((subset, receipt))
}

/// What a model takes of the program's own memory by default.
const CPU_MEMORY: usize = 6 << 30;
/// What of its matrix products' peak a step reaches, roughly: for the estimate alone.
const USUAL_SHARE: f64 = 0.5;
const USUAL_TOKENS: usize = 20;

fn print_plan(plan: &Plan, receipt: &Receipt, drawable: usize, capacity: train::model::Capacity, peak: f64) {
    let r = &plan.recipe;
    let off = plan.off_recipe();
    let off = if off.is_empty() { String::new() } else { format!(" (off recipe: {})", off.join(", ")) };
    let (steps, all) = (plan.steps(), r.steps());
    let samples = steps * r.batch_size as u64;
    let forward = plan.model.flops(plan.model.text_cfg.context_length);
    crate::note!("scale        {}{off}", r.scale);
    crate::note!("model        {}, {:.1} M parameters", r.model, Parameters::new(&plan.model).len as f64 / 1e6);
    crate::note!("             {:.2} GFLOP a sample, {:.2} with its gradients", forward / 1e9, 3.0 * forward / 1e9);
    crate::note!("subset       {}, {} samples, {drawable} to draw from", receipt.filter, receipt.subset_size);
    if let Shuffle::Blocks(size) = plan.shuffle {
        crate::note!("shuffle      blocks of {size}");
    }
    let of_all = if steps < all { format!(" of the schedule's {all}") } else { String::new() };
    crate::note!("samples seen {samples} in {steps} steps{of_all} of {}", r.batch_size);
    crate::note!("AdamW        learning rate {}, {} steps of warm-up", r.learning_rate, r.warmup);
    crate::note!("             betas {} {}, weight decay {}", r.beta1, r.beta2, r.weight_decay);
    if let Some(norm) = r.gradient_clip {
        crate::note!("             gradients clipped to a norm of {norm}");
    }
    let kept = match r.batch_size.div_ceil(capacity.samples) {
        1 => String::new(),
        parts if capacity.kept >= parts => ", all kept for their gradients".to_string(),
        parts => format!(", {} of {parts} kept for their gradients, the others computed again", capacity.kept),
    };
    crate::note!("micro-batch  {}{kept}", capacity.samples);
    let per_second = USUAL_SHARE * peak / (3.0 * plan.model.flops(USUAL_TOKENS));
    crate::note!("device       {}, {:.0} GFLOP/s in matrix products just now", plan.device, peak / 1e9);
    if !matches!(plan.device, Device::Emulated(_)) {
        let took = duration(samples as f64 / per_second);
        crate::note!("time         some {took} of training alone; --doctor measures, and decoding with it");
    }
    crate::note!("seed         {}", plan.seed);
}

fn print_ceilings(c: &Ceilings, plan: &Plan) {
    crate::note!("");
    crate::note!("each by itself, with all cores:");
    crate::note!("read         {:>8} samples/s", rate(c.read));
    crate::note!("decode       {:>8} samples/s", rate(c.decode));
    crate::note!(
        "train        {:>8} samples/s, {:.0} GFLOP/s in matrix products, {:.0}% of {:.0}",
        rate(c.compute),
        c.flops / 1e9,
        100.0 * c.flops / c.peak_flops,
        c.peak_flops / 1e9
    );
    // Decoding and training share the cores, where there is no GPU; reading waits for the disk beside them.
    let together = match plan.device {
        Device::Cuda(..) => c.decode.min(c.compute),
        _ => 1.0 / (1.0 / c.decode + 1.0 / c.compute),
    };
    let both = together.min(c.read);
    let samples = plan.steps() * plan.recipe.batch_size as u64;
    crate::note!("together     {:>8} samples/s: {} for {samples} samples", rate(both), duration(samples as f64 / both));
    let (what, advice) = match c {
        _ if c.read < together => ("reading binds", "a faster disk, a pool on this machine, or --shuffle blocks:256"),
        _ if c.decode < 0.7 * c.compute => ("decoding binds", "more cores, or smaller pictures in the pool"),
        _ if c.compute < 0.7 * c.decode => ("training binds", "more cores, or a smaller model"),
        _ => ("decoding and training take the cores alike, and both bind", "more cores"),
    };
    crate::note!("{what}: {advice}");
}

pub(crate) fn record(output: &Path, run: &Run) -> RunRecord {
    RunRecord {
        run: absolute(&output.display().to_string()),
        filter: run.receipt.filter.clone(),
        subset_size: run.receipt.subset_size as i64,
        subset_sha256: run.receipt.subset_sha256.clone(),
        pool_version: run.receipt.pool_version as i64,
        scale: run.scale.clone(),
        on_recipe: run.on_recipe,
        seed: run.seed as i64,
        steps: run.steps as i64,
        batch_size: run.recipe.batch_size as i64,
        samples_seen: run.samples_seen as i64,
        loss: f64::from(run.loss),
        seconds: run.seconds,
        receipt: serde_json::to_string(&run.receipt).expect("a receipt is plain data"),
    }
}
