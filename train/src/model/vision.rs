use super::block::{self, Activations, Scratch};
use crate::backend::{Attention, Backend, Gemm, Span};
use crate::config::{ModelConfig, VisionConfig};
use crate::parameters::{Parameters, part};

/// Activations of the image tower for up to B images. T = 1 + patches; the class token is first.
pub struct VisionTower {
    pixels: Span,
    patches: Span,
    embedded: Span,
    tokens: Span,
    ln_pre: Span,
    ln_pre_stats: Span,
    blocks: Vec<Activations>,
    pooled: Span,
    ln_post: Span,
    ln_post_stats: Span,
    gradient: Span,
    before: Span,
    pooled_gradient: [Span; 2],
    scratch: Scratch,
    batch: usize,
}

fn shape(vision: &VisionConfig, batch: usize) -> Attention {
    Attention { batch, tokens: vision.tokens(), heads: vision.heads(), head_width: vision.head_width, causal: false }
}

impl VisionTower {
    pub fn new(b: &mut impl Backend, config: &ModelConfig, batch: usize) -> VisionTower {
        let vision = &config.vision_cfg;
        let (width, rows, patches) = (vision.width, batch * vision.tokens(), batch * vision.patches());
        VisionTower {
            pixels: b.alloc(batch * 3 * vision.image_size.pow(2)),
            patches: b.alloc(patches * 3 * vision.patch_size.pow(2)),
            embedded: b.alloc(patches * width),
            tokens: b.alloc(rows * width),
            ln_pre: b.alloc(rows * width),
            ln_pre_stats: b.alloc(rows * 2),
            blocks: (0..vision.layers).map(|_| Activations::new(b, rows, width)).collect(),
            pooled: b.alloc(batch * width),
            ln_post: b.alloc(batch * width),
            ln_post_stats: b.alloc(batch * 2),
            gradient: b.alloc(rows * width),
            before: b.alloc(rows * width),
            pooled_gradient: [b.alloc(batch * width), b.alloc(batch * width)],
            scratch: Scratch::new(b, rows, width),
            batch: 0,
        }
    }

    pub fn forward<B: Backend>(&mut self, b: &mut B, config: &ModelConfig, p: &Parameters, values: Span, features: Span, pixels: &[f32]) {
        let vision = &config.vision_cfg;
        let batch = features.len / config.embed_dim;
        self.batch = batch;
        let (width, rows, patches) = (vision.width, batch * vision.tokens(), batch * vision.patches());
        let patch_len = 3 * vision.patch_size.pow(2);
        let pixel_span = self.pixels.first(pixels.len());
        b.write(pixel_span, pixels);
        let patch_span = self.patches.first(patches * patch_len);
        b.patchify(patch_span, pixel_span, vision.image_size, vision.patch_size);
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
            bias: None,
        });
        let tokens = self.tokens.first(rows * width);
        b.embed_patches(tokens, embedded, part(values, &p.class_embedding), part(values, &p.vision_positions));
        let mut x = self.ln_pre.first(rows * width);
        block::layer_norm(b, values, &p.ln_pre, x, self.ln_pre_stats.first(rows * 2), tokens);
        for (parameters, activations) in p.vision_blocks.iter().zip(&self.blocks) {
            block::forward(b, values, parameters, activations, x, shape(vision, batch));
            x = activations.out.first(rows * width);
        }
        let pooled = self.pooled.first(batch * width);
        b.gather(pooled, x, &self.class_rows(vision), width);
        let ln_post = self.ln_post.first(batch * width);
        block::layer_norm(b, values, &p.ln_post, ln_post, self.ln_post_stats.first(batch * 2), pooled);
        b.gemm(Gemm {
            out: features,
            a: ln_post,
            b: part(values, &p.vision_proj),
            m: batch,
            n: config.embed_dim,
            k: width,
            transpose_a: false,
            transpose_b: false,
            accumulate: false,
            bias: None,
        });
    }

    pub fn backward<B: Backend>(&mut self, b: &mut B, config: &ModelConfig, p: &Parameters, values: Span, grads: Span, dfeatures: Span) {
        let vision = &config.vision_cfg;
        let batch = self.batch;
        let (width, rows, patches) = (vision.width, batch * vision.tokens(), batch * vision.patches());
        let [dln_post, dpooled] = self.pooled_gradient.map(|g| g.first(batch * width));
        let dims = [batch, config.embed_dim, width];
        let proj = &p.vision_proj;
        block::matmul_backward(
            b,
            part(values, proj),
            part(grads, proj),
            Some(dln_post),
            dfeatures,
            self.ln_post.first(batch * width),
            dims,
            false,
        );
        b.zero(dpooled);
        let stats = self.ln_post_stats.first(batch * 2);
        block::layer_norm_backward(b, values, grads, &p.ln_post, dpooled, dln_post, self.pooled.first(batch * width), stats);

        let d = self.gradient.first(rows * width);
        b.zero(d);
        b.gather_backward(d, dpooled, &self.class_rows(vision), width);
        for (i, (parameters, activations)) in p.vision_blocks.iter().zip(&self.blocks).enumerate().rev() {
            let x = if i == 0 { self.ln_pre } else { self.blocks[i - 1].out }.first(rows * width);
            block::backward(b, values, grads, parameters, activations, &self.scratch, d, x, shape(vision, batch));
        }
        let dtokens = self.before.first(rows * width);
        b.zero(dtokens);
        let stats = self.ln_pre_stats.first(rows * 2);
        block::layer_norm_backward(b, values, grads, &p.ln_pre, dtokens, d, self.tokens.first(rows * width), stats);
        // The patches' own values are not needed again, and pixels have no gradient.
        let dembedded = self.embedded.first(patches * width);
        b.embed_patches_backward(dembedded, part(grads, &p.class_embedding), part(grads, &p.vision_positions), dtokens);
        let patch_len = 3 * vision.patch_size.pow(2);
        let patch_span = self.patches.first(patches * patch_len);
        block::matmul_backward(
            b,
            part(values, &p.conv1),
            part(grads, &p.conv1),
            None,
            dembedded,
            patch_span,
            [patches, width, patch_len],
            true,
        );
    }

    fn class_rows(&self, vision: &VisionConfig) -> Vec<usize> {
        (0..self.batch).map(|i| i * vision.tokens()).collect()
    }
}
