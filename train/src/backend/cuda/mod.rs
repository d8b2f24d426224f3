//! A GPU: matrix products by cublasLt, the rest by the kernels of this folder. Parameters, gradients and moments are float32;
//! matrix products read parameters rounded to the precision of the activations, of which a copy is kept.

mod attention;
mod indices;
mod loss;

use std::cell::RefCell;
use std::ops::Range;

use ::gpu::{Arg, Device, Kind, Launch, Matmul, Pointer};
use half::bf16;

use self::indices::{Indices, pieces};
use super::{
    Activation, AdamW, AdamWState, Attended, Attention, AttentionGrads, Backend, Epilogue, Gemm, LayerNormGrads, LossGrads, Pixels, Span,
};
use crate::Result;

/// What activations are stored as, and matrix products read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    Bf16,
    Fp32,
}

impl Precision {
    pub fn bytes(self) -> usize {
        self.kind().bytes()
    }

    fn kind(self) -> Kind {
        match self {
            Precision::Bf16 => Kind::Bf16,
            Precision::Fp32 => Kind::F32,
        }
    }
}

/// All kernels for a precision, as one source.
pub fn kernel_source(precision: Precision) -> String {
    let parts = [
        include_str!("kernels/common.cuh"),
        include_str!("kernels/activation.cu"),
        include_str!("kernels/layer_norm.cu"),
        include_str!("kernels/sums.cu"),
        include_str!("kernels/embedding.cu"),
        include_str!("kernels/attention.cu"),
        include_str!("kernels/attention_mma.cu"),
        include_str!("kernels/loss.cu"),
        include_str!("kernels/adamw.cu"),
    ];
    // What the preprocessor would leave out is left out here, so that the kernels' names can be read from the source.
    let parts = parts.into_iter().filter(|part| precision == Precision::Bf16 || !part.contains("attention_mma("));
    let parts: String = parts.collect();
    format!("#define BFLOAT16 {}\n{}{parts}", i32::from(precision == Precision::Bf16), ::gpu::PRELUDE)
}

/// The widest row that `layer_norm.cu` has a kernel for.
const WIDEST: usize = 2048;
const THREADS: u32 = 256;

struct Buffer {
    at: Pointer,
    kind: Kind,
    /// Parameters as matrix products read them.
    rounded: Option<Pointer>,
}

pub struct Cuda {
    device: RefCell<Device>,
    name: String,
    precision: Precision,
    buffers: Vec<Buffer>,
    indices: Indices,
    scratch: [Scratch; 4],
    /// Of the images of the micro-batches, in turn.
    pixels: [Scratch; 2],
    turn: usize,
}

/// Memory between two kernels, as large as was asked for so far.
#[derive(Default, Clone, Copy)]
struct Scratch {
    at: Pointer,
    bytes: usize,
}

impl Scratch {
    fn take(&mut self, device: &mut Device, bytes: usize) -> Pointer {
        if bytes > self.bytes {
            if self.bytes > 0 {
                device.free(self.at);
            }
            // A half more, so that a little more next time asks for nothing.
            self.bytes = bytes + bytes / 2;
            self.at = device.alloc(self.bytes);
        }
        self.at
    }
}

fn at(pointer: Pointer) -> Arg {
    Arg::Pointer(pointer)
}

fn int(x: usize) -> Arg {
    Arg::Int(x as i32)
}

/// A thread for each of `n`, or for each eight of them.
fn elementwise(n: usize) -> Launch {
    Launch::new(n.div_ceil(THREADS as usize), THREADS)
}

/// A warp a row.
fn by_rows(rows: usize) -> Launch {
    Launch::new(rows.div_ceil(THREADS as usize / 32), THREADS)
}

impl Cuda {
    pub fn new(mut device: Device, precision: Precision) -> Result<Cuda> {
        device.load(&kernel_source(precision))?;
        let kind = if precision == Precision::Bf16 { "bfloat16" } else { "float32" };
        let name = format!("{}, {kind}", device.info().name);
        let (scratch, pixels) = ([Scratch::default(); 4], [Scratch::default(); 2]);
        let indices = Indices::default();
        Ok(Cuda { device: RefCell::new(device), name, precision, buffers: Vec::new(), indices, scratch, pixels, turn: 0 })
    }

    /// The device itself, for what no model does.
    pub fn device(&mut self) -> &mut Device {
        self.device.get_mut()
    }

    fn buffer(&mut self, len: usize, kind: Kind, rounded: bool) -> Span {
        let device = self.device.get_mut();
        let at = device.alloc(len * kind.bytes());
        let rounded = (rounded && self.precision == Precision::Bf16).then(|| device.alloc(len * Kind::Bf16.bytes()));
        self.buffers.push(Buffer { at, kind, rounded });
        Span { buffer: self.buffers.len() - 1, start: 0, len }
    }

    fn at(&self, span: Span) -> Pointer {
        let buffer = &self.buffers[span.buffer];
        buffer.at + (span.start * buffer.kind.bytes()) as u64
    }

    fn arg(&self, span: Span) -> Arg {
        at(self.at(span))
    }

    fn launch(&mut self, kernel: &str, launch: Launch, args: &[Arg]) {
        self.device.get_mut().launch(kernel, launch, args);
    }

    fn scratch(&mut self, which: usize, bytes: usize) -> Pointer {
        self.scratch[which].take(self.device.get_mut(), bytes)
    }

    fn index(&mut self, values: &[i32]) -> Arg {
        at(self.indices.upload(self.device.get_mut(), values))
    }

    /// The values as matrix products read them; features are rounded on the way.
    fn operand(&mut self, span: Span, which: usize) -> Pointer {
        let buffer = &self.buffers[span.buffer];
        if buffer.kind == self.precision.kind() {
            return self.at(span);
        }
        if let Some(rounded) = buffer.rounded {
            return rounded + (span.start * Kind::Bf16.bytes()) as u64;
        }
        let rounded = self.scratch(which, span.len * Kind::Bf16.bytes());
        let args = [at(rounded), self.arg(span), Arg::Long(span.len as i64)];
        self.launch("round_values", elementwise(span.len), &args);
        rounded
    }

    /// `partial[splits, n]` of the columns of `x[rows, n]`, in the scratch memory.
    fn column_sums(&mut self, out: Span, x: Span, rows: usize, stride: usize) {
        let n = out.len;
        let blocks = n.div_ceil(256);
        let splits = (4 * self.device.get_mut().info().multiprocessors).div_ceil(blocks).min(rows.div_ceil(64)).max(1);
        let partial = self.scratch(0, splits * n * 4);
        let launch = Launch { grid: (blocks as u32, splits as u32), threads: 256, shared: 0 };
        let args = [at(partial), self.arg(x), int(rows), int(n), int(stride)];
        self.launch("column_sums", launch, &args);
        self.add_partials(out, partial, splits, n);
    }

    fn add_partials(&mut self, out: Span, partial: Pointer, splits: usize, stride: usize) {
        let args = [self.arg(out), at(partial), int(splits), int(out.len), int(stride)];
        self.launch("add_partials", elementwise(out.len), &args);
    }

    /// `out[keys[i]] += x[i]`, rows of `dim` values.
    fn add_by_key(&mut self, out: Span, x: Span, keys: &[u32], dim: usize) {
        let pieces = pieces(keys);
        let partial = self.scratch(0, (pieces.bounds.len() - 1) * dim * 4);
        let (order, bounds) = (self.index(&pieces.order), self.index(&pieces.bounds));
        let threads = (dim.div_ceil(8).next_multiple_of(32)).min(256) as u32;
        let args = [at(partial), self.arg(x), order, bounds, int(dim)];
        self.launch("sum_pieces", Launch::new(pieces.bounds.len() - 1, threads), &args);
        let (of_key, key_bounds) = (self.index(&pieces.keys), self.index(&pieces.key_bounds));
        let args = [self.arg(out), at(partial), of_key, key_bounds, int(dim)];
        self.launch("add_pieces", Launch::new(pieces.keys.len(), 128), &args);
    }

    fn activate(&mut self, kernel: &str, to: Span, x: Span, activation: Activation) {
        let quick = Arg::Int(i32::from(activation == Activation::QuickGelu));
        let args = [self.arg(to), self.arg(x), Arg::Long(to.len as i64), quick];
        self.launch(kernel, elementwise(to.len.div_ceil(8)), &args);
    }
}

/// The kernel for rows of this width: `NAME_CHUNKS`.
fn for_width(name: &str, dim: usize) -> String {
    let chunks = [1, 2, 3, 4, 8].into_iter().find(|chunks| dim <= 256 * chunks);
    format!("{name}_{}", chunks.unwrap_or_else(|| panic!("rows of {dim}, expected at most {WIDEST}")))
}

/// Why a model cannot be on a GPU.
pub fn refuses(widths: &[usize]) -> Option<String> {
    let odd = widths.iter().find(|&&width| width % 8 != 0 || width > WIDEST)?;
    Some(format!("a width of {odd}, expected a multiple of 8 up to {WIDEST}"))
}

impl Backend for Cuda {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn alloc(&mut self, len: usize) -> Span {
        self.buffer(len, Kind::F32, false)
    }

    fn alloc_parameters(&mut self, len: usize) -> Span {
        self.buffer(len, Kind::F32, true)
    }

    fn alloc_activations(&mut self, len: usize) -> Span {
        self.buffer(len, self.precision.kind(), false)
    }

    fn write(&mut self, to: Span, values: &[f32]) {
        assert_eq!(to.len, values.len());
        let pointer = self.at(to);
        let Buffer { kind, rounded, .. } = self.buffers[to.buffer];
        let device = self.device.get_mut();
        if kind == Kind::Bf16 {
            let values: Vec<u8> = values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect();
            return device.write(pointer, &values);
        }
        device.write(pointer, crate::checkpoint::f32_bytes(values));
        if let Some(rounded) = rounded {
            let args = [at(rounded + 2 * to.start as u64), at(pointer), Arg::Long(to.len as i64)];
            device.launch("round_values", elementwise(to.len), &args);
        }
    }

    fn read(&self, from: Span) -> Vec<f32> {
        let kind = self.buffers[from.buffer].kind;
        let mut bytes = vec![0; from.len * kind.bytes()];
        self.device.borrow_mut().read(self.at(from), &mut bytes);
        match kind {
            Kind::F32 => crate::checkpoint::floats(&bytes),
            _ => bytes.chunks_exact(2).map(|x| bf16::from_le_bytes([x[0], x[1]]).to_f32()).collect(),
        }
    }

    fn zero(&mut self, span: Span) {
        let (pointer, bytes) = (self.at(span), span.len * self.buffers[span.buffer].kind.bytes());
        self.device.get_mut().zero(pointer, bytes);
    }

    fn check(&self) -> Result<()> {
        Ok(self.device.borrow().check()?)
    }

    fn kind(&self) -> &'static str {
        match self.precision {
            Precision::Bf16 => "a GPU in bfloat16",
            Precision::Fp32 => "a GPU in float32",
        }
    }

    fn gpu(&mut self) -> Option<&mut Device> {
        Some(self.device())
    }

    fn meeting_point(&mut self) -> Result<Option<Vec<u8>>> {
        Ok(self.device.get_mut().meeting_point()?)
    }

    fn meet(&mut self, at: &[u8], rank: usize, world: usize) -> Result<()> {
        Ok(self.device.get_mut().meet(at, rank, world)?)
    }

    fn all_gather(&mut self, span: Span, world: usize) {
        let pointer = self.at(span);
        self.device.get_mut().all_gather(pointer, span.len / world);
    }

    fn all_reduce(&mut self, span: Span) {
        let pointer = self.at(span);
        self.device.get_mut().all_reduce(pointer, span.len);
    }

    fn gemm(&mut self, g: Gemm) {
        assert!(g.out.len == g.m * g.n && g.a.len == g.m * g.k && g.b.len == g.k * g.n, "shapes of {g:?}");
        let (a, b) = (self.operand(g.a, 1), self.operand(g.b, 2));
        let output = self.buffers[g.out.buffer].kind;
        let out = self.at(g.out);
        let (bias, add) = match g.epilogue {
            Epilogue::None => (None, None),
            Epilogue::Bias(bias) | Epilogue::Activate { bias, .. } => (Some(bias), None),
            Epilogue::Residual { bias, x } => (Some(bias), Some(self.at(x))),
        };
        assert!(bias.is_none() || output == self.precision.kind(), "a bias is added to activations alone");
        let bias = bias.map(|bias| self.operand(bias, 3));
        let Gemm { m, n, k, transpose_a, transpose_b, .. } = g;
        let add = if g.accumulate { Some(out) } else { add };
        let inputs = self.precision.kind();
        self.device.get_mut().matmul(Matmul { out, a, b, m, n, k, transpose_a, transpose_b, inputs, output, add, bias });
        if let Epilogue::Activate { activation, to, .. } = g.epilogue {
            self.activate("activate", to, g.out, activation);
        }
    }

    fn flops(&self) -> f64 {
        self.device.borrow().flops()
    }

    fn add_column_sums(&mut self, out: Span, x: Span) {
        self.column_sums(out, x, x.len / out.len, out.len);
    }

    fn layer_norm(&mut self, out: Span, stats: Span, x: Span, gamma: Span, beta: Span, eps: f32) {
        let (dim, rows) = (gamma.len, x.len / gamma.len);
        let [out, stats, x, gamma, beta] = [out, stats, x, gamma, beta].map(|span| self.arg(span));
        self.launch(&for_width("layer_norm", dim), by_rows(rows), &[out, stats, x, gamma, beta, int(rows), int(dim), Arg::Float(eps)]);
    }

    fn layer_norm_backward(&mut self, grads: LayerNormGrads, dy: Span, x: Span, stats: Span, gamma: Span) {
        let (dim, rows) = (gamma.len, x.len / gamma.len);
        let blocks = (2 * self.device.get_mut().info().multiprocessors).min(rows.div_ceil(8)).max(1);
        let partial = self.scratch(0, blocks * 2 * dim * 4);
        let [dx, dy, x, stats, gamma] = [grads.dx, dy, x, stats, gamma].map(|span| self.arg(span));
        let launch = Launch { shared: 2 * dim as u32 * 4, ..Launch::new(blocks, THREADS) };
        self.launch(&for_width("layer_norm_backward", dim), launch, &[dx, at(partial), dy, x, stats, gamma, int(rows), int(dim)]);
        self.add_partials(grads.dgamma, partial, blocks, 2 * dim);
        self.add_partials(grads.dbeta, partial + 4 * dim as u64, blocks, 2 * dim);
    }

    fn activate_backward(&mut self, activation: Activation, dy: Span, x: Span) {
        self.activate("activate_backward", dy, x, activation);
    }

    fn attention(&mut self, out: Span, lse: Span, q: Span, kv: Span, shape: Attention) {
        self.attend(out, lse, q, kv, shape);
    }

    fn attention_backward(&mut self, grads: AttentionGrads, dout: Span, of: Attended, shape: Attention) {
        self.attend_backward(grads, dout, of, shape);
    }

    fn embed_tokens(&mut self, out: Span, table: Span, positions: Span, ids: &[u32], starts: &[usize]) {
        let dim = out.len / ids.len();
        let ids: Vec<i32> = ids.iter().map(|&id| id as i32).collect();
        let places: Vec<i32> = places(starts).map(|place| place as i32).collect();
        let (rows, ids, places) = (ids.len(), self.index(&ids), self.index(&places));
        let args = [self.arg(out), self.arg(table), self.arg(positions), ids, places, int(rows), int(dim)];
        self.launch("embed_tokens", elementwise(out.len.div_ceil(8)), &args);
    }

    fn embed_tokens_backward(&mut self, dtable: Span, dpositions: Span, dout: Span, ids: &[u32], starts: &[usize]) {
        let dim = dout.len / ids.len();
        self.add_by_key(dtable, dout, ids, dim);
        self.add_by_key(dpositions, dout, &places(starts).collect::<Vec<u32>>(), dim);
    }

    fn patchify(&mut self, out: Span, pixels: Pixels, size: usize, patch: usize) {
        self.turn = 1 - self.turn;
        let device = self.device.get_mut();
        let (n, geometry) = (Arg::Long(out.len as i64), [int(size), int(patch)]);
        let bytes = match pixels {
            Pixels::Values(values) => crate::checkpoint::f32_bytes(values),
            Pixels::Bytes { bytes, .. } => bytes,
        };
        let from = self.pixels[self.turn].take(device, bytes.len());
        device.write_beside(from, bytes);
        let mut args = vec![self.arg(out), at(from), n];
        args.extend(geometry);
        let kernel = match pixels {
            Pixels::Values(_) => "patchify_values",
            Pixels::Bytes { mean, std, .. } => {
                args.extend(std.map(|std| Arg::Float(1.0 / (255.0 * std))));
                args.extend([0, 1, 2].map(|channel| Arg::Float(-mean[channel] / std[channel])));
                "patchify_bytes"
            }
        };
        self.launch(kernel, elementwise(out.len), &args);
        self.device.get_mut().used(from);
    }

    fn embed_patches(&mut self, out: Span, patches: Span, class: Span, positions: Span) {
        let (dim, tokens) = (class.len, positions.len / class.len);
        let spans = [out, patches, class, positions].map(|span| self.arg(span));
        let args = [&spans[..], &[int(out.len / positions.len), int(tokens), int(dim)]].concat();
        self.launch("embed_patches", elementwise(out.len.div_ceil(8)), &args);
    }

    fn embed_patches_backward(&mut self, dpatches: Span, dclass: Span, dpositions: Span, dout: Span) {
        let (dim, sample) = (dclass.len, dpositions.len);
        let batch = dout.len / sample;
        let args = [self.arg(dpatches), self.arg(dout), int(batch), int(sample / dim), int(dim)];
        self.launch("take_patches", elementwise(dpatches.len.div_ceil(8)), &args);
        self.column_sums(dpositions, dout, batch, sample);
        self.column_sums(dclass, dout, batch, sample);
    }

    fn gather(&mut self, out: Span, x: Span, rows: &[usize], dim: usize) {
        let index = self.index(&ints(rows));
        let args = [self.arg(out), self.arg(x), index, int(rows.len()), int(dim)];
        self.launch("gather", elementwise(out.len.div_ceil(8)), &args);
    }

    fn gather_backward(&mut self, dx: Span, dout: Span, rows: &[usize], dim: usize) {
        let index = self.index(&ints(rows));
        let args = [self.arg(dx), self.arg(dout), index, int(rows.len()), int(dim)];
        self.launch("gather_backward", elementwise(dout.len.div_ceil(8)), &args);
    }

    fn normalize(&mut self, out: Span, norms: Span, x: Span) {
        let rows = norms.len;
        let spans = [out, norms, x].map(|span| self.arg(span));
        self.launch("normalize", by_rows(rows), &[&spans[..], &[int(rows), int(x.len / rows)]].concat());
    }

    fn normalize_backward(&mut self, dx: Span, dy: Span, y: Span, norms: Span) {
        let rows = norms.len;
        let spans = [dx, dy, y, norms].map(|span| self.arg(span));
        self.launch("normalize_backward", by_rows(rows), &[&spans[..], &[int(rows), int(y.len / rows)]].concat());
    }

    fn contrastive_loss(&mut self, to: LossGrads, losses: Span, images: Span, texts: Span, ln_scale: Span) {
        self.contrast(to, losses, images, texts, ln_scale);
    }

    fn square_sum(&mut self, x: Span) -> f64 {
        const BLOCKS: usize = 256;
        let partial = self.scratch(0, BLOCKS * 8);
        let args = [at(partial), self.arg(x), Arg::Long(x.len as i64)];
        self.launch("square_sum", Launch::new(BLOCKS, THREADS), &args);
        let mut bytes = vec![0; BLOCKS * 8];
        self.device.get_mut().read(partial, &mut bytes);
        bytes.chunks_exact(8).map(|x| f64::from_le_bytes(x.try_into().expect("eight bytes"))).sum()
    }

    fn clamp(&mut self, x: Span, low: f32, high: f32) {
        let args = [self.arg(x), Arg::Float(low), Arg::Float(high)];
        self.launch("clamp", Launch::new(1usize, 32), &args);
    }

    fn adamw(&mut self, state: AdamWState, decayed: &[(Range<usize>, bool)], hyper: AdamW) {
        let AdamW { learning_rate, beta1, beta2, eps, weight_decay, step, gradient_scale } = hyper;
        let correction1 = 1.0 - f64::from(beta1).powf(step as f64) as f32;
        let correction2 = (1.0 - f64::from(beta2).powf(step as f64)).sqrt() as f32;
        // 64-bit numbers as two of 32.
        let ends: Vec<i32> = decayed.iter().flat_map(|(range, _)| [range.end as i32, (range.end >> 32) as i32]).collect();
        let decays: Vec<i32> = decayed.iter().map(|(_, decays)| i32::from(*decays)).collect();
        let (ends, decays) = (self.index(&ends), self.index(&decays));
        let rounded = self.buffers[state.params.buffer].rounded.map_or(0, |rounded| rounded + 2 * state.params.start as u64);
        let spans = [state.params, state.grads, state.m, state.v].map(|span| self.arg(span));
        let n = state.params.len;
        let hyper = [learning_rate, learning_rate / correction1, beta1, beta2, correction2, eps, weight_decay, gradient_scale];
        let args = [&spans[..], &[at(rounded), Arg::Long(n as i64), ends, decays, int(decayed.len())], &hyper.map(Arg::Float)].concat();
        // Four values a thread.
        self.launch("adamw", elementwise(n.div_ceil(4)), &args);
    }
}

/// Each row's place in its sequence.
fn places(starts: &[usize]) -> impl Iterator<Item = u32> {
    starts.windows(2).flat_map(|rows| 0..(rows[1] - rows[0]) as u32)
}

fn ints(values: &[usize]) -> Vec<i32> {
    values.iter().map(|&x| x as i32).collect()
}
