//! PyTorch's operations by crate `tch`: what the other backends are checked by, and a peer to measure them with.

use std::ops::Range;

use tch::{Device, IndexOp, Kind, Tensor, no_grad};

use super::{
    Activation, AdamW, AdamWState, Attended, Attention, AttentionGrads, Backend, Epilogue, Gemm, LayerNormGrads, LossGrads, Pixels,
    Precision, Span,
};

pub struct Libtorch {
    device: Device,
    /// Of activations.
    kind: Kind,
    buffers: Vec<Tensor>,
    flops: f64,
    /// The last layer norm's, which its backward does not say.
    eps: f64,
}

impl Libtorch {
    /// On the first GPU where PyTorch has one.
    pub fn new(precision: Precision) -> Libtorch {
        let kind = if precision == Precision::Bf16 { Kind::BFloat16 } else { Kind::Float };
        Libtorch { device: Device::cuda_if_available(), kind, buffers: Vec::new(), flops: 0.0, eps: 1e-5 }
    }

    fn buffer(&mut self, len: usize, kind: Kind) -> Span {
        self.buffers.push(Tensor::zeros([len as i64], (kind, self.device)));
        Span { buffer: self.buffers.len() - 1, start: 0, len }
    }

    /// The values where they lie, as `shape`.
    fn at<const N: usize>(&self, span: Span, shape: [usize; N]) -> Tensor {
        self.buffers[span.buffer].narrow(0, span.start as i64, span.len as i64).view(&shape.map(|x| x as i64)[..])
    }

    fn flat(&self, span: Span) -> Tensor {
        self.at(span, [span.len])
    }

    /// As matrix products read them.
    fn operand<const N: usize>(&self, span: Span, shape: [usize; N]) -> Tensor {
        self.at(span, shape).to_kind(self.kind)
    }

    fn f32s<const N: usize>(&self, span: Span, shape: [usize; N]) -> Tensor {
        self.at(span, shape).to_kind(Kind::Float)
    }

    fn set<const N: usize>(&self, span: Span, shape: [usize; N], values: &Tensor) {
        self.at(span, shape).copy_(values);
    }

    fn add<const N: usize>(&self, span: Span, shape: [usize; N], values: &Tensor) {
        let mut to = self.at(span, shape);
        let _ = to.g_add_(&values.to_kind(to.kind()));
    }

    fn index(&self, rows: impl Iterator<Item = usize>) -> Tensor {
        Tensor::from_slice(&rows.map(|row| row as i64).collect::<Vec<_>>()).to_device(self.device)
    }

    /// Queries, keys and values as `[sequences, heads, longest, head_width]`, with where in them the rows lie, and which key
    /// each query sees.
    fn padded(&self, q: Span, kv: Span, shape: Attention) -> Padded {
        let (sequences, width) = (shape.starts.len() - 1, shape.heads * shape.head_width);
        let rows = shape.starts[sequences];
        let lengths: Vec<usize> = shape.starts.windows(2).map(|rows| rows[1] - rows[0]).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let queries = shape.queries.map_or(rows, <[usize]>::len);
        let keys: Vec<usize> = lengths.iter().enumerate().flat_map(|(s, length)| (0..*length).map(move |i| s * longest + i)).collect();
        let (query_places, most_queries) = match shape.queries {
            None => (keys.clone(), longest),
            Some(queries) => ((0..queries.len()).collect(), 1),
        };
        let mut seen = Vec::with_capacity(sequences * most_queries * longest);
        for (s, length) in lengths.iter().enumerate() {
            for i in 0..most_queries {
                let own = shape.queries.map_or(i, |queries| queries[s] - shape.starts[s]);
                // A query of padding sees the first key, so that it has numbers.
                seen.extend((0..longest).map(|key| key == 0 || key < *length && (!shape.causal || key <= own)));
            }
        }
        let seen = Tensor::from_slice(&seen).to_device(self.device).view([sequences as i64, 1, most_queries as i64, longest as i64]);
        let spread = |rows: &Tensor, places: &Tensor, each: usize| {
            let mut out = Tensor::zeros([(sequences * each) as i64, width as i64], (self.kind, self.device));
            let _ = out.index_copy_(0, places, &rows.to_kind(self.kind));
            out.view([sequences as i64, each as i64, shape.heads as i64, shape.head_width as i64]).transpose(1, 2).contiguous()
        };
        let (keys, query_places) = (self.index(keys.into_iter()), self.index(query_places.into_iter()));
        let kv = self.at(kv, [rows, 2, width]);
        Padded {
            q: spread(&self.at(q, [queries, width]), &query_places, most_queries),
            k: spread(&kv.i((.., 0)), &keys, longest),
            v: spread(&kv.i((.., 1)), &keys, longest),
            keys,
            queries: query_places,
            seen,
            each: most_queries,
        }
    }

    fn count_attention(&mut self, products: f64, shape: Attention) {
        let pairs: usize = shape.starts.windows(2).map(|rows| (rows[1] - rows[0]) * shape.queries.map_or(rows[1] - rows[0], |_| 1)).sum();
        self.flops += products * 2.0 * (pairs * shape.heads * shape.head_width) as f64;
    }
}

struct Padded {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    keys: Tensor,
    queries: Tensor,
    seen: Tensor,
    /// Places of queries in each sequence.
    each: usize,
}

impl Padded {
    fn attend(&self) -> Tensor {
        Tensor::scaled_dot_product_attention(&self.q, &self.k, &self.v, Some(&self.seen), 0.0, false, None, false)
    }

    /// `[rows, width]` of what lies in places of `[sequences, heads, _, head_width]`.
    fn rows(of: &Tensor, places: &Tensor) -> Tensor {
        of.transpose(1, 2).flatten(0, 1).flatten(1, 2).index_select(0, places)
    }
}

fn activation(x: &Tensor, activation: Activation) -> Tensor {
    match activation {
        Activation::Gelu => x.gelu("none"),
        Activation::QuickGelu => x * (x * 1.702).sigmoid(),
    }
}

/// The gradients of `inputs`, from that of what `f` makes of them.
fn backward<const N: usize>(inputs: [Tensor; N], dout: &Tensor, f: impl FnOnce(&[Tensor; N]) -> Tensor) -> [Tensor; N] {
    tch::with_grad(|| {
        let inputs = inputs.map(|input| input.detach().set_requires_grad(true));
        let out = f(&inputs);
        let total = (out * dout).sum(Kind::Float);
        let grads = Tensor::run_backward(&[total], &inputs, false, false);
        grads.try_into().expect("a gradient for each input")
    })
}

impl Backend for Libtorch {
    fn name(&self) -> String {
        format!("libtorch on {:?}, {:?}", self.device, self.kind)
    }

    fn kind(&self) -> &'static str {
        "libtorch"
    }

    fn alloc(&mut self, len: usize) -> Span {
        self.buffer(len, Kind::Float)
    }

    fn alloc_parameters(&mut self, len: usize) -> Span {
        self.buffer(len, Kind::Float)
    }

    fn alloc_activations(&mut self, len: usize) -> Span {
        self.buffer(len, self.kind)
    }

    fn write(&mut self, to: Span, values: &[f32]) {
        self.set(to, [to.len], &Tensor::from_slice(values));
    }

    fn read(&self, from: Span) -> Vec<f32> {
        let values = self.flat(from).to_kind(Kind::Float).to_device(Device::Cpu);
        Vec::try_from(values.contiguous()).expect("float32 values")
    }

    fn zero(&mut self, span: Span) {
        let _ = self.flat(span).zero_();
    }

    fn gemm(&mut self, g: Gemm) {
        self.flops += 2.0 * (g.m * g.n * g.k) as f64;
        let a = if g.transpose_a { self.operand(g.a, [g.k, g.m]).t_() } else { self.operand(g.a, [g.m, g.k]) };
        let b = if g.transpose_b { self.operand(g.b, [g.n, g.k]).t_() } else { self.operand(g.b, [g.k, g.n]) };
        let product = a.matmul(&b);
        let bias = |bias: Span| &product + self.operand(bias, [g.n]);
        let out = match g.epilogue {
            Epilogue::None => product,
            Epilogue::Bias(b) | Epilogue::Activate { bias: b, .. } => bias(b),
            Epilogue::Residual { bias: b, x } => bias(b) + self.at(x, [g.m, g.n]),
        };
        match g.accumulate {
            true => self.add(g.out, [g.m, g.n], &out),
            false => self.set(g.out, [g.m, g.n], &out),
        }
        if let Epilogue::Activate { activation: which, to, .. } = g.epilogue {
            self.set(to, [g.m, g.n], &activation(&out, which));
        }
    }

    fn flops(&self) -> f64 {
        self.flops
    }

    fn add_column_sums(&mut self, out: Span, x: Span) {
        let sums = self.at(x, [x.len / out.len, out.len]).sum_dim_intlist(0, false, Kind::Float);
        self.add(out, [out.len], &sums);
    }

    fn layer_norm(&mut self, out: Span, stats: Span, x: Span, gamma: Span, beta: Span, eps: f32) {
        let (dim, rows) = (gamma.len, x.len / gamma.len);
        self.eps = f64::from(eps);
        let x = self.f32s(x, [rows, dim]);
        let (y, mean, rstd) = x.native_layer_norm(dim as i64, Some(self.flat(gamma)), Some(self.flat(beta)), f64::from(eps));
        self.set(out, [rows, dim], &y);
        self.set(stats, [rows, 2], &Tensor::cat(&[mean, rstd], 1));
    }

    fn layer_norm_backward(&mut self, grads: LayerNormGrads, dy: Span, x: Span, _: Span, gamma: Span) {
        let (dim, rows) = (gamma.len, x.len / gamma.len);
        let beta = Tensor::zeros([dim as i64], (Kind::Float, self.device));
        let inputs = [self.f32s(x, [rows, dim]), self.flat(gamma), beta];
        let [dx, dgamma, dbeta] = backward(inputs, &self.f32s(dy, [rows, dim]), |[x, gamma, beta]| {
            x.layer_norm(dim as i64, Some(gamma), Some(beta), self.eps, false)
        });
        self.add(grads.dx, [rows, dim], &dx);
        self.add(grads.dgamma, [dim], &dgamma);
        self.add(grads.dbeta, [dim], &dbeta);
    }

    fn activate_backward(&mut self, which: Activation, dy: Span, x: Span) {
        let [dx] = backward([self.flat(x)], &self.flat(dy), |[x]| activation(x, which));
        self.set(dy, [dy.len], &dx);
    }

    fn attention(&mut self, out: Span, _: Span, q: Span, kv: Span, shape: Attention) {
        let padded = self.padded(q, kv, shape);
        let width = shape.heads * shape.head_width;
        self.set(out, [out.len / width, width], &Padded::rows(&padded.attend(), &padded.queries));
        self.count_attention(2.0, shape);
    }

    fn attention_backward(&mut self, grads: AttentionGrads, dout: Span, of: Attended, shape: Attention) {
        let padded = self.padded(of.q, of.kv, shape);
        let (width, sequences) = (shape.heads * shape.head_width, shape.starts.len() as i64 - 1);
        let (queries, rows) = (dout.len / width, grads.dkv.len / 2 / width);
        let mut spread = Tensor::zeros([sequences * padded.each as i64, width as i64], (self.kind, self.device));
        let _ = spread.index_copy_(0, &padded.queries, &self.at(dout, [queries, width]));
        let spread = spread.view([sequences, padded.each as i64, shape.heads as i64, shape.head_width as i64]).transpose(1, 2);
        let inputs = [&padded.q, &padded.k, &padded.v].map(Tensor::shallow_clone);
        let [dq, dk, dv] = backward(inputs, &spread, |[q, k, v]| {
            Tensor::scaled_dot_product_attention(q, k, v, Some(&padded.seen), 0.0, false, None, false)
        });
        self.set(grads.dq, [queries, width], &Padded::rows(&dq, &padded.queries));
        let dkv = Tensor::stack(&[Padded::rows(&dk, &padded.keys), Padded::rows(&dv, &padded.keys)], 1);
        self.set(grads.dkv, [rows, 2, width], &dkv);
        self.count_attention(5.0, shape);
    }

    fn embed_tokens(&mut self, out: Span, table: Span, positions: Span, ids: &[u32], starts: &[usize]) {
        let (rows, dim) = (ids.len(), out.len / ids.len());
        let tokens = self.at(table, [table.len / dim, dim]).index_select(0, &self.index(ids.iter().map(|&id| id as usize)));
        let places = self.index(starts.windows(2).flat_map(|rows| 0..rows[1] - rows[0]));
        let positions = self.at(positions, [positions.len / dim, dim]).index_select(0, &places);
        self.set(out, [rows, dim], &(tokens + positions));
    }

    fn embed_tokens_backward(&mut self, dtable: Span, dpositions: Span, dout: Span, ids: &[u32], starts: &[usize]) {
        let (rows, dim) = (ids.len(), dout.len / ids.len());
        let dout = self.f32s(dout, [rows, dim]);
        let ids = self.index(ids.iter().map(|&id| id as usize));
        let places = self.index(starts.windows(2).flat_map(|rows| 0..rows[1] - rows[0]));
        let _ = self.at(dtable, [dtable.len / dim, dim]).index_add_(0, &ids, &dout);
        let _ = self.at(dpositions, [dpositions.len / dim, dim]).index_add_(0, &places, &dout);
    }

    fn patchify(&mut self, out: Span, pixels: Pixels, size: usize, patch: usize) {
        let (side, size_i, side_i, patch_i) = (size / patch, size as i64, (size / patch) as i64, patch as i64);
        let images = match pixels {
            Pixels::Values(values) => Tensor::from_slice(values).to_device(self.device).view([-1, 3, size_i, size_i]),
            Pixels::Bytes { bytes, mean, std } => {
                let bytes = Tensor::from_slice(bytes).to_device(self.device).view([-1, size_i, size_i, 3]);
                let of_channels = |values: &[f32; 3]| Tensor::from_slice(values).to_device(self.device);
                ((bytes.to_kind(Kind::Float) / 255.0 - of_channels(&mean)) / of_channels(&std)).permute([0, 3, 1, 2])
            }
        };
        let patches = images.reshape([-1, 3, side_i, patch_i, side_i, patch_i]).permute([0, 2, 4, 1, 3, 5]);
        let batch = out.len / (side * side * 3 * patch * patch);
        self.set(out, [batch, side, side, 3, patch, patch], &patches);
    }

    fn embed_patches(&mut self, out: Span, patches: Span, class: Span, positions: Span) {
        let (dim, tokens) = (class.len, positions.len / class.len);
        let batch = out.len / positions.len;
        let class = self.at(class, [1, 1, dim]).expand([batch as i64, 1, dim as i64], false);
        let all = Tensor::cat(&[class, self.f32s(patches, [batch, tokens - 1, dim])], 1) + self.at(positions, [1, tokens, dim]);
        self.set(out, [batch, tokens, dim], &all);
    }

    fn embed_patches_backward(&mut self, dpatches: Span, dclass: Span, dpositions: Span, dout: Span) {
        let (dim, tokens) = (dclass.len, dpositions.len / dclass.len);
        let batch = dout.len / dpositions.len;
        let dout = self.f32s(dout, [batch, tokens, dim]);
        self.set(dpatches, [batch, tokens - 1, dim], &dout.i((.., 1..)));
        let sums = dout.sum_dim_intlist(0, false, Kind::Float);
        self.add(dpositions, [tokens, dim], &sums);
        self.add(dclass, [dim], &sums.i(0));
    }

    fn gather(&mut self, out: Span, x: Span, rows: &[usize], dim: usize) {
        let taken = self.at(x, [x.len / dim, dim]).index_select(0, &self.index(rows.iter().copied()));
        self.set(out, [rows.len(), dim], &taken);
    }

    fn gather_backward(&mut self, dx: Span, dout: Span, rows: &[usize], dim: usize) {
        let _ = self.at(dx, [dx.len / dim, dim]).index_add_(0, &self.index(rows.iter().copied()), &self.at(dout, [rows.len(), dim]));
    }

    fn normalize(&mut self, out: Span, norms: Span, x: Span) {
        let (rows, dim) = (norms.len, x.len / norms.len);
        let x = self.at(x, [rows, dim]);
        let norm = x.square().sum_dim_intlist(1, true, Kind::Float).sqrt().clamp_min(1e-12);
        self.set(out, [rows, dim], &(&x / &norm));
        self.set(norms, [rows, 1], &norm);
    }

    fn normalize_backward(&mut self, dx: Span, dy: Span, y: Span, norms: Span) {
        let (rows, dim) = (norms.len, y.len / norms.len);
        let (dy, y) = (self.at(dy, [rows, dim]), self.at(y, [rows, dim]));
        let along = (&dy * &y).sum_dim_intlist(1, true, Kind::Float);
        self.set(dx, [rows, dim], &((dy - along * y) / self.at(norms, [rows, 1])));
    }

    fn contrastive_loss(&mut self, to: LossGrads, losses: Span, images: Span, texts: Span, ln_scale: Span) {
        let (n, dim) = (losses.len, images.len / losses.len);
        let inputs = [self.at(images, [n, dim]), self.at(texts, [n, dim]), self.flat(ln_scale)].map(|x| x.copy());
        let of_samples = |[images, texts, ln_scale]: &[Tensor; 3]| {
            let logits = ln_scale.exp() * images.matmul(&texts.tr());
            let diagonal = logits.diagonal(0, 0, 1);
            (logits.logsumexp([1i64], false) + logits.logsumexp([0i64], false)) * 0.5 - diagonal
        };
        self.set(losses, [n], &no_grad(|| of_samples(&inputs)));
        let mean = Tensor::full([n as i64], 1.0 / n as f64, (Kind::Float, self.device));
        let [d_images, d_texts, d_ln_scale] = backward(inputs, &mean, of_samples);
        self.set(to.d_images, [n, dim], &d_images);
        self.set(to.d_texts, [n, dim], &d_texts);
        self.add(to.d_ln_scale, [1], &d_ln_scale);
    }

    fn square_sum(&mut self, x: Span) -> f64 {
        self.flat(x).square().sum(Kind::Double).double_value(&[])
    }

    fn clamp(&mut self, x: Span, low: f32, high: f32) {
        let _ = self.flat(x).clamp_(f64::from(low), f64::from(high));
    }

    fn adamw(&mut self, state: AdamWState, decayed: &[(Range<usize>, bool)], hyper: AdamW) {
        let [learning_rate, beta1, beta2, eps, weight_decay, scale] =
            [hyper.learning_rate, hyper.beta1, hyper.beta2, hyper.eps, hyper.weight_decay, hyper.gradient_scale].map(f64::from);
        let (correction1, correction2) = (1.0 - beta1.powf(hyper.step as f64), (1.0 - beta2.powf(hyper.step as f64)).sqrt());
        for (range, decays) in decayed {
            let part = |span: Span| self.flat(span.at(range.start, range.len()));
            let (mut params, g, mut m, mut v) = (part(state.params), part(state.grads) * scale, part(state.m), part(state.v));
            let _ = m.g_mul_scalar_(beta1).g_add_(&(&g * (1.0 - beta1)));
            let _ = v.g_mul_scalar_(beta2).g_add_(&(g.square() * (1.0 - beta2)));
            let keep = if *decays { 1.0 - learning_rate * weight_decay } else { 1.0 };
            let step = &m * (learning_rate / correction1) / (v.sqrt() / correction2 + eps);
            let _ = params.g_mul_scalar_(keep).g_sub_(&step);
        }
    }
}
