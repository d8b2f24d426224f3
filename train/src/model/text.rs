use super::Tokens;
use super::block::{self, Activations, Scratch};
use crate::backend::{Attention, Backend, Gemm, Span};
use crate::config::{ModelConfig, TextConfig};
use crate::parameters::{Parameters, part};

/// Activations of the text tower for up to B captions of up to `context_length` tokens.
pub struct TextTower {
    embedded: Span,
    blocks: Vec<Activations>,
    pooled: Span,
    ln_final: Span,
    ln_final_stats: Span,
    gradient: Span,
    pooled_gradient: [Span; 2],
    scratch: Scratch,
}

fn shape(text: &TextConfig, batch: usize, tokens: usize) -> Attention {
    Attention { batch, tokens, heads: text.heads, head_width: text.width / text.heads, causal: true }
}

impl TextTower {
    pub fn new(b: &mut impl Backend, config: &ModelConfig, batch: usize) -> TextTower {
        let text = &config.text_cfg;
        let (width, rows) = (text.width, batch * text.context_length);
        TextTower {
            embedded: b.alloc(rows * width),
            blocks: (0..text.layers).map(|_| Activations::new(b, rows, width)).collect(),
            pooled: b.alloc(batch * width),
            ln_final: b.alloc(batch * width),
            ln_final_stats: b.alloc(batch * 2),
            gradient: b.alloc(rows * width),
            pooled_gradient: [b.alloc(batch * width), b.alloc(batch * width)],
            scratch: Scratch::new(b, rows, width),
        }
    }

    pub fn forward<B: Backend>(&mut self, b: &mut B, config: &ModelConfig, p: &Parameters, values: Span, features: Span, tokens: &Tokens) {
        let text = &config.text_cfg;
        let (width, rows, batch) = (text.width, tokens.ids.len(), tokens.ends.len());
        let mut x = self.embedded.first(rows * width);
        let positions = part(values, &p.text_positions).first(tokens.tokens * width);
        b.embed_tokens(x, part(values, &p.token_embedding), positions, &tokens.ids, tokens.tokens);
        for (parameters, activations) in p.text_blocks.iter().zip(&self.blocks) {
            block::forward(b, values, parameters, activations, x, shape(text, batch, tokens.tokens));
            x = activations.out.first(rows * width);
        }
        // The final layer norm works on rows, so that only the end tokens' need it.
        let pooled = self.pooled.first(batch * width);
        b.gather(pooled, x, &tokens.ends, width);
        let ln_final = self.ln_final.first(batch * width);
        block::layer_norm(b, values, &p.ln_final, ln_final, self.ln_final_stats.first(batch * 2), pooled);
        b.gemm(Gemm {
            out: features,
            a: ln_final,
            b: part(values, &p.text_projection),
            m: batch,
            n: config.embed_dim,
            k: width,
            transpose_a: false,
            transpose_b: false,
            accumulate: false,
            bias: None,
        });
    }

    #[allow(clippy::too_many_arguments)]
    pub fn backward<B: Backend>(
        &mut self,
        b: &mut B,
        config: &ModelConfig,
        p: &Parameters,
        values: Span,
        grads: Span,
        dfeatures: Span,
        tokens: &Tokens,
    ) {
        let text = &config.text_cfg;
        let (width, rows, batch) = (text.width, tokens.ids.len(), tokens.ends.len());
        let [dln_final, dpooled] = self.pooled_gradient.map(|g| g.first(batch * width));
        let dims = [batch, config.embed_dim, width];
        let proj = &p.text_projection;
        block::matmul_backward(
            b,
            part(values, proj),
            part(grads, proj),
            Some(dln_final),
            dfeatures,
            self.ln_final.first(batch * width),
            dims,
            false,
        );
        b.zero(dpooled);
        let stats = self.ln_final_stats.first(batch * 2);
        block::layer_norm_backward(b, values, grads, &p.ln_final, dpooled, dln_final, self.pooled.first(batch * width), stats);

        let d = self.gradient.first(rows * width);
        b.zero(d);
        b.gather_backward(d, dpooled, &tokens.ends, width);
        for (i, (parameters, activations)) in p.text_blocks.iter().zip(&self.blocks).enumerate().rev() {
            let x = if i == 0 { self.embedded } else { self.blocks[i - 1].out }.first(rows * width);
            block::backward(b, values, grads, parameters, activations, &self.scratch, d, x, shape(text, batch, tokens.tokens));
        }
        let dpositions = part(grads, &p.text_positions).first(tokens.tokens * width);
        let dtable = part(grads, &p.token_embedding);
        b.embed_tokens_backward(dtable, dpositions, d, &tokens.ids, tokens.tokens);
    }
}
