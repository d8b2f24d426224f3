//! CLIP with explicit forward and backward, written once over `Backend`.
//!
//! Work is saved where the result stays the same: captions are packed without padding, the last block of a tower
//! works on the one token that is pooled, and pixels get no gradient.

mod block;
mod text;
mod tower;
mod vision;

use std::ops::Range;

use crate::Result;
use crate::backend::{Backend, Pixels, Span};
use crate::config::{ModelConfig, TextConfig};
use crate::parameters::{Parameters, part};

use text::TextTower;
use tower::{Arenas, Workspace};
use vision::VisionTower;

/// A model on a backend: parameters, and activations of micro-batches.
pub struct Model {
    pub backend: Box<dyn Backend>,
    pub config: ModelConfig,
    pub parameters: Parameters,
    pub values: Span,
    capacity: Capacity,
    slots: Vec<Slot>,
    /// `None` where nothing goes backward.
    workspace: Option<Workspace>,
}

/// The activations of one micro-batch.
struct Slot {
    vision: VisionTower,
    text: TextTower,
}

/// How much a model holds at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Samples of a micro-batch.
    pub samples: usize,
    /// Tokens of a micro-batch's captions, at least the context length.
    pub tokens: usize,
    /// Micro-batches whose activations are kept for their backward; 0 for a model that only encodes.
    pub kept: usize,
}

/// Captions packed one after another: with causal attention nothing behind a caption's end can reach its feature.
#[derive(Debug, Clone, PartialEq)]
pub struct Tokens {
    pub ids: Vec<u32>,
    /// Caption i has rows `starts[i]..starts[i + 1]`.
    pub starts: Vec<usize>,
    /// The row of each caption's end token.
    pub ends: Vec<usize>,
}

impl Tokens {
    /// From captions' ids with start and end, of different lengths; what is behind the end is left out, or padded where
    /// the text tower sees all tokens.
    pub fn new<C: AsRef<[u32]>>(captions: &[C], text: &TextConfig) -> Tokens {
        let mut tokens = Tokens { ids: Vec::new(), starts: vec![0], ends: Vec::new() };
        for caption in captions.iter().map(AsRef::as_ref) {
            let start = tokens.ids.len();
            // As open_clip's argmax: a caption may spell an end token before its own.
            let largest = caption.iter().max().copied().unwrap_or_default();
            let end = caption.iter().position(|id| *id == largest).unwrap_or_default();
            let length = if text.no_causal_mask { text.context_length } else { end + 1 };
            tokens.ids.extend_from_slice(&caption[..caption.len().min(length)]);
            tokens.ids.resize(start + length, 0);
            tokens.ends.push(start + end);
            tokens.starts.push(tokens.ids.len());
        }
        tokens
    }
}

impl Capacity {
    /// Values that the activations of one micro-batch have.
    pub fn values(&self, config: &ModelConfig) -> usize {
        let towers = vision::capacity(config, self.samples).values() + text::capacity(config, self.samples, self.tokens).values();
        towers + self.samples * vision::embedding_values(config) + self.tokens * config.text_cfg.width
    }

    /// Values that all micro-batches share: gradients of activations.
    pub fn workspace(&self, config: &ModelConfig) -> usize {
        Workspace::values([vision::capacity(config, self.samples), text::capacity(config, self.samples, self.tokens)])
    }

    /// Room for `samples` whose captions have `per_caption` tokens on average.
    pub fn of(config: &ModelConfig, samples: usize, per_caption: usize, kept: usize) -> Capacity {
        let context = config.text_cfg.context_length;
        let per_caption = if config.text_cfg.no_causal_mask { context } else { per_caption.min(context) };
        Capacity { samples, tokens: (samples * per_caption).max(context), kept }
    }
}

impl Model {
    /// With `values` for all parameters, `[parameters.len]`. An error where the backend has no room.
    pub fn new(mut backend: Box<dyn Backend>, config: &ModelConfig, values: &[f32], capacity: Capacity) -> Result<Model> {
        let parameters = Parameters::new(config);
        let b = backend.as_mut();
        let arena = b.alloc_parameters(parameters.len);
        b.write(arena, values);
        let Capacity { samples, tokens, kept } = capacity;
        let train = kept > 0;
        let slots = (0..kept.max(1))
            .map(|_| Slot { vision: VisionTower::new(b, config, samples, train), text: TextTower::new(b, config, samples, tokens, train) })
            .collect();
        let towers = [vision::capacity(config, samples), text::capacity(config, samples, tokens)];
        let workspace = train.then(|| Workspace::new(b, towers));
        b.check()?;
        Ok(Model { backend, config: config.clone(), parameters, values: arena, capacity, slots, workspace })
    }

    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Consecutive ranges of captions of these lengths that each fit in a micro-batch.
    pub fn micro_batches(&self, lengths: &[usize]) -> Vec<Range<usize>> {
        let mut ranges = Vec::new();
        let (mut start, mut tokens) = (0, 0);
        for (i, &length) in lengths.iter().enumerate() {
            let length = if self.config.text_cfg.no_causal_mask { self.config.text_cfg.context_length } else { length };
            if i - start == self.capacity.samples || tokens + length > self.capacity.tokens {
                ranges.push(start..i);
                (start, tokens) = (i, 0);
            }
            tokens += length;
        }
        if start < lengths.len() {
            ranges.push(start..lengths.len());
        }
        ranges
    }

    /// `features[B, E]`, not normalised. The activations stay in `slot`.
    pub fn encode_images(&mut self, slot: usize, features: Span, pixels: Pixels) {
        self.slots[slot].vision.forward(self.backend.as_mut(), &self.config, &self.parameters, self.values, features, pixels);
    }

    /// `features[B, E]`, not normalised. The activations stay in `slot`.
    pub fn encode_texts(&mut self, slot: usize, features: Span, tokens: &Tokens) {
        self.slots[slot].text.forward(self.backend.as_mut(), &self.config, &self.parameters, self.values, features, tokens);
    }

    /// Adds to `grads` what `dfeatures[B, E]` gives, by the activations in `slot`.
    pub fn encode_images_backward(&mut self, slot: usize, grads: Span, dfeatures: Span) {
        let workspace = self.workspace.as_ref().expect("a model that trains");
        let arenas = Arenas { values: self.values, grads };
        self.slots[slot].vision.backward(self.backend.as_mut(), &self.config, &self.parameters, arenas, workspace, dfeatures);
    }

    /// Adds to `grads` what `dfeatures[B, E]` gives, by the activations in `slot`.
    pub fn encode_texts_backward(&mut self, slot: usize, grads: Span, dfeatures: Span, tokens: &Tokens) {
        let workspace = self.workspace.as_ref().expect("a model that trains");
        let arenas = Arenas { values: self.values, grads };
        self.slots[slot].text.backward(self.backend.as_mut(), &self.config, &self.parameters, arenas, workspace, dfeatures, tokens);
    }

    /// The factor of the logits, exp of the parameter.
    pub fn logit_scale(&self) -> f32 {
        self.backend.read(part(self.values, &self.parameters.logit_scale))[0].exp()
    }
}
