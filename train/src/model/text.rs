use super::Tokens;
use super::block::Shape;
use super::tower::{Arenas, Capacity, Input, Tower, TowerParameters, Workspace};
use crate::backend::{Attention, Backend, Span};
use crate::config::ModelConfig;
use crate::parameters::{Parameters, part};

/// Activations of the text tower for one micro-batch. Each caption is a sequence, its end token is pooled.
pub struct TextTower {
    embedded: Span,
    tower: Tower,
}

pub fn capacity(config: &ModelConfig, batch: usize, rows: usize) -> Capacity {
    let text = &config.text_cfg;
    Capacity { batch, rows, width: text.width, hidden: text.hidden(), heads: text.heads, layers: text.layers }
}

fn tower_parameters(p: &Parameters) -> TowerParameters<'_> {
    TowerParameters { blocks: &p.text_blocks, ln: &p.ln_final, projection: &p.text_projection }
}

fn input<'a>(config: &ModelConfig, tokens: &'a Tokens) -> Input<'a> {
    let text = &config.text_cfg;
    let head_width = text.width / text.heads;
    let attention = Attention { starts: &tokens.starts, queries: None, heads: text.heads, head_width, causal: !text.no_causal_mask };
    let (hidden, eps) = (text.hidden(), text.eps());
    let shape = Shape { width: text.width, hidden, activation: config.activation(), eps, attention };
    Input { shape, pooled: &tokens.ends }
}

impl TextTower {
    pub fn new(b: &mut dyn Backend, config: &ModelConfig, batch: usize, rows: usize, backward: bool) -> TextTower {
        let embedded = b.alloc_activations(rows * config.text_cfg.width);
        TextTower { embedded, tower: Tower::new(b, capacity(config, batch, rows), backward) }
    }

    /// `features[batch, E]`.
    pub fn forward(&self, b: &mut dyn Backend, config: &ModelConfig, p: &Parameters, values: Span, features: Span, tokens: &Tokens) {
        let x = self.embedded.first(tokens.ids.len() * config.text_cfg.width);
        b.embed_tokens(x, part(values, &p.token_embedding), part(values, &p.text_positions), &tokens.ids, &tokens.starts);
        self.tower.forward(b, values, &tower_parameters(p), x, input(config, tokens), features);
    }

    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        b: &mut dyn Backend,
        config: &ModelConfig,
        p: &Parameters,
        arenas: Arenas,
        w: &Workspace,
        dfeatures: Span,
        tokens: &Tokens,
    ) {
        let x = self.embedded.first(tokens.ids.len() * config.text_cfg.width);
        let d = self.tower.backward(b, arenas, &tower_parameters(p), w, x, input(config, tokens), dfeatures);
        let (dtable, dpositions) = (part(arenas.grads, &p.token_embedding), part(arenas.grads, &p.text_positions));
        b.embed_tokens_backward(dtable, dpositions, d, &tokens.ids, &tokens.starts);
    }
}
