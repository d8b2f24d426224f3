//! CLIP with explicit forward and backward, written once over `Backend`.
//!
//! Letters: B samples, T tokens, C width, E embed_dim. Activations are allocated once for a micro-batch and reused.

mod block;
mod text;
mod vision;

use crate::backend::{Backend, Span};
use crate::config::ModelConfig;
use crate::parameters::{Parameters, part};

use text::TextTower;
use vision::VisionTower;

/// A model on a backend: parameters, and activations for up to `micro_batch` samples.
pub struct Model<B> {
    pub backend: B,
    pub config: ModelConfig,
    pub parameters: Parameters,
    pub values: Span,
    micro_batch: usize,
    vision: VisionTower,
    text: TextTower,
}

/// Token ids of a batch, `[batch, tokens]`, cut to its longest caption: with causal attention nothing behind a
/// caption's end can reach its feature.
#[derive(Debug, Clone, PartialEq)]
pub struct Tokens {
    pub ids: Vec<u32>,
    pub tokens: usize,
    /// Where each caption ends: the row of its end token in `[batch * tokens]`.
    pub ends: Vec<usize>,
}

impl Tokens {
    /// From captions' ids with start and end, of different lengths.
    pub fn new(captions: &[&[u32]]) -> Tokens {
        let tokens = captions.iter().map(|c| c.len()).max().unwrap_or(1);
        let mut ids = vec![0; captions.len() * tokens];
        for (row, caption) in ids.chunks_exact_mut(tokens).zip(captions) {
            row[..caption.len()].copy_from_slice(caption);
        }
        let ends = captions.iter().enumerate().map(|(i, c)| i * tokens + c.len() - 1).collect();
        Tokens { ids, tokens, ends }
    }
}

impl<B: Backend> Model<B> {
    /// With `values` for all parameters, `[parameters.len]`.
    pub fn new(mut backend: B, config: &ModelConfig, values: &[f32], micro_batch: usize) -> Model<B> {
        let parameters = Parameters::new(config);
        let arena = backend.alloc(parameters.len);
        backend.write(arena, values);
        let vision = VisionTower::new(&mut backend, config, micro_batch);
        let text = TextTower::new(&mut backend, config, micro_batch);
        Model { backend, config: config.clone(), parameters, values: arena, micro_batch, vision, text }
    }

    pub fn micro_batch(&self) -> usize {
        self.micro_batch
    }

    /// `features[B, E]`, not normalised, from `pixels[B, 3, size, size]`, normalised.
    pub fn encode_images(&mut self, features: Span, pixels: &[f32]) {
        self.vision.forward(&mut self.backend, &self.config, &self.parameters, self.values, features, pixels);
    }

    /// `features[B, E]`, not normalised.
    pub fn encode_texts(&mut self, features: Span, tokens: &Tokens) {
        self.text.forward(&mut self.backend, &self.config, &self.parameters, self.values, features, tokens);
    }

    /// Adds to `grads` what `dfeatures[B, E]` gives; the activations are those of the last `encode_images`.
    pub fn encode_images_backward(&mut self, grads: Span, dfeatures: Span) {
        self.vision.backward(&mut self.backend, &self.config, &self.parameters, self.values, grads, dfeatures);
    }

    /// Adds to `grads` what `dfeatures[B, E]` gives; the activations are those of the last `encode_texts`.
    pub fn encode_texts_backward(&mut self, grads: Span, dfeatures: Span, tokens: &Tokens) {
        self.text.backward(&mut self.backend, &self.config, &self.parameters, self.values, grads, dfeatures, tokens);
    }

    /// The factor of the logits, exp of the parameter.
    pub fn logit_scale(&self) -> f32 {
        self.backend.read(part(self.values, &self.parameters.logit_scale))[0].exp()
    }
}
