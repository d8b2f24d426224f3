//! Every operation of a backend beside the CPU's, on the same random inputs.

use half::bf16;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{
    Activation, AdamW, AdamWState, Attended, Attention, AttentionGrads, Backend, Cpu, Epilogue, Gemm, LayerNormGrads, LossGrads, Pixels,
    Span,
};

/// How far one result of an operation is from the CPU's: the norm of the difference by the norm of the CPU's.
#[derive(Debug, Clone)]
pub struct Check {
    pub operation: String,
    pub result: &'static str,
    pub distance: f64,
    pub allowed: f64,
}

impl Check {
    pub fn passes(&self) -> bool {
        self.distance <= self.allowed
    }
}

/// Inputs that are the same on every backend: values that bfloat16 has, too.
struct Case<'a> {
    b: &'a mut dyn Backend,
    rng: ChaCha8Rng,
    /// Buffers of float32.
    exact: Vec<usize>,
}

impl Case<'_> {
    fn values(&mut self, len: usize, size: f32) -> Vec<f32> {
        (0..len).map(|_| bf16::from_f32(self.rng.random_range(-size..size)).to_f32()).collect()
    }

    fn fill(&mut self, span: Span, size: f32) -> Span {
        let values = self.values(span.len, size);
        self.b.write(span, &values);
        span
    }

    fn activations(&mut self, len: usize) -> Span {
        let span = self.b.alloc_activations(len);
        self.fill(span, 1.0)
    }

    fn parameters(&mut self, len: usize) -> Span {
        let span = self.b.alloc_parameters(len);
        self.exact.push(span.buffer);
        self.fill(span, 0.5)
    }

    /// float32: gradients of parameters, features.
    fn plain(&mut self, len: usize) -> Span {
        let span = self.b.alloc(len);
        self.exact.push(span.buffer);
        self.fill(span, 1.0)
    }
}

type Outputs = Vec<(&'static str, Span)>;

/// Compares all operations; `rounds` says that the backend rounds activations to bfloat16.
pub fn check_operations(b: &mut dyn Backend, rounds: bool) -> Vec<Check> {
    // Half of a last place of bfloat16 is 2e-3 at the most.
    let rounded = if rounds { 5e-3 } else { 1e-5 };
    let mut checks = Vec::new();
    let mut check = |operation: &str, run: &dyn Fn(&mut Case) -> Outputs| {
        let mut cpu = Cpu::new();
        let rng = ChaCha8Rng::seed_from_u64(operation.len() as u64);
        let expected = run(&mut Case { b: &mut cpu, rng: rng.clone(), exact: Vec::new() });
        let mut case = Case { b, rng, exact: Vec::new() };
        let (got, exact) = (run(&mut case), case.exact);
        for ((result, expected), (_, got)) in expected.into_iter().zip(got) {
            let allowed = if exact.contains(&got.buffer) { 1e-5 } else { rounded };
            let (expected, got) = (cpu.read(expected), b.read(got));
            let distance = expected.iter().zip(&got).map(|(e, g)| f64::from(e - g).powi(2)).sum::<f64>().sqrt();
            let size = expected.iter().map(|e| f64::from(*e).powi(2)).sum::<f64>().sqrt();
            let distance = distance / size.max(1e-30);
            // What is not a number is not close.
            let distance = if distance.is_nan() { f64::INFINITY } else { distance };
            checks.push(Check { operation: operation.into(), result, distance, allowed });
        }
    };
    products(&mut check);
    rows(&mut check);
    attentions(&mut check);
    towers(&mut check);
    loss_and_update(&mut check);
    checks
}

type Checker<'a> = dyn FnMut(&str, &dyn Fn(&mut Case) -> Outputs) + 'a;

fn products(check: &mut Checker) {
    let (m, n, k) = (40, 24, 56);
    for (operation, transpose_a, transpose_b) in
        [("gemm", false, false), ("gemm, a transposed", true, false), ("gemm, b transposed", false, true)]
    {
        check(operation, &|c| {
            let (out, a, b) = (c.activations(m * n), c.activations(m * k), c.parameters(k * n));
            c.b.gemm(Gemm { out, a, b, m, n, k, transpose_a, transpose_b, accumulate: false, epilogue: Epilogue::None });
            vec![("out", out)]
        });
    }
    check("gemm, gradients of parameters", &|c| {
        let (out, a, b) = (c.plain(m * n), c.activations(k * m), c.activations(k * n));
        c.b.gemm(Gemm { out, a, b, m, n, k, transpose_a: true, transpose_b: false, accumulate: true, epilogue: Epilogue::None });
        vec![("out", out)]
    });
    check("gemm, features", &|c| {
        let (out, a, b) = (c.plain(m * n), c.activations(m * k), c.parameters(k * n));
        let (back, from) = (c.activations(m * k), c.plain(m * n));
        c.b.gemm(Gemm { out, a, b, m, n, k, transpose_a: false, transpose_b: false, accumulate: false, epilogue: Epilogue::None });
        // From features, which matrix products round.
        let g = Gemm {
            out: back,
            a: from,
            b,
            m,
            n: k,
            k: n,
            transpose_a: false,
            transpose_b: true,
            accumulate: false,
            epilogue: Epilogue::None,
        };
        c.b.gemm(g);
        vec![("out", out), ("gradient", back)]
    });
    check("gemm, a part of the parameters", &|c| {
        let (out, a, all) = (c.activations(m * n), c.activations(m * k), c.parameters(k * n + n + 16));
        let epilogue = Epilogue::Bias(all.at(8 + k * n, n));
        c.b.gemm(Gemm { out, a, b: all.at(8, k * n), m, n, k, transpose_a: false, transpose_b: true, accumulate: false, epilogue });
        vec![("out", out)]
    });
    for activation in [Activation::Gelu, Activation::QuickGelu] {
        check(&format!("gemm, bias and {activation:?}"), &|c| {
            let (out, a, b) = (c.activations(m * n), c.activations(m * k), c.parameters(k * n));
            let (bias, to) = (c.parameters(n), c.activations(m * n));
            let epilogue = Epilogue::Activate { bias, activation, to };
            c.b.gemm(Gemm { out, a, b, m, n, k, transpose_a: false, transpose_b: true, accumulate: false, epilogue });
            vec![("out", out), ("activated", to)]
        });
        check(&format!("{activation:?}, backward"), &|c| {
            let (dy, x) = (c.activations(m * n), c.activations(m * n));
            c.fill(x, 4.0);
            c.b.activate_backward(activation, dy, x);
            vec![("dx", dy)]
        });
    }
    check("gemm, bias and residual", &|c| {
        let (out, a, b) = (c.activations(m * n), c.activations(m * k), c.parameters(k * n));
        let (bias, x) = (c.parameters(n), c.activations(m * n));
        let epilogue = Epilogue::Residual { bias, x };
        c.b.gemm(Gemm { out, a, b, m, n, k, transpose_a: false, transpose_b: true, accumulate: false, epilogue });
        vec![("out", out)]
    });
}

fn rows(check: &mut Checker) {
    for (rows, n) in [(3, 8), (200, 264), (1000, 24)] {
        check(&format!("column sums of {rows}x{n}"), &|c| {
            let (out, x) = (c.plain(n), c.activations(rows * n));
            c.b.add_column_sums(out, x);
            vec![("sums", out)]
        });
    }
    // A width for each kernel, whole chunks of 256 and less.
    for (rows, dim) in [(37, 24), (5, 256), (19, 512), (70, 768), (9, 1024), (3, 1288), (2, 2048)] {
        check(&format!("layer norm of {rows}x{dim}"), &|c| {
            let (x, gamma, beta) = (c.activations(rows * dim), c.parameters(dim), c.parameters(dim));
            let (out, stats) = (c.activations(rows * dim), c.plain(2 * rows));
            c.b.layer_norm(out, stats, x, gamma, beta, 1e-5);
            let (dy, dx) = (c.activations(rows * dim), c.activations(rows * dim));
            let (dgamma, dbeta) = (c.plain(dim), c.plain(dim));
            c.b.layer_norm_backward(LayerNormGrads { dx, dgamma, dbeta }, dy, x, stats, gamma);
            vec![("out", out), ("stats", stats), ("dx", dx), ("dgamma", dgamma), ("dbeta", dbeta)]
        });
    }
    check("gather", &|c| {
        let (x, out, dx, dout) = (c.activations(9 * 16), c.activations(3 * 16), c.activations(9 * 16), c.activations(3 * 16));
        c.b.gather(out, x, &[8, 0, 5], 16);
        c.b.gather_backward(dx, dout, &[8, 0, 5], 16);
        vec![("out", out), ("dx", dx)]
    });
    check("normalize", &|c| {
        let (x, out, norms) = (c.plain(7 * 24), c.plain(7 * 24), c.plain(7));
        c.b.normalize(out, norms, x);
        let (dy, dx) = (c.plain(7 * 24), c.plain(7 * 24));
        c.b.normalize_backward(dx, dy, out, norms);
        vec![("out", out), ("norms", norms), ("dx", dx)]
    });
}

fn attentions(check: &mut Checker) {
    // Captions of different lengths; whole images; the longest that are needed; other widths of head.
    let shapes: [(&str, &[usize], usize, usize); 5] = [
        ("short", &[3, 16, 1, 17, 40], 2, 64),
        ("77", &[77, 20], 1, 64),
        ("257", &[257], 1, 64),
        ("272", &[272, 33], 1, 64),
        ("narrow", &[5, 33, 16], 3, 32),
    ];
    for (name, lengths, heads, head_width) in shapes {
        for (causal, one_query) in [(false, false), (true, false), (false, true), (true, true)] {
            let of = format!("{name}{}{}", if causal { ", causal" } else { "" }, if one_query { ", one query" } else { "" });
            check(&format!("attention, {of}"), &|c| {
                let mut starts = vec![0];
                lengths.iter().for_each(|length| starts.push(starts[starts.len() - 1] + length));
                // The last, the first, and one between.
                let own = |(s, length): (usize, &usize)| starts[s] + [length - 1, 0, length / 2][s % 3];
                let own: Vec<usize> = lengths.iter().enumerate().map(own).collect();
                let (rows, width) = (starts[lengths.len()], heads * head_width);
                let of_queries = if one_query { own.len() } else { rows };
                let shape = Attention { starts: &starts, queries: one_query.then_some(&own[..]), heads, head_width, causal };
                let (q, kv) = (c.activations(of_queries * width), c.activations(rows * 2 * width));
                // Logits from even to steep.
                c.fill(q, 2.0);
                let (out, lse) = (c.activations(of_queries * width), c.plain(of_queries * heads));
                c.b.attention(out, lse, q, kv, shape);
                let (dq, dkv, dout) =
                    (c.activations(of_queries * width), c.activations(rows * 2 * width), c.activations(of_queries * width));
                c.b.attention_backward(AttentionGrads { dq, dkv }, dout, Attended { out, lse, q, kv }, shape);
                vec![("out", out), ("dq", dq), ("dkv", dkv)]
            });
        }
    }
}

fn towers(check: &mut Checker) {
    check("token embedding", &|c| {
        let (dim, vocabulary, lengths) = (24, 50, [5, 1, 80]);
        let starts = [0, 5, 6, 86];
        // Some tokens are in every caption, and often.
        let ids: Vec<u32> = (0..86).map(|i| if i % 3 == 0 { 7 } else { i * 13 % vocabulary }).collect();
        let rows = lengths.iter().sum::<usize>();
        let (table, positions) = (c.parameters(vocabulary as usize * dim), c.parameters(80 * dim));
        let out = c.activations(rows * dim);
        c.b.embed_tokens(out, table, positions, &ids, &starts);
        let (dtable, dpositions, dout) = (c.plain(vocabulary as usize * dim), c.plain(80 * dim), c.activations(rows * dim));
        c.b.embed_tokens_backward(dtable, dpositions, dout, &ids, &starts);
        vec![("out", out), ("dtable", dtable), ("dpositions", dpositions)]
    });
    check("patches", &|c| {
        let (size, patch, batch) = (28, 14, 3);
        let (values, pixels) = (c.values(batch * 3 * size * size, 2.0), c.values(batch * 3 * size * size, 1.0));
        let bytes: Vec<u8> = pixels.iter().map(|x| (127.0 * x + 128.0) as u8).collect();
        let (of_values, of_bytes) = (c.activations(values.len()), c.activations(values.len()));
        c.b.patchify(of_values, Pixels::Values(&values), size, patch);
        c.b.patchify(of_bytes, Pixels::Bytes { bytes: &bytes, mean: [0.48, 0.46, 0.41], std: [0.27, 0.26, 0.28] }, size, patch);
        vec![("of values", of_values), ("of bytes", of_bytes)]
    });
    check("patch embedding", &|c| {
        let (dim, tokens, batch) = (24, 5, 70);
        let (patches, class, positions) = (c.activations(batch * (tokens - 1) * dim), c.parameters(dim), c.parameters(tokens * dim));
        let out = c.activations(batch * tokens * dim);
        c.b.embed_patches(out, patches, class, positions);
        let (dclass, dpositions) = (c.plain(dim), c.plain(tokens * dim));
        let (dpatches, dout) = (c.activations(patches.len), c.activations(out.len));
        c.b.embed_patches_backward(dpatches, dclass, dpositions, dout);
        vec![("out", out), ("dpatches", dpatches), ("dclass", dclass), ("dpositions", dpositions)]
    });
}

fn loss_and_update(check: &mut Checker) {
    for n in [1, 30, 300] {
        check(&format!("contrastive loss of {n}"), &|c| {
            let dim = 16;
            let (images, texts, norms) = (c.plain(n * dim), c.plain(n * dim), c.plain(n));
            let (raw_images, raw_texts) = (c.plain(n * dim), c.plain(n * dim));
            c.b.normalize(images, norms, raw_images);
            c.b.normalize(texts, norms, raw_texts);
            let (d_images, d_texts, d_ln_scale) = (c.plain(n * dim), c.plain(n * dim), c.plain(1));
            let (losses, ln_scale) = (c.plain(n), c.plain(1));
            c.b.write(ln_scale, &[2.5]);
            c.b.contrastive_loss(LossGrads { d_images, d_texts, d_ln_scale }, losses, images, texts, ln_scale);
            // One sample alone has no gradient but rounding.
            match n {
                1 => vec![("losses", ln_scale)],
                _ => vec![("losses", losses), ("d_images", d_images), ("d_texts", d_texts), ("d_ln_scale", d_ln_scale)],
            }
        });
    }
    check("AdamW", &|c| {
        let n = 1003;
        let (params, grads, m, v) = (c.parameters(n), c.plain(n), c.plain(n), c.plain(n));
        let positive: Vec<f32> = c.values(n, 1.0).iter().map(|x| x * x).collect();
        c.b.write(v, &positive);
        let hyper = AdamW { learning_rate: 0.1, beta1: 0.9, beta2: 0.98, eps: 1e-6, weight_decay: 0.2, step: 3, gradient_scale: 0.7 };
        c.b.adamw(AdamWState { params, grads, m, v }, &[(0..10, true), (10..499, false), (499..1003, true)], hyper);
        // What matrix products read of the new values.
        let (out, x) = (c.activations(16), c.activations(2 * 56));
        let b = params.at(8, 8 * 56);
        c.b.gemm(Gemm {
            out,
            a: x,
            b,
            m: 2,
            n: 8,
            k: 56,
            transpose_a: false,
            transpose_b: true,
            accumulate: false,
            epilogue: Epilogue::None,
        });
        vec![("params", params), ("m", m), ("v", v), ("params in a product", out)]
    });
    check("clamp and square sum", &|c| {
        let (x, sum, values) = (c.plain(1), c.plain(1), c.plain(5000));
        c.b.write(x, &[7.0]);
        c.b.clamp(x, 0.0, 4.6);
        let squares = c.b.square_sum(values) as f32;
        c.b.write(sum, &[squares]);
        vec![("clamped", x), ("sum", sum)]
    });
}
