//! The parameters of a model: names, shapes and first values as open_clip has them, laid out in one arena.

use std::ops::Range;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::backend::Span;
use crate::config::ModelConfig;

/// How open_clip (and, where it says nothing, PyTorch) draws a parameter's first values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    Constant(f32),
    Normal(f32),
    /// Uniform on [-x, x].
    Uniform(f32),
}

#[derive(Debug, Clone)]
pub struct Parameter {
    /// As in open_clip's `state_dict`.
    pub name: String,
    pub shape: Vec<usize>,
    /// Its place in the arena.
    pub range: Range<usize>,
    pub init: Init,
}

impl Parameter {
    /// Whether AdamW decays it. Source: open_clip's `p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n or "logit_scale" in n`.
    pub fn decays(&self) -> bool {
        self.shape.len() >= 2 && !["bn", "ln", "bias", "logit_scale"].iter().any(|part| self.name.contains(part))
    }
}

/// Parameters of one residual attention block, as ranges of the arena.
#[derive(Debug, Clone)]
pub struct Block {
    pub ln_1: LayerNorm,
    pub q: Linear,
    /// Of keys and values together; in open_clip's names one parameter with `q`.
    pub kv: Linear,
    pub out: Linear,
    pub ln_2: LayerNorm,
    pub fc: Linear,
    pub proj: Linear,
}

/// `weight[outputs, inputs]`, `bias[outputs]`.
#[derive(Debug, Clone)]
pub struct Linear {
    pub weight: Range<usize>,
    pub bias: Range<usize>,
}

#[derive(Debug, Clone)]
pub struct LayerNorm {
    pub weight: Range<usize>,
    pub bias: Range<usize>,
}

/// All parameters of a model by role.
#[derive(Debug, Clone)]
pub struct Parameters {
    pub all: Vec<Parameter>,
    /// Values in the arena.
    pub len: usize,
    pub class_embedding: Range<usize>,
    pub vision_positions: Range<usize>,
    pub vision_proj: Range<usize>,
    pub conv1: Range<usize>,
    pub ln_pre: Option<LayerNorm>,
    pub vision_blocks: Vec<Block>,
    pub ln_post: LayerNorm,
    pub text_positions: Range<usize>,
    pub text_projection: Range<usize>,
    pub logit_scale: Range<usize>,
    pub token_embedding: Range<usize>,
    pub text_blocks: Vec<Block>,
    pub ln_final: LayerNorm,
}

/// ln(1 / 0.07), where CLIP's logit scale starts.
pub const LOGIT_SCALE_INIT: f32 = 2.659_26;

#[derive(Default)]
struct Table {
    all: Vec<Parameter>,
    len: usize,
}

impl Table {
    fn add(&mut self, name: impl Into<String>, shape: &[usize], init: Init) -> Range<usize> {
        let range = self.len..self.len + shape.iter().product::<usize>();
        self.len = range.end;
        self.all.push(Parameter { name: name.into(), shape: shape.to_vec(), range: range.clone(), init });
        range
    }

    fn layer_norm(&mut self, name: &str, width: usize) -> LayerNorm {
        LayerNorm {
            weight: self.add(format!("{name}.weight"), &[width], Init::Constant(1.0)),
            bias: self.add(format!("{name}.bias"), &[width], Init::Constant(0.0)),
        }
    }

    /// `inits` are those of in_proj, out_proj, c_fc and c_proj; biases follow PyTorch's `Linear`.
    fn block(&mut self, name: &str, width: usize, hidden: usize, inits: [Init; 4]) -> Block {
        let bias_init = |inputs: usize| Init::Uniform((inputs as f32).powf(-0.5));
        let ln_1 = self.layer_norm(&format!("{name}.ln_1"), width);
        let weight = self.add(format!("{name}.attn.in_proj_weight"), &[3 * width, width], inits[0]);
        let bias = self.add(format!("{name}.attn.in_proj_bias"), &[3 * width], Init::Constant(0.0));
        let (q_weight, q_bias) = (weight.start + width * width, bias.start + width);
        let q = Linear { weight: weight.start..q_weight, bias: bias.start..q_bias };
        let kv = Linear { weight: q_weight..weight.end, bias: q_bias..bias.end };
        let out = Linear {
            weight: self.add(format!("{name}.attn.out_proj.weight"), &[width, width], inits[1]),
            bias: self.add(format!("{name}.attn.out_proj.bias"), &[width], Init::Constant(0.0)),
        };
        let ln_2 = self.layer_norm(&format!("{name}.ln_2"), width);
        let fc = Linear {
            weight: self.add(format!("{name}.mlp.c_fc.weight"), &[hidden, width], inits[2]),
            bias: self.add(format!("{name}.mlp.c_fc.bias"), &[hidden], bias_init(width)),
        };
        let proj = Linear {
            weight: self.add(format!("{name}.mlp.c_proj.weight"), &[width, hidden], inits[3]),
            bias: self.add(format!("{name}.mlp.c_proj.bias"), &[width], bias_init(hidden)),
        };
        Block { ln_1, q, kv, out, ln_2, fc, proj }
    }
}

impl Parameters {
    pub fn new(config: &ModelConfig) -> Parameters {
        let (vision, text) = (&config.vision_cfg, &config.text_cfg);
        let mut table = Table::default();
        let t = &mut table;

        let scale = Init::Normal((vision.width as f32).powf(-0.5));
        let linear = |inputs: usize| Init::Uniform((inputs as f32).powf(-0.5));
        let class_embedding = t.add("visual.class_embedding", &[vision.width], scale);
        let vision_positions = t.add("visual.positional_embedding", &[vision.tokens(), vision.width], scale);
        let vision_proj = t.add("visual.proj", &[vision.width, config.embed_dim], scale);
        let patch = vision.patch_size;
        let conv1 = t.add("visual.conv1.weight", &[vision.width, 3, patch, patch], linear(3 * patch * patch));
        let ln_pre = (!vision.no_ln_pre).then(|| t.layer_norm("visual.ln_pre", vision.width));
        // PyTorch's MultiheadAttention draws in_proj by Xavier: sqrt(6 / (3 * width + width)).
        let hidden = vision.hidden();
        let xavier = Init::Uniform((6.0 / (4 * vision.width) as f32).sqrt());
        let inits = [xavier, linear(vision.width), linear(vision.width), linear(hidden)];
        let vision_blocks =
            (0..vision.layers).map(|i| t.block(&format!("visual.transformer.resblocks.{i}"), vision.width, hidden, inits)).collect();
        let ln_post = t.layer_norm("visual.ln_post", vision.width);

        let text_positions = t.add("positional_embedding", &[text.context_length, text.width], Init::Normal(0.01));
        let width_std = (text.width as f32).powf(-0.5);
        let text_projection = t.add("text_projection", &[text.width, config.embed_dim], Init::Normal(width_std));
        let token_embedding = t.add("token_embedding.weight", &[text.vocab_size, text.width], Init::Normal(0.02));
        let proj_std = Init::Normal(width_std * (2.0 * text.layers as f32).powf(-0.5));
        let fc_std = Init::Normal((2.0 * text.width as f32).powf(-0.5));
        let inits = [Init::Normal(width_std), proj_std, fc_std, proj_std];
        let hidden = text.hidden();
        let text_blocks = (0..text.layers).map(|i| t.block(&format!("transformer.resblocks.{i}"), text.width, hidden, inits)).collect();
        let ln_final = t.layer_norm("ln_final", text.width);
        // Last, for it has one value: all others begin at a multiple of eight.
        let logit_scale = t.add("logit_scale", &[], Init::Constant(config.init_logit_scale.unwrap_or(LOGIT_SCALE_INIT)));
        let Table { all, len } = table;
        Parameters {
            all,
            len,
            class_embedding,
            vision_positions,
            vision_proj,
            conv1,
            ln_pre,
            vision_blocks,
            ln_post,
            text_positions,
            text_projection,
            logit_scale,
            token_embedding,
            text_blocks,
            ln_final,
        }
    }

    /// First values for the whole arena, a function of the seed alone.
    pub fn draw(&self, seed: u64) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut values = Vec::with_capacity(self.len);
        for parameter in &self.all {
            let n = parameter.range.len();
            match parameter.init {
                Init::Constant(value) => values.extend(std::iter::repeat_n(value, n)),
                Init::Uniform(x) => values.extend((0..n).map(|_| rng.random_range(-x..=x))),
                Init::Normal(deviation) => values.extend((0..n).map(|_| deviation * normal(&mut rng))),
            }
        }
        values
    }

    /// Ranges that together cover the arena, each with whether it decays; neighbours that agree are joined.
    pub fn decayed(&self) -> Vec<(Range<usize>, bool)> {
        let mut ranges: Vec<(Range<usize>, bool)> = Vec::new();
        for parameter in &self.all {
            match ranges.last_mut() {
                Some((range, decays)) if *decays == parameter.decays() => range.end = parameter.range.end,
                _ => ranges.push((parameter.range.clone(), parameter.decays())),
            }
        }
        ranges
    }
}

/// A standard normal value, by Box and Muller.
fn normal(rng: &mut impl Rng) -> f32 {
    let (u, v): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    ((-2.0 * u.ln()).sqrt() * (2.0 * std::f64::consts::PI * v).cos()) as f32
}

/// A parameter's part of an arena (the values, the gradients or a moment).
pub fn part(arena: Span, range: &Range<usize>) -> Span {
    arena.at(range.start, range.len())
}
