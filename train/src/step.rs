//! One training step, whole on this page.

use std::ops::Range;

use crate::backend::{AdamW, AdamWState, Backend, Span};
use crate::model::{Model, Tokens};
use crate::parameters::part;
use crate::recipe::Recipe;

/// A model with its optimizer's state and the features of a whole batch.
pub struct Trainer<B> {
    pub model: Model<B>,
    pub recipe: Recipe,
    /// Steps done.
    pub step: u64,
    grads: Span,
    m: Span,
    v: Span,
    images: Features,
    texts: Features,
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
#[derive(Debug, Clone, Copy)]
pub struct Report {
    pub loss: f32,
    pub learning_rate: f32,
    /// After the step.
    pub logit_scale: f32,
}

impl Features {
    fn new(b: &mut impl Backend, batch: usize, embed_dim: usize) -> Features {
        let [raw, normalized, d_raw, d_normalized] = [(); 4].map(|()| b.alloc(batch * embed_dim));
        Features { raw, normalized, norms: b.alloc(batch), d_raw, d_normalized }
    }
}

impl<B: Backend> Trainer<B> {
    pub fn new(mut model: Model<B>, recipe: Recipe) -> Trainer<B> {
        let (n, embed_dim) = (recipe.batch_size, model.config.embed_dim);
        let b = &mut model.backend;
        let len = model.parameters.len;
        let (grads, m, v) = (b.alloc(len), b.alloc(len), b.alloc(len));
        let (images, texts) = (Features::new(b, n, embed_dim), Features::new(b, n, embed_dim));
        Trainer { model, recipe, step: 0, grads, m, v, images, texts }
    }

    /// One AdamW step on a batch of `captions.len()` samples; `pixels` gives a range of them as `[n, 3, size, size]`.
    ///
    /// The loss sees the whole batch whatever the micro-batch: all features first, then each micro-batch forward
    /// again and backward with its rows of the loss's gradient. The last one's activations are still there, so that a
    /// batch of one micro-batch is computed once.
    pub fn step(&mut self, captions: &[Vec<u32>], pixels: impl Fn(Range<usize>) -> Vec<f32>) -> Report {
        let batch = captions.len();
        let micro_batches: Vec<Range<usize>> =
            (0..batch).step_by(self.model.micro_batch()).map(|i| i..(i + self.model.micro_batch()).min(batch)).collect();
        let tokens = |range: &Range<usize>| Tokens::new(&captions[range.clone()].iter().map(Vec::as_slice).collect::<Vec<_>>());

        for range in &micro_batches {
            self.forward(range, &pixels, &tokens(range));
        }
        let (loss, d_logit_scale) = self.loss(batch);
        self.model.backend.zero(self.grads);
        let scale_grad = part(self.grads, &self.model.parameters.logit_scale);
        self.model.backend.write(scale_grad, &[d_logit_scale]);
        for (i, range) in micro_batches.iter().enumerate().rev() {
            let tokens = tokens(range);
            if i + 1 < micro_batches.len() {
                self.forward(range, &pixels, &tokens);
            }
            let (d_images, d_texts) = (self.rows(self.images.d_raw, range), self.rows(self.texts.d_raw, range));
            self.model.encode_images_backward(self.grads, d_images);
            self.model.encode_texts_backward(self.grads, d_texts, &tokens);
        }
        let learning_rate = self.recipe.learning_rate_at(self.step);
        self.update(learning_rate);
        Report { loss, learning_rate, logit_scale: self.model.logit_scale() }
    }

    fn forward(&mut self, range: &Range<usize>, pixels: &impl Fn(Range<usize>) -> Vec<f32>, tokens: &Tokens) {
        let (images, texts) = (self.rows(self.images.raw, range), self.rows(self.texts.raw, range));
        self.model.encode_images(images, &pixels(range.clone()));
        self.model.encode_texts(texts, tokens);
    }

    /// The loss over all features, and the gradient of each tower's output in `d_raw`.
    fn loss(&mut self, batch: usize) -> (f32, f32) {
        let (all, scale) = (0..batch, self.model.logit_scale());
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
        let result = b.contrastive_loss(images.d_normalized, texts.d_normalized, images.normalized, texts.normalized, batch, scale);
        b.normalize_backward(images.d_raw, images.d_normalized, images.normalized, images.norms);
        b.normalize_backward(texts.d_raw, texts.d_normalized, texts.normalized, texts.norms);
        result
    }

    /// AdamW, then the logit scale clamped to [0, ln 100].
    fn update(&mut self, learning_rate: f32) {
        let Recipe { beta1, beta2, eps, weight_decay, .. } = self.recipe;
        self.step += 1;
        let hyper = AdamW { learning_rate, beta1, beta2, eps, weight_decay, step: self.step };
        let state = AdamWState { params: self.model.values, grads: self.grads, m: self.m, v: self.v };
        let decayed = self.model.parameters.decayed();
        let b = &mut self.model.backend;
        b.adamw(state, &decayed, hyper);
        let scale = part(self.model.values, &self.model.parameters.logit_scale);
        let clamped = b.read(scale)[0].clamp(0.0, 100f32.ln());
        b.write(scale, &[clamped]);
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
}
