//! One training step, whole on this page.

use std::ops::Range;

use crate::backend::{AdamW, AdamWState, Backend, LossGrads, Pixels, Span};
use crate::group::Group;
use crate::model::{Model, Tokens};
use crate::parameters::part;
use crate::recipe::Recipe;
use crate::{Error, Result};

/// What a process says to the others where its backend has failed.
const FAILED: u8 = 2;

/// A model with its optimizer's state and the features of a whole batch.
pub struct Trainer {
    pub model: Model,
    pub recipe: Recipe,
    /// Steps done.
    pub step: u64,
    grads: Span,
    m: Span,
    v: Span,
    images: Features,
    texts: Features,
    losses: Span,
    /// d loss / d ln_scale, of processes that do not count it.
    uncounted: Span,
    /// The processes that share each batch.
    pub group: Group,
    /// The backends have a way of their own.
    joined: bool,
}

/// `[batch, E]` each: what a tower gave, normalised, and the gradients of both.
#[derive(Clone, Copy)]
struct Features {
    raw: Span,
    normalized: Span,
    norms: Span,
    d_raw: Span,
    d_normalized: Span,
}

/// The figures of one step.
#[derive(Debug, Clone)]
pub struct Report {
    pub loss: f32,
    /// Each sample's part of the loss, their mean.
    pub losses: Vec<f32>,
    pub learning_rate: f32,
    /// After the step.
    pub logit_scale: f32,
    /// Of all gradients together, before clipping; measured only where they are clipped.
    pub gradient_norm: Option<f32>,
}

impl Features {
    fn new(b: &mut dyn Backend, batch: usize, embed_dim: usize) -> Features {
        let [raw, normalized, d_raw, d_normalized] = [(); 4].map(|()| b.alloc(batch * embed_dim));
        Features { raw, normalized, norms: b.alloc(batch), d_raw, d_normalized }
    }
}

impl Trainer {
    pub fn new(mut model: Model, recipe: Recipe) -> Result<Trainer> {
        let (n, embed_dim) = (recipe.batch_size, model.config.embed_dim);
        let b = model.backend.as_mut();
        let len = model.parameters.len;
        let (grads, m, v) = (b.alloc(len), b.alloc(len), b.alloc(len));
        let (images, texts) = (Features::new(b, n, embed_dim), Features::new(b, n, embed_dim));
        let (losses, uncounted) = (b.alloc(n), b.alloc(1));
        b.check()?;
        Ok(Trainer { model, recipe, step: 0, grads, m, v, images, texts, losses, uncounted, group: Group::alone(), joined: false })
    }

    /// Looks whether all processes of the group compute alike, and lets their backends meet, where all have a place for it.
    /// All processes call it at once.
    pub fn meet(&mut self) -> Result<()> {
        let (rank, world) = (self.group.rank(), self.group.world());
        if world == 1 {
            return Ok(());
        }
        let kind = self.model.backend.kind();
        let kinds = self.group.gather(kind.as_bytes())?;
        if let Some(other) = kinds.iter().position(|other| other != kind.as_bytes()) {
            let theirs = String::from_utf8_lossy(&kinds[other]);
            let reason =
                format!("this process computes on {kind}, process {other} on {theirs}: give all the same --device and --precision");
            return Err(Error::Group { rank, reason });
        }
        let points = self.group.gather(&self.model.backend.meeting_point()?.unwrap_or_default())?;
        if points.iter().all(|point| !point.is_empty()) {
            self.model.backend.meet(&points[0], rank, world)?;
            self.joined = true;
        }
        Ok(())
    }

    /// Whether all processes go on: none is to stop, and none has failed.
    fn all_go_on(&mut self, goes_on: bool) -> Result<bool> {
        let own = self.model.backend.check();
        if self.group.world() == 1 {
            return own.map(|()| goes_on);
        }
        let status = if own.is_err() { FAILED } else { u8::from(goes_on) };
        let all = self.group.gather(&[status])?;
        own?;
        match all.iter().position(|status| status == &[FAILED]) {
            Some(other) => Err(Error::Group { rank: self.group.rank(), reason: format!("process {other} failed") }),
            None => Ok(all.iter().all(|status| status == &[1])),
        }
    }

    /// One AdamW step on a batch of which this process has `captions.len()` samples, as many as each of the group;
    /// `pixels` gives a range of them.
    /// `goes_on` is asked after each part of the work, with the share that is done: where it says no, there is no
    /// report and nothing has changed.
    ///
    /// The loss sees the whole batch whatever the micro-batch: all features first, then each micro-batch backward with
    /// its rows of the loss's gradient. The last micro-batches' activations are still there, as many as the model
    /// keeps; the others are computed again. (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size".)
    /// Processes gather their features before the loss, which each computes whole, and sum their gradients. They stop
    /// together, before one of these exchanges; an error only where one of them fails or goes away.
    pub fn step<'a>(
        &mut self,
        captions: &[Vec<u32>],
        pixels: impl Fn(Range<usize>) -> Pixels<'a>,
        goes_on: &dyn Fn(f64) -> bool,
    ) -> Result<Option<Report>> {
        let (mine, world) = (captions.len(), self.group.world());
        let (batch, before) = (mine * world, mine * self.group.rank());
        let of_batch = |range: &Range<usize>| before + range.start..before + range.end;
        let lengths: Vec<usize> = captions.iter().map(Vec::len).collect();
        let micro_batches = self.model.micro_batches(&lengths);
        let not_kept = micro_batches.len().saturating_sub(self.model.capacity().kept);
        let tokens = |range: &Range<usize>| Tokens::new(&captions[range.clone()], &self.model.config.text_cfg);
        let tokens: Vec<Tokens> = micro_batches.iter().map(tokens).collect();

        let mut going = true;
        for (i, range) in micro_batches.iter().enumerate() {
            self.forward(i.saturating_sub(not_kept), range, of_batch(range), &pixels, &tokens[i]);
            if !goes_on(range.end as f64 / (3 * mine) as f64) {
                going = false;
                break;
            }
        }
        if !self.all_go_on(going)? {
            return Ok(None);
        }
        if world > 1 {
            self.gather(self.images.raw, of_batch(&(0..mine)))?;
            self.gather(self.texts.raw, of_batch(&(0..mine)))?;
        }
        self.model.backend.zero(self.grads);
        self.loss(batch);
        for (i, range) in micro_batches.iter().enumerate().rev() {
            let slot = i.saturating_sub(not_kept);
            if i < not_kept {
                self.forward(slot, range, of_batch(range), &pixels, &tokens[i]);
            }
            let rows = of_batch(range);
            let (d_images, d_texts) = (self.rows(self.images.d_raw, &rows), self.rows(self.texts.d_raw, &rows));
            self.model.encode_images_backward(slot, self.grads, d_images);
            self.model.encode_texts_backward(slot, self.grads, d_texts, &tokens[i]);
            if !goes_on(1.0 - range.start as f64 / (1.5 * mine as f64)) {
                going = false;
                break;
            }
        }
        if !self.all_go_on(going)? {
            return Ok(None);
        }
        if self.joined {
            self.model.backend.all_reduce(self.grads);
        } else if world > 1 {
            let mut grads = self.model.backend.read(self.grads);
            self.model.backend.check()?;
            self.group.sum(&mut grads)?;
            self.model.backend.write(self.grads, &grads);
        }
        let learning_rate = self.recipe.learning_rate_at(self.step);
        let gradient_norm = self.update(learning_rate);
        let losses = self.model.backend.read(self.losses.first(batch));
        self.model.backend.check()?;
        let loss = (losses.iter().map(|&loss| f64::from(loss)).sum::<f64>() / batch as f64) as f32;
        Ok(Some(Report { loss, losses, learning_rate, logit_scale: self.model.logit_scale(), gradient_norm }))
    }

    /// The features of this process's samples `range`, into `rows` of the batch.
    fn forward<'a>(
        &mut self,
        slot: usize,
        range: &Range<usize>,
        rows: Range<usize>,
        pixels: &impl Fn(Range<usize>) -> Pixels<'a>,
        tokens: &Tokens,
    ) {
        let (images, texts) = (self.rows(self.images.raw, &rows), self.rows(self.texts.raw, &rows));
        self.model.encode_images(slot, images, pixels(range.clone()));
        self.model.encode_texts(slot, texts, tokens);
    }

    /// All processes' features, each having `mine` of them.
    fn gather(&mut self, features: Span, mine: Range<usize>) -> Result<()> {
        if self.joined {
            let world = self.group.world();
            self.model.backend.all_gather(self.rows(features, &(0..mine.len() * world)), world);
            return Ok(());
        }
        let own = self.model.backend.read(self.rows(features, &mine));
        self.model.backend.check()?;
        let all = self.group.gather_values(&own)?;
        self.model.backend.write(features.first(all.len()), &all);
        Ok(())
    }

    /// The loss over all features, and the gradient of each tower's output in `d_raw`.
    fn loss(&mut self, batch: usize) {
        let all = 0..batch;
        let ln_scale = part(self.model.values, &self.model.parameters.logit_scale);
        // The gradients of all processes are summed: one of them counts what all have.
        let d_ln_scale = if self.group.rank() == 0 { part(self.grads, &self.model.parameters.logit_scale) } else { self.uncounted };
        let [images, texts] = [self.images, self.texts].map(|f| Features {
            raw: self.rows(f.raw, &all),
            normalized: self.rows(f.normalized, &all),
            norms: f.norms.first(batch),
            d_raw: self.rows(f.d_raw, &all),
            d_normalized: self.rows(f.d_normalized, &all),
        });
        let b = &mut self.model.backend;
        b.normalize(images.normalized, images.norms, images.raw);
        b.normalize(texts.normalized, texts.norms, texts.raw);
        let to = LossGrads { d_images: images.d_normalized, d_texts: texts.d_normalized, d_ln_scale };
        b.contrastive_loss(to, self.losses.first(batch), images.normalized, texts.normalized, ln_scale);
        b.normalize_backward(images.d_raw, images.d_normalized, images.normalized, images.norms);
        b.normalize_backward(texts.d_raw, texts.d_normalized, texts.normalized, texts.norms);
    }

    /// Gradients clipped where the recipe says so, AdamW, then the logit scale clamped to [0, ln 100].
    fn update(&mut self, learning_rate: f32) -> Option<f32> {
        let Recipe { beta1, beta2, eps, weight_decay, gradient_clip, .. } = self.recipe;
        self.step += 1;
        let decayed = self.model.parameters.decayed();
        let b = &mut self.model.backend;
        let norm = gradient_clip.map(|_| b.square_sum(self.grads).sqrt() as f32);
        // As PyTorch's `clip_grad_norm_`.
        let gradient_scale = norm.zip(gradient_clip).map_or(1.0, |(norm, limit)| (limit / (norm + 1e-6)).min(1.0));
        let hyper = AdamW { learning_rate, beta1, beta2, eps, weight_decay, step: self.step, gradient_scale };
        let state = AdamWState { params: self.model.values, grads: self.grads, m: self.m, v: self.v };
        b.adamw(state, &decayed, hyper);
        b.clamp(part(self.model.values, &self.model.parameters.logit_scale), 0.0, 100f32.ln());
        norm
    }

    /// Rows `range` of `[batch, E]`.
    fn rows(&self, features: Span, range: &Range<usize>) -> Span {
        let width = self.model.config.embed_dim;
        features.at(range.start * width, range.len() * width)
    }

    /// The gradients of the last step, `[parameters.len]`.
    pub fn gradients(&self) -> Vec<f32> {
        self.model.backend.read(self.grads)
    }

    /// Parameters' values, a part of `[parameters.len]`.
    pub fn values(&self, range: Range<usize>) -> Vec<f32> {
        self.model.backend.read(part(self.model.values, &range))
    }

    /// The optimizer's first (0) or second (1) moment, of the same part.
    pub fn moment(&self, which: usize, range: Range<usize>) -> Vec<f32> {
        self.model.backend.read(part([self.m, self.v][which], &range))
    }

    /// Goes on after `step` steps, with their moments; the model has their values already.
    pub fn resume(&mut self, step: u64, moments: [&[f32]; 2]) {
        self.step = step;
        self.model.backend.write(self.m, moments[0]);
        self.model.backend.write(self.v, moments[1]);
    }
}
