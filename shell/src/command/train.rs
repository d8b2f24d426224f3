use std::path::Path;
use std::sync::Arc;

use engine::Filter;
use storage::records::{self, Run as RunRecord};
use storage::{Pool, Receipt, Samples, Subset};
use tokio::runtime::Runtime;
use train::{ModelConfig, Plan, Recipe, Run};

use super::session::session;
use super::{absolute, block_on, open};
use crate::cli;
use crate::progress::Meter;
use crate::{Error, Result, STOP};

pub(crate) fn run(args: cli::Train, runtime: &Runtime) -> Result<()> {
    let plan = plan(&args)?;
    let (samples, missing, receipt) = block_on(runtime, async {
        let pool = open(&args.pool, args.at.as_deref()).await?;
        let (subset, receipt) = select(&args, &pool).await?;
        let (samples, missing) = Samples::of_subset(&pool, &subset).await?;
        Ok::<_, Error>((samples, missing, receipt))
    })?;
    if missing.not_in_pool + missing.no_image > 0 {
        crate::note!(
            "of {} uids selected {} can be drawn: {} are not in the pool, {} have no image",
            receipt.subset_size,
            samples.len(),
            missing.not_in_pool,
            missing.no_image
        );
    }
    print_plan(&plan, &receipt, samples.len());
    let report_every = (plan.max_steps.unwrap_or(u64::MAX).min(plan.recipe.steps()) / 12).max(1);
    let on_step = |r: train::StepReport| {
        if r.step == 1 || r.step == r.steps || r.step.is_multiple_of(report_every) {
            crate::note!(
                "step {:>6}/{} | loss {:.4} | learning rate {:.2e} | logit scale {:.2} | {:.0} samples/s | data wait {:.0}%",
                r.step,
                r.steps,
                r.loss,
                r.learning_rate,
                r.logit_scale,
                r.samples_per_second,
                100.0 * r.data_wait
            );
        }
    };
    let run = {
        let _inside = runtime.enter();
        train::train(samples, missing, receipt, &plan, &args.output, &STOP, &on_step)?
    };
    // Short, and the run is there already: not for Ctrl-C to part.
    let pool = runtime.block_on(Pool::open(&args.pool))?;
    runtime.block_on(records::write_run(&pool, &record(&args.output, &run)))?;
    if run.unreadable > 0 {
        crate::note!("{} draws were replaced because their image could not be read", run.unreadable);
    }
    crate::note!(
        "trained on {} samples seen in {:.1} s ({:.0} samples/s), loss {:.4}: {}",
        run.samples_seen,
        run.seconds,
        run.samples_per_second,
        run.loss,
        args.output.display()
    );
    Ok(())
}

fn plan(args: &cli::Train) -> Result<Plan> {
    let named = Recipe::named(&args.scale)?;
    let recipe = Recipe {
        samples_seen: args.samples_seen.unwrap_or(named.samples_seen),
        batch_size: args.batch_size.unwrap_or(named.batch_size),
        learning_rate: args.learning_rate.unwrap_or(named.learning_rate),
        ..named
    };
    if !(recipe.learning_rate > 0.0 && recipe.learning_rate.is_finite()) {
        let message = format!("the learning rate must be a number above 0, got {}", recipe.learning_rate);
        return Err(Error::Usage { message, hint: "for instance: --learning-rate 5e-4" });
    }
    let model = ModelConfig::named(&recipe.model).expect("recipes name known models");
    let pool = absolute(&args.pool);
    Ok(Plan { pool, recipe, model, seed: args.seed, micro_batch: args.micro_batch, max_steps: args.max_steps })
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

fn print_plan(plan: &Plan, receipt: &Receipt, drawable: usize) {
    let r = &plan.recipe;
    let parameters = train::parameters::Parameters::new(&plan.model).len;
    let off = if r.is_on_recipe() && plan.max_steps.is_none() { "" } else { " (off recipe)" };
    crate::note!("scale        {}{off}", r.scale);
    crate::note!("model        {}, {:.1} M parameters", r.model, parameters as f64 / 1e6);
    crate::note!("subset       {}, {} samples, {drawable} to draw from", receipt.filter, receipt.subset_size);
    crate::note!("samples seen {} in {} steps of {}", r.samples_seen, r.steps(), r.batch_size);
    crate::note!(
        "AdamW        learning rate {}, {} steps of warm-up, betas {} {}, weight decay {}",
        r.learning_rate,
        r.warmup,
        r.beta1,
        r.beta2,
        r.weight_decay
    );
    crate::note!("seed         {}", plan.seed);
}

fn record(output: &Path, run: &Run) -> RunRecord {
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
