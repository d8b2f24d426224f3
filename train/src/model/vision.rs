use super::block::{Shape, layer_norm, layer_norm_backward, weight_backward};
use super::tower::{Arenas, Capacity, Input, Tower, TowerParameters, Workspace};
use crate::backend::{Attention, Backend, Epilogue, Gemm, Pixels, Span};
use crate::config::ModelConfig;
use crate::parameters::{Parameters, part};

/// Activations of the image tower for one micro-batch. Each image is a sequence: the class token, then the patches.
pub struct VisionTower {
    patches: Span,
    embedded: Span,
    tokens: Span,
    ln_pre: Span,
    ln_pre_stats: Span,
    tower: Tower,
    /// Where the sequences of up to a whole micro-batch start; each one's class token is pooled.
    starts: Vec<usize>,
}

pub fn capacity(config: &ModelConfig, batch: usize) -> Capacity {
    let vision = &config.vision_cfg;
    Capacity {
        batch,
        rows: batch * vision.tokens(),
        width: vision.width,
        hidden: vision.hidden(),
        heads: vision.heads(),
        layers: vision.layers,
    }
}

/// Values that the tower keeps besides its blocks, for one image.
pub fn embedding_values(config: &ModelConfig) -> usize {
    let vision = &config.vision_cfg;
    vision.patches() * 3 * vision.patch_size.pow(2) + 3 * vision.tokens() * (vision.width + 1)
}

fn tower_parameters(p: &Parameters) -> TowerParameters<'_> {
    TowerParameters { blocks: &p.vision_blocks, ln: &p.ln_post, projection: &p.vision_proj }
}

impl VisionTower {
    pub fn new(b: &mut dyn Backend, config: &ModelConfig, batch: usize, backward: bool) -> VisionTower {
        let vision = &config.vision_cfg;
        let (width, rows, patches) = (vision.width, batch * vision.tokens(), batch * vision.patches());
        VisionTower {
            patches: b.alloc_activations(patches * 3 * vision.patch_size.pow(2)),
            embedded: b.alloc_activations(patches * width),
            tokens: b.alloc_activations(rows * width),
            ln_pre: b.alloc_activations(if vision.no_ln_pre { 0 } else { rows * width }),
            ln_pre_stats: b.alloc(rows * 2),
            tower: Tower::new(b, capacity(config, batch), backward),
            starts: (0..=batch).map(|i| i * vision.tokens()).collect(),
        }
    }

    fn input<'a>(&'a self, config: &ModelConfig, batch: usize) -> Input<'a> {
        let vision = &config.vision_cfg;
        let starts = &self.starts[..=batch];
        let attention = Attention { starts, queries: None, heads: vision.heads(), head_width: vision.head_width, causal: false };
        let (hidden, eps) = (vision.hidden(), vision.eps());
        let shape = Shape { width: vision.width, hidden, activation: config.activation(), eps, attention };
        Input { shape, pooled: &starts[..batch] }
    }

    /// What the first block reads, `[rows, width]`.
    fn stream(&self, config: &ModelConfig, batch: usize) -> Span {
        let vision = &config.vision_cfg;
        let span = if vision.no_ln_pre { self.tokens } else { self.ln_pre };
        span.first(batch * vision.tokens() * vision.width)
    }

    /// `features[batch, E]` from the images' pixels.
    pub fn forward(&self, b: &mut dyn Backend, config: &ModelConfig, p: &Parameters, values: Span, features: Span, pixels: Pixels) {
        let vision = &config.vision_cfg;
        let batch = features.len / config.embed_dim;
        let (width, rows, patches) = (vision.width, batch * vision.tokens(), batch * vision.patches());
        let patch_len = 3 * vision.patch_size.pow(2);
        let patch_span = self.patches.first(patches * patch_len);
        b.patchify(patch_span, pixels, vision.image_size, vision.patch_size);
        let embedded = self.embedded.first(patches * width);
        b.gemm(Gemm {
            out: embedded,
            a: patch_span,
            b: part(values, &p.conv1),
            m: patches,
            n: width,
            k: patch_len,
            transpose_a: false,
            transpose_b: true,
            accumulate: false,
            epilogue: Epilogue::None,
        });
        let tokens = self.tokens.first(rows * width);
        b.embed_patches(tokens, embedded, part(values, &p.class_embedding), part(values, &p.vision_positions));
        let x = self.stream(config, batch);
        let input = self.input(config, batch);
        if let Some(ln_pre) = &p.ln_pre {
            layer_norm(b, values, ln_pre, x, self.ln_pre_stats.first(rows * 2), tokens, input.shape.eps);
        }
        self.tower.forward(b, values, &tower_parameters(p), x, input, features);
    }

    pub fn backward(&self, b: &mut dyn Backend, config: &ModelConfig, p: &Parameters, arenas: Arenas, w: &Workspace, dfeatures: Span) {
        let Arenas { values, grads } = arenas;
        let vision = &config.vision_cfg;
        let batch = dfeatures.len / config.embed_dim;
        let (width, rows, patches) = (vision.width, batch * vision.tokens(), batch * vision.patches());
        let x = self.stream(config, batch);
        let mut d = self.tower.backward(b, arenas, &tower_parameters(p), w, x, self.input(config, batch), dfeatures);
        if let Some(ln_pre) = &p.ln_pre {
            let dtokens = w.before.first(rows * width);
            b.zero(dtokens);
            let stats = self.ln_pre_stats.first(rows * 2);
            layer_norm_backward(b, values, grads, ln_pre, dtokens, d, self.tokens.first(rows * width), stats);
            d = dtokens;
        }
        // The patches' own values are not needed again, and pixels have no gradient.
        let dembedded = self.embedded.first(patches * width);
        b.embed_patches_backward(dembedded, part(grads, &p.class_embedding), part(grads, &p.vision_positions), d);
        let patch_len = 3 * vision.patch_size.pow(2);
        weight_backward(b, part(grads, &p.conv1), dembedded, self.patches.first(patches * patch_len), [width, patch_len, patches]);
    }
}
