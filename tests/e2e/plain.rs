//! CLIP as open_clip computes it, in float64 and without any saving: captions padded, every token through every block.
//! Slow, and short enough to be read against the paper; the trainer is tested against it.

use std::collections::HashMap;

use train::ModelConfig;
use train::parameters::Parameters;

/// A model's parameters by name.
pub struct Plain<'a> {
    pub config: &'a ModelConfig,
    values: HashMap<String, &'a [f64]>,
}

/// Rows of equal length.
type Matrix = Vec<Vec<f64>>;

impl<'a> Plain<'a> {
    pub fn new(config: &'a ModelConfig, parameters: &Parameters, values: &'a [f64]) -> Plain<'a> {
        let values = parameters.all.iter().map(|p| (p.name.clone(), &values[p.range.clone()])).collect();
        Plain { config, values }
    }

    /// CLIP's loss of a batch.
    pub fn loss(&self, pixels: &[f32], captions: &[Vec<u32>]) -> f64 {
        let n = captions.len();
        let images: Matrix = pixels.chunks_exact(pixels.len() / n).map(|pixels| normalized(self.image(pixels))).collect();
        let texts: Matrix = captions.iter().map(|caption| normalized(self.text(caption))).collect();
        let scale = self.values["logit_scale"][0].exp();
        let logits: Matrix = images.iter().map(|i| texts.iter().map(|t| scale * dot(i, t)).collect()).collect();
        let columns: Matrix = (0..n).map(|j| logits.iter().map(|row| row[j]).collect()).collect();
        let of = |rows: &Matrix| rows.iter().enumerate().map(|(i, row)| log_sum_exp(row) - row[i]).sum::<f64>();
        (of(&logits) + of(&columns)) / (2 * n) as f64
    }

    /// Features, not normalised, of `pixels[3, size, size]`.
    pub fn image(&self, pixels: &[f32]) -> Vec<f64> {
        let vision = &self.config.vision_cfg;
        let (size, patch) = (vision.image_size, vision.patch_size);
        let side = size / patch;
        let mut x = vec![self.values["visual.class_embedding"].to_vec()];
        for at in 0..side * side {
            let (top, left) = (at / side * patch, at % side * patch);
            let of = |c: usize, y: usize, x: usize| f64::from(pixels[(c * size + top + y) * size + left + x]);
            let flat = (0..3 * patch * patch).map(|i| of(i / (patch * patch), i / patch % patch, i % patch)).collect::<Vec<_>>();
            x.push(self.values["visual.conv1.weight"].chunks_exact(flat.len()).map(|weight| dot(weight, &flat)).collect());
        }
        add_rows(&mut x, self.values["visual.positional_embedding"]);
        if !vision.no_ln_pre {
            x = x.iter().map(|row| self.layer_norm("visual.ln_pre", row, vision.norm_kwargs.map(|norm| norm.eps))).collect();
        }
        let eps = vision.norm_kwargs.map(|norm| norm.eps);
        for i in 0..vision.layers {
            x = self.block(&format!("visual.transformer.resblocks.{i}"), x, vision.heads(), false, eps);
        }
        let pooled = self.layer_norm("visual.ln_post", &x[0], eps);
        self.project("visual.proj", &pooled)
    }

    /// Features, not normalised, of token ids with start and end.
    pub fn text(&self, caption: &[u32]) -> Vec<f64> {
        let text = &self.config.text_cfg;
        let table = self.values["token_embedding.weight"];
        let ids = caption.iter().copied().chain(std::iter::repeat(0)).take(text.context_length);
        let mut x: Matrix = ids.map(|id| table[id as usize * text.width..][..text.width].to_vec()).collect();
        add_rows(&mut x, self.values["positional_embedding"]);
        let eps = text.norm_kwargs.map(|norm| norm.eps);
        for i in 0..text.layers {
            x = self.block(&format!("transformer.resblocks.{i}"), x, text.heads, !text.no_causal_mask, eps);
        }
        let pooled = self.layer_norm("ln_final", &x[caption.len() - 1], eps);
        self.project("text_projection", &pooled)
    }

    fn block(&self, name: &str, mut x: Matrix, heads: usize, causal: bool, eps: Option<f32>) -> Matrix {
        let width = x[0].len();
        let of = |what: &str| format!("{name}.{what}");
        let qkv: Matrix = x
            .iter()
            .map(|row| {
                let row = self.layer_norm(&of("ln_1"), row, eps);
                linear(self.values[&of("attn.in_proj_weight")], self.values[&of("attn.in_proj_bias")], &row)
            })
            .collect();
        let head_width = width / heads;
        for (i, row) in x.iter_mut().enumerate() {
            let seen = if causal { i + 1 } else { qkv.len() };
            let mut out = Vec::with_capacity(width);
            for head in (0..width).step_by(head_width) {
                let part = |row: &[f64], which: usize| row[which * width + head..][..head_width].to_vec();
                let q = part(&qkv[i], 0);
                let logits: Vec<f64> = qkv[..seen].iter().map(|k| dot(&q, &part(k, 1)) / (head_width as f64).sqrt()).collect();
                let total = log_sum_exp(&logits);
                let mut sum = vec![0.0; head_width];
                for (logit, v) in logits.iter().zip(&qkv) {
                    sum.iter_mut().zip(part(v, 2)).for_each(|(s, v)| *s += (logit - total).exp() * v);
                }
                out.extend(sum);
            }
            let out = linear(self.values[&of("attn.out_proj.weight")], self.values[&of("attn.out_proj.bias")], &out);
            row.iter_mut().zip(out).for_each(|(x, out)| *x += out);
        }
        for row in &mut x {
            let hidden = self.layer_norm(&of("ln_2"), row, eps);
            let hidden = linear(self.values[&of("mlp.c_fc.weight")], self.values[&of("mlp.c_fc.bias")], &hidden);
            let hidden: Vec<f64> = hidden.into_iter().map(|x| if self.config.quick_gelu { quick_gelu(x) } else { gelu(x) }).collect();
            let out = linear(self.values[&of("mlp.c_proj.weight")], self.values[&of("mlp.c_proj.bias")], &hidden);
            row.iter_mut().zip(out).for_each(|(x, out)| *x += out);
        }
        x
    }

    fn layer_norm(&self, name: &str, x: &[f64], eps: Option<f32>) -> Vec<f64> {
        let mean = x.iter().sum::<f64>() / x.len() as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
        let (weight, bias) = (self.values[&format!("{name}.weight")], self.values[&format!("{name}.bias")]);
        let deviation = (variance + f64::from(eps.unwrap_or(1e-5))).sqrt();
        x.iter().zip(weight.iter().zip(bias)).map(|(x, (w, b))| (x - mean) / deviation * w + b).collect()
    }

    /// `x · weight[width, E]`.
    fn project(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let weight = self.values[name];
        let n = weight.len() / x.len();
        (0..n).map(|j| x.iter().enumerate().map(|(i, x)| x * weight[i * n + j]).sum()).collect()
    }
}

fn linear(weight: &[f64], bias: &[f64], x: &[f64]) -> Vec<f64> {
    weight.chunks_exact(x.len()).zip(bias).map(|(weight, bias)| dot(weight, x) + bias).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add_rows(x: &mut Matrix, rows: &[f64]) {
    let width = x[0].len();
    for (x, row) in x.iter_mut().zip(rows.chunks_exact(width)) {
        x.iter_mut().zip(row).for_each(|(x, row)| *x += row);
    }
}

fn normalized(x: Vec<f64>) -> Vec<f64> {
    let norm = dot(&x, &x).sqrt();
    x.into_iter().map(|x| x / norm).collect()
}

fn log_sum_exp(x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + x.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}

fn gelu(x: f64) -> f64 {
    // erf by its Taylor series: exact to float64 for the small arguments of these tests.
    let z = x / std::f64::consts::SQRT_2;
    let (mut term, mut sum) = (z, z);
    for n in 1..200 {
        term *= -z * z / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    assert!(z.abs() < 4.0, "the series cancels beyond");
    0.5 * x * (1.0 + sum * std::f64::consts::FRAC_2_SQRT_PI)
}

fn quick_gelu(x: f64) -> f64 {
    x / (1.0 + (-1.702 * x).exp())
}
