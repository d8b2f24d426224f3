//! What the processes of a group tell each other of a run.

use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use storage::Samples;

use super::Training;
use crate::checkpoint::{f32_bytes, floats};
use crate::group::Group;
use crate::loader::Batch;
use crate::parameters::Parameters;
use crate::plan::Plan;
use crate::saved::{Seen, State};
use crate::{Error, Result};

/// What the first process of a group tells the others before the first step.
#[derive(Serialize, Deserialize)]
struct Start {
    /// Where the run stands, none if it cannot be.
    state: Option<State>,
    steps: u64,
    failed: String,
}

/// What a process of a group tells the others of its part of a batch.
#[derive(Default, Serialize, Deserialize)]
struct Part {
    /// Why it goes no further.
    stopped: Option<String>,
    which: Vec<u32>,
    draws_replaced: u64,
    unreadable: Vec<(String, String)>,
}

/// Tells the others why there will be no run.
pub(super) fn decline(group: &mut Group, why: &Error) -> Result<()> {
    if group.world() > 1 {
        let start = Start { state: None, steps: 0, failed: why.to_string() };
        group.broadcast(serde_json::to_vec(&start).expect("plain data"))?;
    }
    Ok(())
}

impl<'a> Training<'a> {
    /// Tells the others where the run stands.
    pub(super) fn invite(&mut self, moments: Option<[Vec<f32>; 2]>) -> Result<()> {
        if self.trainer.group.world() == 1 {
            return Ok(());
        }
        let start = Start { state: Some(self.state.clone()), steps: self.plan.steps(), failed: String::new() };
        self.trainer.group.broadcast(serde_json::to_vec(&start).expect("a state is plain data"))?;
        if let Some([m, v]) = moments {
            let values = self.trainer.values(0..self.trainer.model.parameters.len);
            for part in [&values, &m, &v] {
                self.trainer.group.broadcast(f32_bytes(part).to_vec())?;
            }
        }
        Ok(())
    }

    /// A process that is not the first: it takes from that where the run stands.
    pub(super) fn join(samples: Samples, plan: &'a Plan, mut group: Group, out: &'a Path) -> Result<Training<'a>> {
        let capacity = plan.capacity()?;
        let Start { state, steps, failed } = serde_json::from_slice(&group.broadcast(Vec::new())?).map_err(|e| group.broken(e))?;
        let Some(state) = state else { return Err(Error::Group { rank: group.rank(), reason: format!("process 0: {failed}") }) };
        plan.about(&samples).check(&state.about, out)?;
        if steps != plan.steps() {
            let (saved, given) = (steps.to_string(), plan.steps().to_string());
            return Err(Error::Resume { path: out.to_path_buf(), what: "steps".into(), saved, given });
        }
        let mut values = Parameters::new(&plan.model).draw(plan.seed);
        let mut moments = None;
        if state.step > 0 {
            let mut next = || Ok::<_, Error>(floats(&group.broadcast(Vec::new())?));
            values = next()?;
            moments = Some([next()?, next()?]);
        }
        let mut trainer = plan.trainer(&values, capacity)?;
        if let Some([m, v]) = &moments {
            trainer.resume(state.step, [m, v]);
        }
        trainer.group = group;
        trainer.meet()?;
        let (saved, seconds_before) = (state.step, state.seconds);
        let (seen, first, start) = (Seen::default(), Vec::new(), Instant::now());
        Ok(Training { plan, out, files: None, samples, trainer, state, saved, seen, first, start, seconds_before })
    }

    /// A batch with what all processes' parts hold, in the order of their samples; none where one of them is to stop.
    pub(super) fn share(&mut self, batch: Result<Option<Batch>>) -> Result<Option<Batch>> {
        if self.trainer.group.world() == 1 {
            return batch;
        }
        let mut batch = batch;
        let part = match &mut batch {
            Ok(Some(batch)) => Part {
                stopped: None,
                which: std::mem::take(&mut batch.which),
                draws_replaced: batch.draws_replaced,
                unreadable: batch.unreadable.drain(..).map(|(uid, reason)| (uid.to_string(), reason)).collect(),
            },
            Ok(None) => Part { stopped: Some(String::new()), ..Part::default() },
            Err(e) => Part { stopped: Some(e.to_string()), ..Part::default() },
        };
        let parts = self.trainer.group.gather(&serde_json::to_vec(&part).expect("plain data"))?;
        let mut of_all = Part::default();
        for (rank, part) in parts.into_iter().enumerate() {
            let part: Part = serde_json::from_slice(&part).map_err(|e| self.trainer.group.broken(e))?;
            of_all.stopped = of_all.stopped.or(part.stopped.map(|why| if why.is_empty() { why } else { format!("process {rank}: {why}") }));
            of_all.which.extend(part.which);
            of_all.draws_replaced += part.draws_replaced;
            of_all.unreadable.extend(part.unreadable);
        }
        let batch = batch?;
        match of_all.stopped {
            None => {}
            Some(why) if why.is_empty() => return Ok(None),
            Some(reason) => return Err(Error::Group { rank: self.trainer.group.rank(), reason }),
        }
        Ok(batch.map(|batch| Batch {
            which: of_all.which,
            draws_replaced: of_all.draws_replaced,
            unreadable: of_all.unreadable.into_iter().filter_map(|(uid, reason)| Some((uid.parse().ok()?, reason))).collect(),
            ..batch
        }))
    }
}
